"""The files of the built-in image beside its programs: directories, accounts, settings.

Sources: hier(7), passwd(5), group(5), os-release(5), nsswitch.conf(5), Documentation/admin-guide/devices.txt.
"""

from __future__ import annotations

from typing import Final

from ramet.images.cpio import FileTree
from ramet.version import __version__

_DIRECTORIES: Final = (
    "bin",
    "dev/pts",
    "dev/shm",
    "etc/ramet",
    "home",
    "lib",
    "media",
    "mnt",
    "opt",
    "proc",
    "run",
    "sbin",
    "srv",
    "sys",
    "usr/bin",
    "usr/lib",
    "usr/local/bin",
    "usr/sbin",
    "usr/share",
    "var/cache",
    "var/lib",
    "var/log",
    "var/spool",
)
_SPECIAL_DIRECTORIES: Final = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}

_FILES: Final = {
    "etc/passwd": """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
""",
    "etc/group": """\
root:x:0:
daemon:x:1:
tty:x:5:
disk:x:6:
users:x:100:
nogroup:x:65534:
""",
    "etc/hostname": "ramet\n",
    "etc/hosts": """\
127.0.0.1 localhost ramet
::1 localhost ip6-localhost ip6-loopback
""",
    "etc/nsswitch.conf": """\
passwd: files
group: files
hosts: files dns
""",
    "etc/os-release": f"""\
NAME="ramet built-in"
ID=ramet
VERSION_ID={__version__}
PRETTY_NAME="ramet built-in image {__version__}"
""",
    "etc/profile": """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME="${HOME:-/root}" PAGER="${PAGER:-more}"
[ "$(id -u)" = 0 ] && PS1='\\h:\\w# ' || PS1='\\h:\\w$ '
""",
    "etc/shells": "/bin/sh\n/bin/ash\n",
}

_LINKS: Final = {
    "etc/mtab": "/proc/self/mounts",
    "var/run": "/run",
    "var/lock": "/run/lock",
    "dev/fd": "/proc/self/fd",
}


def add_skeleton(tree: FileTree) -> None:
    """Add the directories, device nodes and files of `/etc` to an empty tree."""
    for path in _DIRECTORIES:
        tree.directory(path)
    for path, mode in _SPECIAL_DIRECTORIES.items():
        tree.directory(path, mode)
    for path, text in _FILES.items():
        tree.file(path, text)
    # Accounts are locked: nobody logs in with a password, the agent starts every command.
    tree.file("etc/shadow", "root:*:::::::\ndaemon:*:::::::\nnobody:*:::::::\n", 0o640)
    for path, target in _LINKS.items():
        tree.symlink(path, target)
    add_devices(tree)


def add_devices(tree: FileTree) -> None:
    """Add the nodes that are needed before devtmpfs is mounted: the kernel opens the console for /init."""
    tree.character_device("dev/console", 5, 1, 0o600)
    tree.character_device("dev/null", 1, 3, 0o666)
