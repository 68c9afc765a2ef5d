"""What doctor tells an ordinary user."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from tests.platform.not_root.conftest import Account

pytestmark = [pytest.mark.vm, pytest.mark.deep]


def checks_of(account: Account, *, code: int = 0, **environment: str) -> dict[str, Any]:
    report = account.json("doctor", code=code, **environment)
    return {check["name"]: check for check in report["checks"]}


def test_it_names_the_way_to_kvm(account: Account) -> None:
    found = checks_of(account)["kvm"]
    openable = account.script("import os; print(os.access('/dev/kvm', os.R_OK | os.W_OK))").strip() == "True"
    if os.path.exists("/dev/kvm") and not openable:  # noqa: PTH110
        assert found["ok"] is None
        assert found["found"].startswith("no_permission")
        assert "usermod -aG" in found["advice"]
        assert "emulated" in found["advice"]
    else:
        assert not found["found"].startswith("no_permission")


def test_it_tries_to_read_a_process_that_is_not_its_child(account: Account) -> None:
    found = checks_of(account)["ptrace"]
    # The same trial by other means: is a sleeping orphan of this user readable to this user?
    readable = account.run(
        "sh", "-c", 'pid=$(sleep 5 >/dev/null 2>&1 & echo $!); sleep 0.2; test -r /proc/$pid/mem && '
        'head -c 0 /proc/$pid/mem && kill $pid',
    )  # fmt: skip
    assert (found["ok"] is True) == (readable.returncode == 0), (found, readable)
    assert (found["advice"] is None) == (found["ok"] is True)


def test_a_home_that_cannot_be_written(account: Account) -> None:
    report = account.json("doctor", code=5, RAMET_HOME="/proc/nothing")
    home = next(check for check in report["checks"] if check["name"] == "home")
    assert home["ok"] is False
    assert "RAMET_HOME" in home["advice"]
    assert all("/proc/nothing" in driver["reason"] for driver in report["drivers"] if driver["version"])


@pytest.mark.parametrize(("limit", "name"), [("nofile=64:64", "open-files"), ("nproc=40:40", "processes")])
def test_a_low_limit_is_seen(account: Account, limit: str, name: str) -> None:
    done = account.run("prlimit", f"--{limit}", account.python, "-m", "ramet.cli.main", "doctor", "--json")

    found = {check["name"]: check for check in msgspec.json.decode(done.stdout)["checks"]}[name]
    assert found["ok"] is not True
    assert "raise it" in found["advice"]


def test_nothing_is_left_behind(account: Account) -> None:
    before = sorted(account.home.rglob("*"))
    checks_of(account)
    made = [path for path in sorted(account.home.rglob("*")) if path not in before]
    assert [path for path in made if "__pycache__" not in path.parts and path.suffix != ".pyc"] == []
