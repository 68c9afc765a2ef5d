"""The kernel from the backports: apt works beside the system's own lists, on sources made of the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tools.newer_kernel import DownloadError, download

LINES = [
    "Debian\tDebian-Security\tbookworm-security\thttp://mirror.invalid/security/\tamd64",
    "Debian\tDebian\tbookworm-updates\thttp://mirror.invalid/debian/\tamd64",
    "Debian\tDebian\tbookworm\thttp://mirror.invalid/debian/\tamd64",
]
APT_GET = """#!/bin/sh
while [ "$1" != "${1#-}" ]; do
    case "$1" in --config-file) settings=$2; shift ;; -o) shift ;; esac
    shift
done
echo "$*" >>"$FAKE_APT/calls"
case "$1" in
indextargets) cat "$FAKE_APT/targets" ;;
update)
    cat "${settings%/*}"/parts/* >"$FAKE_APT/sources"
    cp "$settings" "$FAKE_APT/settings"
    exit "$FAKE_UPDATE" ;;
download) shift; for package; do echo "$package" >"$package.deb"; done ;;
esac
"""
APT_CACHE = """#!/bin/sh
for package; do :; done
case "$package" in
linux-image-cloud-amd64) echo "  Depends: linux-image-7.3.4-cloud-amd64" ;;
linux-image-7.3.4-cloud-amd64)
    printf '  %s\\n' 'PreDepends: linux-base' 'Depends: kmod' \\
        'Depends: linux-modules-7.3.4-cloud-amd64' 'Depends: linux-base-7.3.4-cloud-amd64' ;;
esac
"""


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of notes about the calls of an apt that has no network."""
    for name, text in {"apt-get": APT_GET, "apt-cache": APT_CACHE}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "targets").write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "into").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_APT", str(tmp_path))
    monkeypatch.setenv("FAKE_UPDATE", "0")
    return tmp_path


def test_all_parts_of_the_kernel_come_from_the_backports_of_the_own_mirror(fake: Path) -> None:
    found = download(fake / "into")
    parts = ("base", "image", "modules")
    assert [path.name for path in found] == [f"linux-{part}-7.3.4-cloud-amd64.deb" for part in parts]
    source = (fake / "sources").read_text()
    assert "URIs: http://mirror.invalid/debian/\nSuites: bookworm-backports\n" in source
    assert "/etc/apt" not in (fake / "settings").read_text()
    assert [line.split()[0] for line in (fake / "calls").read_text().splitlines()] == [
        "indextargets",
        "update",
        "download",
    ]


def test_a_mirror_without_backports_leaves_nothing(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UPDATE", "100")
    with pytest.raises(DownloadError):
        download(fake / "into")
    assert not list((fake / "into").iterdir())


def test_another_distribution_is_named(fake: Path) -> None:
    (fake / "targets").write_text("Ubuntu\tUbuntu\tnoble\thttp://mirror.invalid/ubuntu/\tamd64\n")
    with pytest.raises(DownloadError, match="no list of a Debian release"):
        download(fake / "into")
