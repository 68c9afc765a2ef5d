"""Sphinx's settings. `make docs` builds the site into build/docs; every warning is an error."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sphinx.pycode import ModuleAnalyzer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import ramet  # noqa: E402

project = "ramet"
author = "the ramet developers"
version = release = ramet.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
exclude_patterns = ["_static"]
nitpicky = True
# Types of the standard library and private bases: they have no page here.
nitpick_ignore_regex = [("py:.*", r"(?!ramet\.[A-Z]).*")]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4  # GitHub's anchors: a link to a heading works in both places

default_role = "literal"  # `x` in a docstring is code, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 90
add_module_names = False

doctest_global_setup = "import ramet"

html_theme = "furo"
html_title = f"ramet {version}"
html_static_path = ["_static"]
html_css_files = ["ramet.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

_DOCUMENT: Final = re.compile(r"\]\(((?:\.\./)+[^)#\s]+\.md)(?:#[^)]*)?\)")
_CODE: Final = re.compile(r"(?<![`:\w])`([^`]+)`(?![`_])")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda _: _find_definitions())
    app.connect("source-read", _offer_documents_outside)
    app.connect("autodoc-process-docstring", _link_names)
    app.connect("autodoc-process-signature", _hide_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _find_definitions() -> None:
    """Let autodoc read the source of the public classes.

    `__module__` of a public class is `ramet` (`ramet.surface.exported`). Autodoc looks for the order and the
    comments of its fields in the source of that module, so the analysis of `ramet` gets those of the modules
    that define the classes.
    """
    whole = ModuleAnalyzer.for_module("ramet")
    whole.analyze()
    for module in sorted({*ramet._HOMES.values(), "ramet.errors"}):  # noqa: SLF001
        importlib.import_module(module)
        part = ModuleAnalyzer.for_module(module)
        part.analyze()
        for table in ("annotations", "attr_docs", "overloads"):
            getattr(whole, table).update(getattr(part, table))
        whole.finals = [*whole.finals, *part.finals]
        whole.tagorder |= {name: place + len(whole.tagorder) for name, place in part.tagorder.items()}


def _offer_documents_outside(app: Sphinx, name: str, content: list[str]) -> None:
    """Let a link to a document outside `docs` be a download, as MyST does with every other file."""
    here = (app.srcdir / name).parent

    def link(match: re.Match[str]) -> str:
        there = (here / match[1]).resolve()
        return match[0] if there.is_relative_to(app.srcdir) else f"](path:{match[1]})"

    content[0] = _DOCUMENT.sub(link, content[0])


def _link_names(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make `NotFoundError` or `VM.detach` in a docstring a link, and other text in backticks code."""

    def role(match: re.Match[str]) -> str:
        text = " ".join(match[1].split())
        first, *rest = text.removesuffix("()").split(".")
        public = first in ramet.__all__ and first[0].isupper() and len(rest) <= 1
        if (
            public
            and inspect.isclass(kind := getattr(ramet, first))
            and all(hasattr(kind, part) for part in rest)
        ):
            return f":py:obj:`{text} <ramet.{'.'.join([first, *rest])}>`"
        return f"``{text}``"

    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()  # Python's own text for the fields of a NamedTuple
    lines[:] = _CODE.sub(role, "\n".join(_examples(lines))).split("\n")


def _examples(lines: list[str]) -> Iterator[str]:
    """Mark an indented block behind an empty line as Python, as a reader of the source takes it."""
    before = ""
    for number, line in enumerate(lines):
        follows = number > 1 and not lines[number - 1].strip()
        if (
            line.startswith("    ")
            and follows
            and before
            and before[0] not in " .-*"
            and not before.endswith("::")
        ):
            yield from (".. code-block:: python", "")
        if line.strip():
            before = line
        yield line


def _hide_signatures(
    app: Sphinx, what: str, name: str, thing: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Hide the arguments of classes that ramet makes: nobody calls them but the Host's."""
    is_made_by_ramet = inspect.isclass(thing) and not name.endswith(".Host")
    return ("", None) if is_made_by_ramet else (signature, returns)
