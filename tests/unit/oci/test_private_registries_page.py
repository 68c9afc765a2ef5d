"""docs/how-to/private-registries.md: messages that are ramet's, a login that is read, known settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import anyio
import pytest

from ramet.oci.credentials import look_up
from ramet.oci.settings import Settings

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "private-registries.md").read_text()
SOURCES = " ".join(path.read_text() for path in sorted((ROOT / "src" / "ramet" / "oci").glob("*.py")))
_PLACEHOLDER = re.compile(r"…| of USER| N | in 60 s|linux/arm64")


def test_its_messages_are_ramets() -> None:
    table = PAGE.partition("| Message | Remedy |")[2]
    messages = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    assert len(messages) >= 10
    strings = re.sub(r'"\s*f?"', "", SOURCES)
    for message in re.findall(r"`([^`]*)`", " ".join(messages)):
        for fragment in filter(None, map(str.strip, _PLACEHOLDER.split(message))):
            assert fragment.strip(", ") in strings, fragment


def test_its_login_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER_NAME", "ann")
    monkeypatch.setenv("PASSWORD", "a: b'")
    (script,) = [block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "printf" in block]
    subprocess.run(["bash", "-euc", script], check=True, timeout=30)
    found = anyio.run(look_up, "registry.example.com", "team/app").credentials
    assert found is not None
    assert (found.user, found.password) == ("ann", "a: b'")
    assert (tmp_path / ".docker" / "config.json").stat().st_mode & 0o777 == 0o600


def test_its_settings_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in re.findall(r"^export (RAMET_\w+)=(.*)$", PAGE, re.MULTILINE):
        monkeypatch.setenv(name, value.replace("~", str(tmp_path)))
    settings = Settings.from_environment()
    assert settings.mirror == "https://mirror.example.com"
    assert settings.authority == tmp_path / "company-ca.pem"
    assert settings.plain == {"registry.lan:5000"}
