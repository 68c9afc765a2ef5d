"""Random layered images, made so that much of them meets: few names, links everywhere, all markers."""

from __future__ import annotations

import random
import tarfile

from tests.unit.images.layer_tars import Member, member

_NAMES = "abcdefgh"
_TARGETS = ("a", "b", "../a", "/b", "c/d", "..", "/", "x", "../../c")


def random_image(seed: int) -> list[list[Member]]:
    """The layers of an image: two to four, each of up to twelve entries."""
    draw = random.Random(seed)
    return [_layer(draw) for _ in range(draw.randint(2, 4))]


def _path(draw: random.Random) -> str:
    return "/".join(draw.choice(_NAMES) for _ in range(draw.choice((1, 1, 2, 2, 3))))


def _layer(draw: random.Random) -> list[Member]:
    members: list[Member] = []
    files: list[str] = []
    used: set[str] = set()
    for _ in range(draw.randint(3, 12)):
        path, kind = _path(draw), draw.random()
        if path in used:
            continue
        if kind < 0.2:
            mode = draw.choice((0o644, 0o755, 0o4711))
            members.append(member(path, data=str(draw.random()).encode(), mode=mode))
            files.append(path)
        elif kind < 0.6:
            members.append(member(path, tarfile.DIRTYPE, mode=draw.choice((0o755, 0o700, 0o1777))))
        elif kind < 0.68:
            members.append(member(path, tarfile.SYMTYPE, link=draw.choice(_TARGETS), mode=0o777))
        elif kind < 0.73 and files:
            members.append(member(path, tarfile.LNKTYPE, link=draw.choice(files)))
        elif kind < 0.88:
            directory, slash, name = path.rpartition("/")
            members.append(member(f"{directory}{slash}.wh.{name}"))
            continue
        elif kind < 0.95:
            members.append(member(f"{path}/.wh..wh..opq"))
            continue
        used.add(path)
    if draw.random() < 0.6:  # as real builders write: parents first, whiteouts before the rest
        members.sort(key=lambda pair: (pair[0].name.count("/"), ".wh." not in pair[0].name, pair[0].islnk()))
    return members
