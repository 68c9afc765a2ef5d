"""Layers, in order, become one tree. Nothing here touches a filesystem or a file's contents.

Rules, from the OCI image specification 1.1 (layer.md, "Applying Changesets", "Whiteouts", "Opaque Whiteout"),
and where it is silent as umoci and containerd apply layers:

- The parents of a name are resolved through links inside the root; `..` in a link's target stops at the root.
  Missing parents are made, 0755 and root's. The last component is never followed.
- A directory keeps a directory's content. Everything else replaces.
- A whiteout or an opaque marker hides what lower layers wrote, wherever in its own layer it stands.
- A hard link needs its target, of a lower layer or earlier in its own; it isn't a directory.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from ramet.errors import DamagedError
from ramet.images.layers.attributes import kept_xattrs
from ramet.images.layers.limits import DEFAULT_LIMITS, NAME_BYTES, Limits
from ramet.images.layers.tar_entries import HARD_LINK, TarEntry, shown
from ramet.images.layers.tree import Extent, Node

_WHITEOUT: Final = b".wh."
_RESERVED: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"

_Stack = list[tuple[bytes, Node]]


@dataclass(slots=True)
class Dropped:
    """Parts of layers that a guest won't see, because overlayfs would obey it or EROFS can't hold it."""

    xattrs: int = 0
    """Attributes of overlayfs, those of unknown namespaces, and ACLs as text (`tar --acls`)."""
    whiteout_devices: int = 0
    """Character devices 0:0, which overlayfs takes for whiteouts: the name is absent."""


class Merge:
    """A tree that grows by layers. After a `DamagedError` the tree is of no use."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.root = Node(stat.S_IFDIR)
        self.dropped = Dropped()
        self._limits = limits
        self._entries = 0
        self._metadata_bytes = 0
        self._steps = 0
        self._touched: list[Node] = []

    def begin_layer(self) -> None:
        """Begin the next layer: everything so far is lower now."""
        for node in self._touched:
            node.upper, node.is_cleaned = None, False
        self._touched.clear()

    def add(self, entry: TarEntry, content: Extent | None = None) -> None:
        """Add the layer's next entry, a regular file with the place of its contents unless it is empty.

        Raises `DamagedError`, which names the entry.
        """
        try:
            self._add(entry, content)
        except DamagedError as error:
            raise DamagedError(f"{shown(entry.name)}: {error.message}") from error

    def _add(self, entry: TarEntry, content: Extent | None) -> None:
        self._entries += 1
        if self._entries > self._limits.total_entries:
            raise DamagedError("the image has too many entries")
        self._metadata_bytes += entry.metadata_bytes
        if self._metadata_bytes > self._limits.metadata_bytes:
            raise DamagedError("the image's names, links and attributes are too large together")
        parts = _split(entry.name)
        if not parts:
            if entry.file_type != stat.S_IFDIR:
                raise DamagedError("the root is no directory")
            self._describe(self.root, entry)
        elif is_marker(entry.name):
            self._hide(parts)
        else:
            self._place(parts, entry, content)

    def _place(self, parts: list[bytes], entry: TarEntry, content: Extent | None) -> None:
        stack = self._resolve(parts[:-1], make=True)
        assert stack is not None
        if len(stack) > self._limits.depth:
            raise DamagedError("it lies too deep")
        name = parts[-1]
        directory = _children(stack[-1][1])
        self._mark(stack, name)
        if entry.file_type == HARD_LINK:
            directory[name] = self._target(entry.link)
        elif entry.file_type == stat.S_IFCHR and entry.device == (0, 0):
            directory.pop(name, None)
            self.dropped.whiteout_devices += 1
        else:
            node = directory.get(name)
            if node is None or entry.file_type != stat.S_IFDIR or node.file_type != stat.S_IFDIR:
                node = directory[name] = Node(entry.file_type)
                node.content, node.link, node.device = content, entry.link, entry.device
            self._describe(node, entry)

    def _describe(self, node: Node, entry: TarEntry) -> None:
        # A link's own bits are always these (symlink(7)).
        node.permissions = 0o777 if node.file_type == stat.S_IFLNK else entry.permissions
        node.uid, node.gid, node.mtime = entry.uid, entry.gid, entry.mtime
        xattrs = kept_xattrs(entry)
        node.xattrs = xattrs or None
        self.dropped.xattrs += len(entry.xattrs) - len(xattrs)

    def _target(self, link: bytes) -> Node:
        parts = _split(link)
        stack = self._resolve(parts[:-1], make=False) if parts else None
        node = _children(stack[-1][1]).get(parts[-1]) if stack else None
        if node is None:
            raise DamagedError(f"it is a hard link to {shown(link)}, which isn't there")
        if node.children is not None:
            raise DamagedError(f"it is a hard link to {shown(link)}, a directory")
        return node

    def _hide(self, parts: list[bytes]) -> None:
        """Obey a whiteout or an opaque marker. It never makes anything."""
        name = parts[-1]
        if name != _OPAQUE and any(part.startswith(_RESERVED) for part in parts):
            return  # AUFS's own records
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise DamagedError("it is a whiteout of nothing, or of a directory from inside")
        if (stack := self._resolve(parts[:-1], make=False)) is None:
            return
        directory = stack[-1][1]
        if name == _OPAQUE:
            self._clean(directory)
        elif (node := _children(directory).get(hidden)) is not None:
            if directory.upper is None or hidden not in directory.upper:
                del _children(directory)[hidden]
            elif node.children is not None:
                self._clean(node)

    def _clean(self, directory: Node) -> None:
        """Remove what lower layers wrote into a directory. A second time there is nothing left to look at."""
        pending = [directory]
        while pending:
            node = pending.pop()
            if node.is_cleaned:
                continue
            if node.upper is None:
                self._touched.append(node)
            node.is_cleaned = True
            upper = node.upper or set()
            node.children = {name: child for name, child in _children(node).items() if name in upper}
            pending += [child for child in node.children.values() if child.children is not None]

    def _mark(self, stack: _Stack, name: bytes) -> None:
        """Note that this layer wrote `name` in the last directory, and so below all those above it."""
        for above, node in reversed(stack):
            if node.upper is None:
                node.upper = set()
                self._touched.append(node)
            elif name in node.upper:
                break
            node.upper.add(name)
            name = above

    def _resolve(self, parts: list[bytes], *, make: bool) -> _Stack | None:
        """Return the directories that `parts` lead to, from the root, each with its name.

        Missing ones are made if `make` is set, else the answer is None. Raises `DamagedError` for a loop of
        links and, if `make` is set, when something else than a directory is in the way.
        """
        stack: _Stack = [(b"", self.root)]
        missing: list[bytes] = []
        pending = parts[::-1]
        hops = 0
        while pending:
            part = pending.pop()
            self._steps += 1
            if self._steps > self._limits.walk_steps:
                raise DamagedError("the image's names take too many steps to resolve")
            if part in (b"", b"."):
                continue
            if part == b"..":
                if missing:
                    missing.pop()
                elif len(stack) > 1:
                    stack.pop()
                continue
            node = None if missing else _children(stack[-1][1]).get(part)
            if node is None:
                if not make:
                    return None
                if len(part) > NAME_BYTES:
                    raise DamagedError("a component of a link's target is too long")
                missing.append(part)
            elif node.file_type == stat.S_IFLNK:
                hops += 1
                if hops > self._limits.link_hops:
                    raise DamagedError("its directory is a loop of links")
                if node.link.startswith(b"/"):
                    stack = stack[:1]
                pending += node.link.split(b"/")[::-1]
            elif node.children is None:
                if make:
                    raise DamagedError("a parent of it is no directory")
                return None
            else:
                stack.append((part, node))
        for part in missing:
            if len(stack) > self._limits.depth:
                raise DamagedError("it lies too deep")
            node = _children(stack[-1][1])[part] = Node(stat.S_IFDIR)
            stack.append((part, node))
        return stack


def is_marker(name: bytes) -> bool:
    """Tell whether an entry of that name is a whiteout, an opaque marker or a record of AUFS."""
    parts = name.split(b"/")
    base = next((part for part in reversed(parts) if part not in (b"", b".")), b"")
    return base.startswith(_WHITEOUT) or any(part.startswith(_RESERVED) for part in parts)


def _children(node: Node) -> dict[bytes, Node]:
    assert node.children is not None
    return node.children


def _split(name: bytes) -> list[bytes]:
    """Split a name from an archive into its components. Raises `DamagedError` for one that leads upwards."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise DamagedError("it leads upwards")
    if any(len(part) > NAME_BYTES for part in parts):
        raise DamagedError("a component of its name is too long")
    return parts
