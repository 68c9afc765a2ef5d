"""A limit on an ordinary user's processes and threads: it doesn't hold for root."""

from __future__ import annotations

import msgspec
import pytest

from tests.platform.not_root.conftest import Account

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(300)]

_MOST = 22


def test_forks_that_fit_live_and_the_others_name_the_limit(account: Account) -> None:
    account.ramet("run", "--name", "few", "--driver", "qemu", "--memory", "128M", "builtin")
    account.ramet("template", "few")
    ramet = ["prlimit", f"--nproc={_MOST}", account.python, "-m", "ramet.cli.main"]
    try:
        done = account.run(*ramet, "fork", "-n", "8", "--name", "child", "--json", "few")
        assert done.returncode == 6, (done.stdout, done.stderr)
        forks = msgspec.json.decode(done.stdout)["forks"]
        lived = [vm["name"] for vm in forks if vm["ok"]]
        assert 0 < len(lived) < 8
        for vm in forks:
            if not vm["ok"]:
                assert vm["error"]["code"] == "limit_reached", vm
                assert f"this user may have {_MOST} processes and threads" in vm["error"]["message"]
        for name in lived:
            assert account.ramet("exec", name, "hostname") == f"{name}\n"
        # With no more than there was to spare when the last one failed.
        assert account.run(*ramet, "rm", "-f", *lived).returncode == 0
    finally:
        account.ramet("rm", "-f", *account.ramet("ps", "-aq").split())
