"""QEMU's own tools, as the judges of what ramet writes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img here")


def qemu_img(*words: str | Path) -> Any:
    """What a command of qemu-img prints as JSON. Fails the test when it fails."""
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout) if "--output=json" in words else None


def write(path: Path, offset: int, pattern: int, length: int) -> None:
    """Write through QEMU's own block layer."""
    command = f"write -P {pattern} {offset} {length}"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, path], check=True, timeout=60, capture_output=True
    )


def content(path: Path, out: Path) -> bytes:
    """All that a guest would read of a qcow2 file and what lies under it."""
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, out)
    return out.read_bytes()


def require_whole(path: Path) -> None:
    """No error, leak or corruption in an image."""
    checked = qemu_img("check", "--output=json", path)
    assert checked["check-errors"] == 0
    assert "leaks" not in checked
    assert "corruptions" not in checked
