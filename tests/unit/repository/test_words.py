"""The words of the sources and the documents: the terms of the field, none of the ones that they replaced.

Each pattern is a retired word, with the term that is used instead. Names on disk and in JSON stay: `keeper`
is a key there. The words that plain English does without are in `tools/count_words.py`, which counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tools import count_words

ROOT: Final = Path(__file__).parents[3]
RETIRED: Final = {
    r"(?<![.`\"])\b[kK]eepers?\b(?![`:=\"])|KeepsWarm|PoolKeeper": "controller",
    r"\bhand(s|ed|ing)?[-_ ]outs?\b|\bis_heard\b": "claim, report_demand",
    r"\bbr(ing|ings|ought|inging)[-_ ](it |them )?up (from|again|anew|on|a guest)": "restore",
    r"\bbring_up\b|\bbringing up\b": "restore",
    r"\bdeadman\b|rescue(s|d|rs?)?\b": "pause_watchdog, pause_resumer, resume_on_death",
    r"\bsettle[ds]?\b|settle_(in|replacement)|_settle": "commit, idle, attach_guest, finish_replace",
    r"\blet_go_on\b|\b(stand|stands|stood|standing) still\b": "resume_guest, pause",
    r"\bStaged?Pages\b|\bstaged pages\b|\bWarmStage\b": "buffered pages, WarmState",
    r"\b(lay_over|laid over|dig_holes|share_file)\b": "apply_pages, punch_holes, link_or_copy",
    r"\brings\.(trim|tail|since)\b|cut to rings": "bounded_log, trimmed",
    r"`host/[a-z.]": "system/",
    r"\bnudges?\b|\bnudged\b": "probe_liveness",
    r"\b_?wake_for_": "request_",
    r"\breapers?\b": "recovery",
    r"\bsweeps?\b|\bswept\b|\bsweeping\b": "recovery, gc, delete",
    r"\bh(e|o)lds? (it |them )?against\b": "check against",
    r"\bobserve\b|\b_unmark\b|\bRAMET_VMM mark\b": "state_of, intent, owner tag",
    r"\bfor (one|told|said|mine) in (?!sys\.path)|\blambda one\b": "a name for what it is",
}


def _lines() -> Iterator[tuple[Path, int, str]]:
    places = ("src", "docs", "tests", "tools", "benchmarks")
    for path in [
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
        *(path for place in places for path in sorted((ROOT / place).rglob("*"))),
    ]:
        if path.suffix in {".py", ".md", ".c", ".h", ".S"} and path.name not in {
            "sync.py",
            "count_words.py",
            Path(__file__).name,
        }:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                yield path, number, line


def test_no_retired_word_has_come_back() -> None:
    patterns = {re.compile(pattern, re.IGNORECASE): instead for pattern, instead in RETIRED.items()}
    back = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}; the word is {instead}"
        for path, number, line in _lines()
        for pattern, instead in patterns.items()
        if (match := pattern.search(line))
    ]
    assert not back, "\n".join(back)


def test_no_docstring_begins_with_a_relative_clause() -> None:
    begun = [f"{path}:{line}: begins with {word!r}" for path, line, word in count_words.openings(ROOT)]
    assert not begun, "\n".join([*begun, "begin with a verb (functions) or a noun"])


def test_no_mannered_word_has_come_back() -> None:
    back = [
        f"{path}:{line}: {text!r}; write: {count_words.MANNERED[name][1]}"
        for path, line, name, text in count_words.mannered(ROOT)
    ]
    assert not back, "\n".join(back)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the guest goes on at once", "goes on"),
        ("a path of ramet's own", "of ramet's"),
        ("Whoever has it", "whatever, whoever"),
        ("a process of its own", "of its own"),
        ("they let it go then", "let go"),
        ("brought it up", "bring up"),
        ("held against the manifest", "held against"),
    ],
)
def test_mannered_words_are_found(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "src" / "module.py").write_text(
        f'x = 1\n"""What x is."""\n\ndef f():\n    """As `g`."""  # {text}\n'
    )
    assert {found for _, _, found, _ in count_words.mannered(tmp_path)} == {name}
    assert [word for _, _, word in count_words.openings(tmp_path)] == ["What", "As"]
    assert count_words.counts(tmp_path)["words in all"] == 2
