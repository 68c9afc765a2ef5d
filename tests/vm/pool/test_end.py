"""The end of a warm VMM, where that can't be had."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ramet.engine.pool import directory as pool_directory
from ramet.errors import UnseenError
from ramet.paths import Home
from ramet.system import process_ref

OTHER_BOOT = "11111111-2222-3333-4444-555555555555"


@pytest.mark.anyio
async def test_a_directory_stays_while_its_vmm_may_live(tmp_path: Path) -> None:
    home, me = Home(tmp_path), process_ref.this_process()
    directory = home.pool / pool_directory.making(home, "0123456789ab")
    directory.mkdir(parents=True)
    (taken,) = pool_directory.entries(pool_directory.names(home))
    with pytest.raises(UnseenError):
        await pool_directory.end(home, taken, [msgspec.structs.replace(me, boot_id=OTHER_BOOT)])
    assert directory.exists()
    await pool_directory.end(home, taken, [])
    assert not directory.exists()
