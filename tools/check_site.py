"""Check a built site: internal links lead somewhere, and nothing is loaded from another host.

`python tools/check_site.py DIRECTORY` prints each link without a target, and each address on another host
that a browser would fetch. It ends with 1 when there is one. Links that a reader may follow to other hosts
aren't checked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_LOADED_BY: Final = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "track": "src",
    "input": "src",
    "object": "data",
    "use": "href",
    "image": "href",
}
# A `link` of another kind (`next`, `search`) names a page and loads nothing.
_LOADING_LINKS: Final = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
}
_ELSEWHERE: Final = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_SCHEME: Final = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_IN_STYLES: Final = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_IN_SCRIPTS: Final = re.compile(r"""(?:fetch|import|importScripts|open)\(\s*["'`]((?:https?:)?//[^"'`]+)""")


class _Page(HTMLParser):
    """A page's anchors, its links within the site, and the addresses on other hosts that it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[int, str]] = []
        self.loaded: list[tuple[int, str]] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        line = self.getpos()[0]
        self._in_script = tag == "script"
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        addresses = [values.get(_LOADED_BY[tag], "")] if tag in _LOADED_BY else []
        addresses += [values["poster"]] if values.get("poster") else []
        addresses += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        if tag == "link" and _LOADING_LINKS & set(values.get("rel", "").lower().split()):
            addresses.append(values.get("href", ""))
        self.loaded += [(line, address) for address in addresses if _ELSEWHERE.match(address)]
        self.loaded += [(line, match[1]) for match in _IN_STYLES.finditer(values.get("style", ""))]
        if tag == "a":
            addresses.append(values.get("href", ""))
        within = (address for address in addresses if address and not _ELSEWHERE.match(address))
        self.links += [(line, address) for address in within if not _SCHEME.match(address)]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            first = self.getpos()[0]
            for match in _IN_SCRIPTS.finditer(data):
                self.loaded.append((first + data.count("\n", 0, match.start()), match[1]))


def pages(directory: Path) -> dict[Path, _Page]:
    """The HTML pages of a site, read."""
    found = {}
    for path in sorted(directory.rglob("*.html")):
        if "_downloads" not in path.parts:
            found[path] = _Page()
            found[path].feed(path.read_text())
    return found


def loaded_from_elsewhere(directory: Path, read: dict[Path, _Page]) -> Iterator[str]:
    """`file:line: address` of each thing that a browser would fetch from another host."""
    for path in sorted(directory.rglob("*")):
        if path.suffix not in {".html", ".css", ".js", ".svg"} or "_downloads" in path.parts:
            continue
        text = path.read_text()
        page = read.get(path)
        if path.suffix == ".svg":
            page = _Page()
            page.feed(text)
        found = page.loaded if page else []
        pattern = _IN_SCRIPTS if path.suffix == ".js" else _IN_STYLES
        found += [(text.count("\n", 0, match.start()) + 1, match[1]) for match in pattern.finditer(text)]
        yield from (
            f"{path}:{line}: {address}: loaded from another host" for line, address in sorted(set(found))
        )


def broken_links(read: dict[Path, _Page]) -> Iterator[str]:
    """`file:line: link` of each link within the site whose file or anchor isn't there."""
    for path, page in read.items():
        for line, link in page.links:
            place, _, anchor = unquote(link).partition("#")
            there = (path.parent / place.partition("?")[0]).resolve() if place else path
            if not there.exists():
                yield f"{path}:{line}: {link}: no such file"
            elif anchor and there in read and anchor not in read[there].anchors:
                yield f"{path}:{line}: {link}: no such anchor"


def main(words: list[str]) -> int:
    """0 when everything is there and comes with the site, 1 when something isn't, 2 for wrong usage."""
    if len(words) != 1 or not Path(words[0], "index.html").is_file():
        print("usage: check_site.py DIRECTORY (a built site, with an index.html)", file=sys.stderr)
        return 2
    directory = Path(words[0]).resolve()
    read = pages(directory)
    found = [*loaded_from_elsewhere(directory, read), *broken_links(read)]
    for place in found:
        print(place, file=sys.stderr)
    links = sum(len(page.links) for page in read.values())
    print(f"{len(read)} pages, {links} internal links: {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
