"""An ordinary user, and ramet installed so that this user can run it.

As root a user is made for these tests and removed after them; else they run as the present user, in a home
directory of their own. No network is needed: the sources and the packages that they ask for are copied,
because a checkout, a venv or an interpreter in root's home can't be read by anybody else.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet.errors import UnavailableError
from ramet.images.kernel import find_kernel
from tests.conftest import living_in
from tests.support.copied_packages import copy_packages

USER = "ramet-test" + os.environ.get("PYTEST_XDIST_WORKER", "")
LIMIT_S = 150
_TRIAL = "import ctypes, lzma, sqlite3, sys; print('%d.%d' % sys.version_info[:2])"


class Account:
    """Runs programs as the user, with the environment of a plain login and nothing of this process's own, but
    for the QEMU that the tests are to be run with.
    """

    def __init__(self, home: Path, entry: pwd.struct_passwd | None) -> None:
        self.home = home
        self.uid = entry.pw_uid if entry else os.geteuid()
        self._identity: dict[str, Any] = (
            {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []} if entry else {}
        )
        self.environment = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        if "RAMET_QEMU" in os.environ:
            self.environment["RAMET_QEMU"] = os.environ["RAMET_QEMU"]
        self.python = ""

    def run(self, *argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever the exit code."""
        return subprocess.run(
            argv,
            cwd=self.home,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            **self._identity,
        )

    def ramet(self, *words: str, code: int = 0, **environment: str) -> str:
        """`ramet WORDS`; its standard output. Fails the test on another exit code."""
        done = self.run(self.python, "-m", "ramet.cli.main", *words, **environment)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *words: str, code: int = 0, **environment: str) -> Any:
        """The document that `ramet WORDS --json` prints."""
        return msgspec.json.decode(self.ramet(*words, "--json", code=code, **environment))

    def script(self, text: str) -> str:
        """A Python program's standard output. Fails the test when it fails."""
        done = self.run(self.python, "-W", "error", "-c", text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def data(self) -> Path:
        """Where ramet keeps this user's instances when nothing else is said."""
        return self.home / ".local" / "share" / "ramet"


@pytest.fixture(scope="session")
def account() -> Iterator[Account]:
    """The user, with ramet installed and a kernel in the cache."""
    if os.geteuid() == 0:
        yield from _made_user()
        return
    with tempfile.TemporaryDirectory(prefix=".ramet-test-", dir=Path.home()) as home:
        made = Account(Path(home), None)
        install(made)
        yield made
        _remove_instances(made)


def _made_user() -> Iterator[Account]:
    if not shutil.which("useradd") or not shutil.which("userdel"):
        pytest.skip("no user can be made here: there is no useradd")
    _remove_user()
    words = ["useradd", "--system", "--user-group", "--create-home", "--shell", "/bin/sh", USER]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no user can be made here: {made.stderr.strip()}")
    try:
        entry = pwd.getpwnam(USER)
        account = Account(Path(entry.pw_dir), entry)
        install(account)
        yield account
        _remove_instances(account)
    finally:
        _remove_user()


def _remove_user() -> None:
    """Also one that a killed run has left."""
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        return
    if living_in(Path(entry.pw_dir)):
        pytest.skip(f"processes of the user {USER} run already: another test run's?")
    subprocess.run(["userdel", "--remove", USER], capture_output=True, check=False)
    assert not Path(entry.pw_dir).exists()


def install(account: Account) -> None:
    account.python = _python_for(account)
    packages = account.home / "packages"
    copy_packages(packages)
    account.environment["PYTHONPATH"] = str(packages)
    try:
        kernel = find_kernel()
    except UnavailableError as error:
        pytest.skip(str(error))
    place = account.home / ".cache" / "ramet" / "kernels" / kernel.version
    place.mkdir(parents=True)
    shutil.copy(kernel.vmlinuz, place / "vmlinuz")
    if kernel.modules_dir is not None:
        shutil.copytree(kernel.modules_dir, place / "modules", symlinks=True)
    else:
        account.environment["RAMET_KERNEL"] = str(place / "vmlinuz")
    for directory, _, files in os.walk(account.home):
        for path in (Path(directory), *(Path(directory, file) for file in files)):
            os.chown(path, account.uid, -1, follow_symlinks=False)


def _python_for(account: Account) -> str:
    """An interpreter of this one's version, for which the packages were made, that the user may run."""
    version = "{}.{}".format(*sys.version_info[:2])
    tried = [
        str(Path(sys.executable).resolve()),
        f"/usr/bin/python{version}",
        f"/usr/local/bin/python{version}",
    ]
    for candidate in tried:
        try:
            if account.run(candidate, "-I", "-c", _TRIAL).stdout.strip() == version:
                return candidate
        except OSError:
            continue
    pytest.skip(f"an ordinary user can run no Python {version} here: tried {', '.join(tried)}")


def _remove_instances(account: Account) -> None:
    if ids := account.ramet("ps", "-aq").split():
        account.ramet("rm", "-f", *ids)
    assert living_in(account.home) == []
    assert list((account.data / "instances").iterdir()) == []
