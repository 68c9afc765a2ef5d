"""Count the words that ramet's prose avoids: in docstrings' first lines, and in `src`, `docs` and README.

`python -m tools.count_words` counts in this tree, `python -m tools.count_words COMMIT` also in that commit's.
`tests/unit/repository/test_words.py` fails for each one that comes back.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
OPENINGS: Final = re.compile(r"(What|Whether|One|As|How|Who)\b")
"""First words of docstrings that aren't a verb or a noun."""
MANNERED: Final = {
    "goes on": (r"\b(go|goes|going|gone|went) on\b", "continue, resume, be resumed, keep running"),
    "stands still": (r"\b(stand|stands|stood|standing) still\b", "pause, be paused"),
    "of ramet's": (r"\bof ramet's\b", "ramet's, of ramet"),
    "held against": (r"\bh(e|o)ld(s|ing)? (it |them |\w+ )?against\b", "check against"),
    "whatever, whoever": (r"\bwh(at|o)(so)?ever\b", "name the thing or the process"),
    "of its own": (r"(?<!over it )\bof (its|their|our|his|one's) own\b", "its own, a separate"),
    "hand out": (r"\bhand(s|ed|ing)? (it |them )?(out|over)\b", "claim, give"),
    "bring up": (r"\bbr(ing|ings|ought|inging) (it |them |\w+ )?up\b", "restore, start"),
    "sweep": (r"\b(sweeps?|swept|sweeping)\b", "delete, recovery, gc"),
    "let go": (r"\blet(s|ting)? (it |them |\w+ )?go\b", "release, resume"),
    "settle": (r"\bsettle[sd]?\b|\bsettling\b", "commit, become idle"),
}
"""By name: the pattern, and the words to write instead. A reason in receipts keeps "over it of its own"."""
_PROSE: Final = {".py", ".md", ".c", ".h", ".S"}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of a module, also of its classes, functions and variables."""
    for node in ast.walk(ast.parse(path.read_text())):
        body: object = getattr(node, "body", None)
        if not isinstance(body, list):  # a lambda's is an expression
            continue
        has_first = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                continue
            text = statement.value.value
            is_docstring = has_first if before is None else isinstance(before, ast.Assign | ast.AnnAssign)
            if is_docstring and isinstance(text, str):
                yield statement.lineno, text


def openings(root: Path) -> Iterator[tuple[str, int, str]]:
    """Each docstring in `src` that begins with one of `OPENINGS`: file, line, the word."""
    for path in sorted((root / "src").rglob("*.py")):
        for line, text in docstrings(path):
            if match := OPENINGS.match(text):
                yield str(path.relative_to(root)), line, match[0]


def mannered(root: Path) -> Iterator[tuple[str, int, str, str]]:
    """Each of the `MANNERED` words in `src`, `docs` and README: file, line, its name, the text."""
    patterns = {name: re.compile(pattern, re.IGNORECASE) for name, (pattern, _) in MANNERED.items()}
    for path in [root / "README.md", *sorted((root / "src").rglob("*")), *sorted((root / "docs").rglob("*"))]:
        if path.suffix not in _PROSE or not path.is_file():
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for name, pattern in patterns.items():
                for match in pattern.finditer(line):
                    yield str(path.relative_to(root)), number, name, match[0]


def counts(root: Path) -> dict[str, int]:
    """Both, in a tree, by word."""
    begun = Counter(word for _, _, word in openings(root))
    words = Counter(name for _, _, name, _ in mannered(root))
    first = ("What", "Whether", "One", "As", "How", "Who")
    return {
        **{f"docstrings that begin with {word}": begun[word] for word in first},
        "docstrings in all": begun.total(),
        **{name: words[name] for name in MANNERED},
        "words in all": words.total(),
    }


def main(commits: list[str]) -> None:
    """Print the counts, those of `commits` first."""
    columns = {}
    for commit in commits:
        with tempfile.TemporaryDirectory() as directory:
            archive = subprocess.run(
                ["git", "archive", commit, "src", "docs", "README.md"],
                cwd=ROOT,
                capture_output=True,
                check=True,
            )
            subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
            columns[commit] = counts(Path(directory))
    columns["now"] = counts(ROOT)
    print(f"{'':36}", *(f"{name:>10}" for name in columns))
    for row in columns["now"]:
        print(f"{row:36}", *(f"{column[row]:>10}" for column in columns.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
