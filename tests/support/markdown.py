"""Links, headings and their anchors in Markdown, as GitHub and MyST read them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_CODE: Final = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_LINK: Final = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*(<[^>]*>|(?:[^()\s]|\([^()\s]*\))+)[^)]*\)")
_REFERENCE: Final = re.compile(r"^ {0,3}\[[^\]]+\]:\s*(<[^>]*>|\S+)")
_HEADING: Final = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_TARGET: Final = re.compile(r"^\(([\w-]+)\)=\s*$|<a (?:id|name)=\"([^\"]+)\"")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines outside fenced blocks, with their numbers. An admonition (```{note}) is prose, too."""
    fence, admonitions = "", list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        match = _FENCE.match(line)
        closes = match is not None and not line[match.end() :].strip()
        if match is None:
            if not fence:
                yield number, line
        elif fence:
            if closes and match[1].startswith(fence):
                fence = ""
        elif closes and admonitions and match[1].startswith(admonitions[-1]):
            admonitions.pop()
        elif re.match(r"\{(note|tip|important|warning)\}", line[match.end() :]):
            admonitions.append(match[1])
        else:
            fence = match[1]


def links(text: str) -> Iterator[tuple[int, str]]:
    """The targets of links and pictures, with their lines' numbers; code is no link."""
    for number, line in prose(text):
        plain = _CODE.sub(lambda code: "c" * len(code[0]), line)
        for link in _LINK.finditer(plain):
            yield number, link[1].strip("<>")
        if match := _REFERENCE.match(plain):
            yield number, match[1].strip("<>")


def anchors(text: str) -> set[str]:
    """The anchors of a page: GitHub's slug of each heading, and named targets."""
    seen: Counter[str] = Counter()
    found: set[str] = set()
    for _, line in prose(text):
        if heading := _HEADING.match(line):
            slug = slug_of(heading[1])
            found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
            seen[slug] += 1
        for target in _TARGET.finditer(line):
            found.add(target[1] or target[2])
    return found


def slug_of(heading: str) -> str:
    """GitHub's anchor of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def broken_links(files: list[Path], root: Path) -> list[str]:
    """`file:line: target: reason` of each relative link that leads nowhere, and of each missing anchor."""
    texts = {path: path.read_text() for path in files}
    known = {path: anchors(text) for path, text in texts.items()}
    broken = []
    for path, text in texts.items():
        for number, target in links(text):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            place, _, anchor = unquote(target).partition("#")
            there = (path.parent / place).resolve() if place else path
            where = f"{path.relative_to(root)}:{number}: {target}"
            if not there.exists():
                broken.append(f"{where}: no such file")
            elif root not in (there, *there.parents):
                broken.append(f"{where}: outside the project")
            elif anchor and there.suffix == ".md":
                headings = known[there] if there in known else anchors(there.read_text())
                if anchor not in headings:
                    broken.append(f"{where}: no such heading")
    return broken
