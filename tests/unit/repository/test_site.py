"""The reference has every public name; the check of the site names what a page would load from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ramet
import ramet.sync

ROOT = Path(__file__).parents[3]
_DIRECTIVE = re.compile(r"^\.\. auto\w+:: ramet\.([\w.]+)$", re.MULTILINE)


def _described() -> list[str]:
    pages = sorted((ROOT / "docs" / "reference" / "python").glob("*.md"))
    return [name for page in pages for name in _DIRECTIVE.findall(page.read_text())]


def test_each_public_name_is_described_once() -> None:
    described = [name for name in _described() if "." not in name]
    expected = sorted(set(ramet.__all__) - {"__version__", "sync"})
    assert sorted(name for name in described if name != "sync") == expected


def test_each_class_of_plain_code_is_described() -> None:
    own = {name for name in ramet.sync.__all__ if getattr(ramet.sync, name).__module__ == "ramet.sync"}
    assert {f"sync.{name}" for name in own} - {"sync.doctor"} <= set(_described())


def _check(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "check_site.py", site], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", "<script>import('https://cdn.example/x.js')</script>"),
        ("a.html", '<video poster="https://img.example/x.png"></video>'),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/x.css">'),
        ("a.html", '<img src="http://img.example/x.png">'),
        ("a.html", "<style>@import 'https://fonts.example/x.css';</style>"),
        ("a.css", "@font-face { src: url(https://fonts.example/x.woff2) }"),
        ("a.js", 'fetch("https://api.example/x")'),
        ("a.svg", '<svg><image href="https://img.example/x.png"/></svg>'),
    ],
)
def test_what_would_be_loaded_from_another_host_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "index.html").touch()
    (tmp_path / name).write_text(f"\n{text}\n")
    checked = _check(tmp_path)
    assert checked.returncode == 1
    assert f"{name}:2: " in checked.stderr
    assert "another host" in checked.stderr


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("missing.html", "no such file"),
        ("other.html#missing", "no such anchor"),
        ("#missing", "no such anchor"),
    ],
)
def test_a_link_within_the_site_leads_somewhere(tmp_path: Path, link: str, reason: str) -> None:
    (tmp_path / "other.html").write_text("<p id='there'>")
    (tmp_path / "index.html").write_text(f'<a href="other.html#there"></a>\n<a href="{link}"></a>')
    checked = _check(tmp_path)
    assert checked.returncode == 1
    assert checked.stderr == f"{tmp_path}/index.html:2: {link}: {reason}\n"


def test_links_and_own_files_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="a.css"><link rel="canonical" href="https://site.example/">'
        '<a href="https://site.example/">x</a>'
        '<script src="a.js"></script><img src="data:image/png;base64,AA">'
    )
    (tmp_path / "a.css").write_text("a { background: url(a.svg) }")
    (tmp_path / "a.js").touch()
    assert _check(tmp_path).returncode == 0
    assert _check(tmp_path / "missing").returncode == 2
