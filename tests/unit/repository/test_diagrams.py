"""The diagrams of the documents: each has a title and a description, and the life of an instance is whole."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ramet.model.lifecycle import Move, State

IMAGES = Path(__file__).parents[3] / "docs" / "images"
_SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.stem)
def test_a_diagram_says_what_it_shows(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    for name in ("title", "desc"):
        element = root.find(_SVG + name)
        assert element is not None
        assert element.text


def test_the_life_of_an_instance_has_every_state_and_move() -> None:
    root = ElementTree.parse(IMAGES / "life.svg").getroot()
    words = set(re.findall(r"\w+", " ".join(element.text or "" for element in root.iter(_SVG + "text"))))
    # A record that can't be read is shown as `unreadable`: no move leads there.
    assert words >= {*State, *Move} - {State.UNREADABLE}
