"""Runs of pytest and of `ramet` with a release of QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec

from tests.platform.qemu_releases.packages import Unpacked
from tests.support.copied_packages import ROOT

LIMIT_S = 900
_CLEANS_UP_S = 60
_FAILED = {"failure", "error"}


@dataclass(frozen=True)
class Inner:
    """What came of an inner run. `skipped` are reasons by the names of tests."""

    passed: list[str]
    failed: dict[str, str]
    skipped: dict[str, str]
    output: str


def environment(release: Unpacked, **more: str) -> dict[str, str]:
    """This process's, with that release's QEMU and `qemu-img`."""
    path = f"{release.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "RAMET_QEMU": release.qemu, "RAMET_DRIVER": "qemu", "PATH": path, **more}


def run_tests(release: Unpacked, *paths: str, only: str = "", tools: Unpacked | None = None) -> Inner:
    """Run pytest on `paths` in another process, with the tools of another release if `tools` are given. One
    that doesn't end within `LIMIT_S` is interrupted, so that it cleans up; `TimeoutExpired` is raised.
    """
    # Users that tests make are called after it, and this run may have one.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "") + "inner"
    with tempfile.TemporaryDirectory(prefix="ramet-inner-") as directory:
        report = Path(directory, "report.xml")
        words = ["-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "--color=no", f"--junitxml={report}"]
        with subprocess.Popen(
            [sys.executable, *words, "-k", only, *paths],
            cwd=ROOT,
            env={**environment(tools or release), "RAMET_QEMU": release.qemu, "PYTEST_XDIST_WORKER": worker},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=LIMIT_S)
            except BaseException:
                process.send_signal(signal.SIGINT)
                try:
                    process.communicate(timeout=_CLEANS_UP_S)
                finally:
                    process.kill()
                raise
        assert report.exists(), output
        found = Inner([], {}, {}, output)
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            outcomes = {outcome.tag: outcome for outcome in case}
            if bad := _FAILED & outcomes.keys():
                found.failed[name] = outcomes[bad.pop()].text or ""
            elif "skipped" in outcomes:
                found.skipped[name] = outcomes["skipped"].get("message", "")
            else:
                found.passed.append(name)
    return found


class Ramet:
    """`ramet` on a home, with a release of QEMU."""

    def __init__(self, home: Path, release: Unpacked, **more: str) -> None:
        self.release = release
        self._environment = environment(release, RAMET_HOME=str(home), **more)

    def __call__(self, *words: str, code: int = 0) -> str:
        """Its standard output. Fails the test on another exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "ramet.cli.main", *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        """The document that `--json` prints."""
        return msgspec.json.decode(self(*words, "--json", code=code))

    def state(self, name: str) -> str:
        """What the guest remembers."""
        return self("exec", name, "--", "cat", "/run/state").strip()


def counts(found: Mapping[str, object]) -> str:
    """Names, for a message."""
    return "\n".join(f"{name}: {text}" for name, text in found.items())
