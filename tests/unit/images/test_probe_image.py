"""The probe's image: its kernel is all there is, and a data disk of its own is asked for."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ramet.errors import NotFoundError, UnavailableError
from ramet.images.image import load_image
from ramet.images.probe import build_probe
from ramet.images.resolve import resolve_image
from tests.unit.images.kernel_formats import make_elf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "probe"
    path.write_bytes(make_elf())
    return path


def never() -> Path:
    raise AssertionError("this image has no use for it")


def test_what_is_in_it(program: Path) -> None:
    image = resolve_image("probe", never, lambda: program)
    assert image.kernel.read_bytes() == program.read_bytes()
    assert (image.guest, image.initramfs, image.initramfs_bytes, image.pvh) == (
        "bare-metal",
        None,
        None,
        False,
    )
    assert image.disk_bytes == 1024 * 1024
    assert {path.name for path in image.directory.iterdir()} == {"vmlinux", "image.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in image.directory.iterdir()} == {0o444}


def test_bare_is_another_name_of_it(program: Path) -> None:
    image = resolve_image("bare", never, lambda: program)
    assert image == resolve_image("probe", never, lambda: program)
    assert image.name == "probe"
    with pytest.raises(NotFoundError) as near:
        resolve_image("bara", never, never)
    assert near.value.hint == "did you mean bare?"


def test_made_once_and_by_its_content(program: Path, tmp_path: Path) -> None:
    first = build_probe(program)
    made = (first.directory / "image.json").stat().st_ino
    assert build_probe(program) == first == load_image(first.directory)
    assert (first.directory / "image.json").stat().st_ino == made
    other = tmp_path / "other"
    other.write_bytes(program.read_bytes() + b"x")
    assert build_probe(other).directory != first.directory
    assert first.kernel.is_file(), "the older image stays for those who boot it"


def test_a_damaged_one_is_made_again(program: Path) -> None:
    first = build_probe(program)
    first.kernel.chmod(0o644)
    first.kernel.write_bytes(b"cut")
    assert build_probe(program).kernel.read_bytes() == program.read_bytes()


def test_what_is_missing_is_said_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="probe guest can't be read") as absent:
        build_probe(tmp_path / "absent")
    assert "make setup" in str(absent.value.hint)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(make_elf(machine=183))
    with pytest.raises(UnavailableError, match="no program for x86-64"):
        build_probe(foreign)
    foreign.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(UnavailableError, match="no program for x86-64"):
        build_probe(foreign)
