"""Sources of images that come from this machine: archives, layouts, root file systems, other programs."""
