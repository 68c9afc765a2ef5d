"""Two users in one home: what is another user's is found out, and said, before anything of it is removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.platform.not_root.conftest import LIMIT_S, Account

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(300)]


def as_root(account: Account, *words: str) -> Any:
    """What `ramet WORDS --json` prints for root, in the user's home."""
    done = subprocess.run(
        [sys.executable, "-m", "ramet.cli.main", *words, "--json"],
        env={**os.environ, "RAMET_HOME": str(account.data)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return msgspec.json.decode(done.stdout)


def rows(account: Account) -> dict[str, Any]:
    return {instance["name"]: instance for instance in account.json("ps", "-a")}


def test_what_root_has_in_a_users_home_is_left_whole_by_that_user(account: Account) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other user is root")
    account.ramet("ps")
    as_root(account, "run", "-d", "--name", "roots", "builtin")
    try:
        pid = rows(account)["roots"]["pid"]
        before = as_root(account, "inspect", "roots")["state"]
        for words in (
            ["rm", "-f", "roots"],
            ["stop", "roots"],
            ["standby", "roots"],
            ["template", "roots"],
            ["snapshot", "create", "roots"],
            ["fork", "roots"],
        ):
            error = account.json(*words, code=5)
            error = error["error"] if "error" in error else error["failed"][0]["error"]
            assert "belongs to root" in error["message"], (words, error)
            assert "run ramet as root" in error["hint"], (words, error)
            assert rows(account)["roots"]["pid"] == pid, words
            assert Path(f"/proc/{pid}").exists()
            assert list((account.data / "snapshots").iterdir()) == []
        assert as_root(account, "inspect", "roots")["state"] == before
        made = as_root(account, "snapshot", "create", "roots", "--name", "kept")
        error = account.json("snapshot", "rm", "roots/kept", code=5)
        assert "belongs to root" in str(error)
        assert [snapshot["id"] for snapshot in as_root(account, "snapshot", "ls")] == [made["id"]]
        as_root(account, "snapshot", "rm", "roots/kept")
    finally:
        as_root(account, "rm", "-f", "roots")
    assert "roots" not in rows(account)
