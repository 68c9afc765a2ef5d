"""A booted guest whose standby failed late can be captured as before."""

from __future__ import annotations

import pytest

import ramet
from ramet.engine.capture import publish
from ramet.errors import FilesystemError

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def test_a_booted_guest_is_captured_after_a_standby_that_failed(
    host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await host.run("builtin", memory="128M")
    await vm.exec("sh", "-c", "echo kept > /tmp/value", check=True)

    def full(*_: object, **__: object) -> int:
        raise FilesystemError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(publish, "write_out", full)  # the mem-file has been published by then
        with pytest.raises(FilesystemError, match="no room"):
            await vm.standby()
    assert (await vm.info()).state == "running"
    assert not (vm.directory / "mem").exists(), "the room that it took is given back"
    await (await vm.snapshot("now")).remove()
    await vm.standby()
    await vm.restore()
    assert (await vm.exec("cat", "/tmp/value", check=True)).stdout == b"kept\n"
