"""A naive model of applying layers: a flat table of resolved paths, as extraction would leave it."""

from __future__ import annotations

import stat
import tarfile
from dataclasses import dataclass, field

from tests.unit.images.layer_tars import Member

Path = tuple[str, ...]


class RefusedError(Exception):
    pass


@dataclass(eq=False)
class Item:
    kind: int
    permissions: int = 0o755
    data: bytes = b""
    link: str = ""


@dataclass
class Model:
    files: dict[Path, Item] = field(default_factory=lambda: {(): Item(stat.S_IFDIR)})

    def apply(self, members: list[Member]) -> None:
        upper: set[Path] = set()
        for info, data in members:
            parts = tuple(part for part in info.name.split("/") if part not in ("", "."))
            if not parts:
                self.files[()].permissions = info.mode
                continue
            *above, name = parts
            if name.startswith(".wh."):
                parent = self.resolve(above)
                if self.kind(parent) != stat.S_IFDIR:
                    continue
                if name == ".wh..wh..opq":
                    self.hide([path for path in self.below(parent) if path != parent], upper)
                else:
                    self.hide(self.below((*parent, name[4:])), upper)
                continue
            parent = self.resolve(above)
            for depth in range(len(parent) + 1):
                if self.kind(parent[:depth]) not in (None, stat.S_IFDIR):
                    raise RefusedError
                self.files.setdefault(parent[:depth], Item(stat.S_IFDIR))
            path = (*parent, name)
            if info.type == tarfile.LNKTYPE:
                *target_above, target_name = info.linkname.split("/")
                target = self.files.get((*self.resolve(target_above), target_name))
                if target is None or target.kind == stat.S_IFDIR:
                    raise RefusedError
                self.remove(path)
                self.files[path] = target
            elif info.type == tarfile.DIRTYPE:
                if self.kind(path) != stat.S_IFDIR:
                    self.remove(path)
                    self.files[path] = Item(stat.S_IFDIR)
                self.files[path].permissions = info.mode
            else:
                self.remove(path)
                if info.type == tarfile.SYMTYPE:
                    self.files[path] = Item(stat.S_IFLNK, 0o777, link=info.linkname)
                else:
                    self.files[path] = Item(stat.S_IFREG, info.mode, data)
            upper |= {path[:depth] for depth in range(len(path) + 1)}

    def kind(self, path: Path) -> int | None:
        return self.files[path].kind if path in self.files else None

    def below(self, path: Path) -> list[Path]:
        return [other for other in self.files if other[: len(path)] == path]

    def remove(self, path: Path) -> None:
        for other in self.below(path):
            del self.files[other]

    def hide(self, paths: list[Path], upper: set[Path]) -> None:
        for path in paths:
            if path not in upper:
                del self.files[path]

    def resolve(self, parts: list[str]) -> Path:
        at: Path = ()
        pending = list(parts)
        hops = 0
        while pending:
            part = pending.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                at = at[:-1]
                continue
            item = self.files.get((*at, part))
            if item is None or item.kind != stat.S_IFLNK:
                at = (*at, part)
                continue
            hops += 1
            if hops > 255:
                raise RefusedError
            if item.link.startswith("/"):
                at = ()
            pending = item.link.split("/") + pending
        return at

    def listing(self) -> dict[str, tuple[int, int, bytes, str]]:
        return {
            "/".join(path): (item.kind, item.permissions, item.data, item.link)
            for path, item in self.files.items()
        }

    def link_groups(self) -> set[frozenset[str]]:
        groups: dict[int, set[str]] = {}
        for path, item in self.files.items():
            groups.setdefault(id(item), set()).add("/".join(path))
        return {frozenset(group) for group in groups.values() if len(group) > 1}
