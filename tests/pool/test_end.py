"""The end of a warm VMM, where that can't be had."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ramet.engine import pool
from ramet.errors import UnseenError
from ramet.host import processes
from ramet.paths import Home

OTHER_BOOT = "11111111-2222-3333-4444-555555555555"


@pytest.mark.anyio
async def test_a_directory_stays_while_its_vmm_may_live(tmp_path: Path) -> None:
    home, me = Home(tmp_path), processes.this_process()
    directory = home.pool / pool.making(home, "0123456789ab")
    directory.mkdir(parents=True)
    (taken,) = pool.entries(pool.names(home))
    with pytest.raises(UnseenError):
        await pool.end(home, taken, [msgspec.structs.replace(me, boot_id=OTHER_BOOT)])
    assert directory.exists()
    await pool.end(home, taken, [])
    assert not directory.exists()
