from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ramet.oci import credentials
from ramet.oci.credentials import Credentials, look_up

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / ".docker").mkdir()
    return tmp_path


def write(home: Path, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (home / ".docker" / "config.json").write_text(text)


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def helper(home: Path, script: str) -> None:
    program = home / "docker-credential-it"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


async def test_nothing_is_known() -> None:
    assert await look_up("host", "x") == credentials.Lookup()


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
async def test_the_default_registry_has_many_names(home: Path, key: str) -> None:
    write(home, {"auths": {key: entry("me", "a:b")}})
    assert (await look_up("docker.io", "library/x")).credentials == Credentials("me", "a:b")
    assert (await look_up("other.io", "x")).credentials is None


async def test_the_longest_name_wins(home: Path) -> None:
    write(
        home,
        {
            "auths": {
                "host": entry("all", "1"),
                "host/team": entry("team", "2"),
                "https://h2/v2/": entry("h2", "3"),
            }
        },
    )
    found = [
        (await look_up(*where)).credentials for where in (("host", "x"), ("host", "team/x"), ("h2", "x"))
    ]
    assert [login.user for login in found if login is not None] == ["all", "team", "h2"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("{", "can't be read"),
        ({"auths": {"host": {"auth": "***"}}}, "no base64"),
        ({"credsStore": "../x"}, "no program's name"),
        ({"credsStore": "absent"}, "isn't on PATH"),
        (" " * (1 << 20) + "{}", "more than"),
    ],
)
async def test_what_is_broken_is_named_and_nothing_is_raised(home: Path, document: Any, why: str) -> None:
    write(home, document)
    found = await look_up("host", "x")
    assert found.credentials is None
    assert why in str(found.trouble)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'credentials not found in native keychain'; exit 1", None),
        ("echo boom >&2; exit 1", "boom"),
        ("echo secret-and-no-json", "something else than JSON"),
        ("head -c 200000 /dev/zero", "something else than JSON"),
        ("sleep 60", "didn't end within"),
    ],
)
async def test_helpers_that_fail(
    home: Path, script: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_HELPER_LIMIT_S", 1.0)
    helper(home, script)
    write(home, {"credHelpers": {"host": "it"}})
    found = await look_up("host", "x")
    assert found.credentials is None
    assert (found.trouble is None) if why is None else (why in str(found.trouble))
    assert "secret" not in str(found.trouble)


async def test_a_helper_gives_an_identity_token_and_is_given_the_registry(home: Path) -> None:
    helper(home, f"""cat > {home}/given; echo '{{"Username": "<token>", "Secret": "s3cret"}}'""")
    write(home, {"credsStore": "it"})
    found = await look_up("docker.io", "x")
    assert found.credentials == Credentials("", "", "s3cret")
    assert (home / "given").read_text() == "https://index.docker.io/v1/"
    assert "s3cret" not in repr(found)
