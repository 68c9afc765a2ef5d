"""Check a built site: no page, stylesheet or script loads anything from another host.

`python tools/check_site.py DIRECTORY` prints each place that does, and ends with 1 when there is one. A link
that a reader may follow isn't loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

_LOADED_BY: Final = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
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
_IN_STYLES: Final = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_IN_SCRIPTS: Final = re.compile(r"""(?:fetch|import|importScripts|open)\(\s*["'`]((?:https?:)?//[^"'`]+)""")


class _Page(HTMLParser):
    """Collects the addresses on other hosts that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[tuple[int, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        addresses = [values.get(_LOADED_BY[tag], "")] if tag in _LOADED_BY else []
        addresses += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        if tag == "link" and _LOADING_LINKS & set(values.get("rel", "").lower().split()):
            addresses.append(values.get("href", ""))
        line = self.getpos()[0]
        self.loaded += [(line, address) for address in addresses if _ELSEWHERE.match(address)]
        self.loaded += [(line, match[1]) for match in _IN_STYLES.finditer(values.get("style", ""))]


def loaded_from_elsewhere(directory: Path) -> Iterator[str]:
    """`file:line: address` of each thing that a browser would fetch from another host."""
    for path in sorted(directory.rglob("*")):
        if path.suffix not in {".html", ".css", ".js", ".svg"} or "_downloads" in path.parts:
            continue
        text = path.read_text()
        found: list[tuple[int, str]] = []
        if path.suffix in {".html", ".svg"}:
            page = _Page()
            page.feed(text)
            found += page.loaded
        patterns = [_IN_SCRIPTS] if path.suffix == ".js" else [_IN_STYLES]
        for pattern in patterns:
            found += [(text.count("\n", 0, match.start()) + 1, match[1]) for match in pattern.finditer(text)]
        yield from (f"{path}:{line}: {address}" for line, address in sorted(set(found)))


def main(words: list[str]) -> int:
    """0 when everything comes with the site, 1 when something doesn't, 2 for wrong usage."""
    if len(words) != 1 or not Path(words[0], "index.html").is_file():
        print("usage: check_site.py DIRECTORY (a built site, with an index.html)", file=sys.stderr)
        return 2
    found = list(loaded_from_elsewhere(Path(words[0])))
    for place in found:
        print(f"{place}: loaded from another host", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
