/* The files that a container image lacks or has empty, because who runs it provides them. */
#ifndef RAMET_ROOT_FILES_H
#define RAMET_ROOT_FILES_H

/* /etc/hosts, /etc/resolv.conf, and the directories that the agent and most programs need. A regular file that says
 * something stays as it is, from the image or from an earlier boot. NULL, or the path that can't be written, with errno.
 * The guest's own names are IDENTITY's matter. */
const char *root_files_make(void);

#endif
