"""What a kernel says it was built with."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ramet.images import kernel_config
from ramet.images.kernel_config import is_for_pvm

WITH, WITHOUT = b"CONFIG_64BIT=y\nCONFIG_PVM_GUEST=y\n", b"CONFIG_64BIT=y\n# CONFIG_PVM_GUEST is not set\n"


def kernel_with(place: Path, packed: bytes) -> Path:
    kernel = place / "vmlinux"
    kernel.write_bytes(b"\x7fELF" + bytes(9000) + packed + bytes(500))
    return kernel


@pytest.mark.parametrize(("config", "is_for"), [(WITH, True), (WITHOUT, False), (b"", False)])
def test_its_own_configuration_tells(tmp_path: Path, config: bytes, is_for: bool) -> None:
    kernel = kernel_with(tmp_path, b"IKCFG_ST" + gzip.compress(config, mtime=0) + b"IKCFG_ED")
    assert is_for_pvm(kernel, "0.0-none") is is_for


@pytest.mark.parametrize(
    "packed",
    [b"", b"IKCFG_ST", b"IKCFG_STno gzip", b"IKCFG_ST" + gzip.compress(WITH, mtime=0)[:20]],
    ids=["none", "nothing in it", "no gzip", "half of it"],
)
def test_what_cant_be_read_tells_nothing(tmp_path: Path, packed: bytes) -> None:
    assert not is_for_pvm(kernel_with(tmp_path, packed), "0.0-none")
    assert not is_for_pvm(tmp_path / "nowhere", "0.0-none")
    (tmp_path / "empty").touch()
    assert not is_for_pvm(tmp_path / "empty", "0.0-none")


def test_a_configuration_beside_it_tells_where_it_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def beside(file: Path) -> bytes:
        asked.append(file)
        return WITH

    monkeypatch.setattr(kernel_config, "_beside", beside)
    assert is_for_pvm(kernel_with(tmp_path, b""), "6.7-pvm")
    assert asked == [Path("/boot/config-6.7-pvm")]
