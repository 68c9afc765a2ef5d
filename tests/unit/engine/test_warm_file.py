"""A warm VMM's file keeps the names that it has on disk, whatever its fields are called."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.engine.pool import directory
from ramet.paths import WARM_FILE
from ramet.system import process_ref


def test_its_state_is_called_stage_on_disk(tmp_path: Path) -> None:
    written = {
        "driver": "firecracker",
        "stage": "loaded",
        "process": msgspec.to_builtins(process_ref.this_process()),
        "created_at": "2026-01-01T00:00:00Z",
    }
    (tmp_path / WARM_FILE).write_bytes(msgspec.json.encode(written))
    warm = directory.read_warm(tmp_path)
    assert warm is not None
    assert warm.state == "loaded"
    assert msgspec.to_builtins(warm)["stage"] == "loaded"


def test_controllers_of_the_version_before_are_known() -> None:
    process = process_ref.this_process()
    name = process_ref.as_name(process)
    files = [f"keeper.{name}.00000000", f"controller.{name}.00000001", f"other.{name}.00000002"]
    assert list(directory.controllers(files)) == files[:2]
