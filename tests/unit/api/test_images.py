"""A home's images as the API describes them: sizes alone and together, names, removal."""

from __future__ import annotations

from pathlib import Path

import pytest

import ramet
from ramet.api.names import read_image_names
from ramet.cli.completion import complete_image
from ramet.engine.lifecycle.containers import library_of
from tests.unit.images.library.libraries import layer_of, material_of

BASE, OWN = layer_of("base", 400_000), [layer_of(f"own{number}", 100_000) for number in range(2)]


@pytest.mark.anyio
async def test_own_and_shared_bytes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ramet.Host(tmp_path / "home") as host:
        library = library_of(host._opened)
        for number, own in enumerate(OWN):
            await library.add(material_of([BASE, own]), name=f"app:{number}", is_local=True)
        second, first = [entry for entry in await host.images() if entry.kind == "container"]
        assert (first.name, second.name) == ("app:0", "app:1")
        files = sum(path.stat().st_blocks * 512 for path in (tmp_path / "home/images/blobs").iterdir())
        assert None not in (first.own_bytes, first.shared_bytes, second.own_bytes)
        assert first.shared_bytes == second.shared_bytes
        assert (first.own_bytes or 0) + (second.own_bytes or 0) + (first.shared_bytes or 0) == files
        found = await host.image("app:0")
        assert found.names == ["app:0"]
        assert found.instances == []
        assert found.size_bytes == sum(file.size_bytes for file in found.files)
        monkeypatch.setenv("RAMET_HOME", str(tmp_path / "home"))
        assert read_image_names() == ["app:0", "app:1"]
        assert complete_image("app:1") == [("app:1", "container image")]
        assert [word for word, _ in complete_image("")] == ["app:0", "app:1", "builtin", "probe", "bare"]
        assert await host.remove_image("app:0") == first.digest
        [left] = [entry for entry in await host.images() if entry.kind == "container"]
        assert (left.shared_bytes, left.own_bytes) == (0, left.size_bytes)
        assert (await host.prune_images()).files > 0
        with pytest.raises(ramet.NotFoundError, match="no image 'app:0'"):
            await host.image("app:0")
        assert (await host.image("builtin")).kind == "built-in"


@pytest.mark.anyio
async def test_what_cannot_be_wished_is_refused_before_anything_is_asked_for(tmp_path: Path) -> None:
    async with ramet.Host(tmp_path / "home") as host:
        for words in (
            {"entrypoint": ["sh"]},
            {"command": ["sh"]},
            {"idle": True},
            {"start_main": False},
            {"rootfs": "ram"},
        ):
            with pytest.raises(ramet.UsageError, match="no container image"):
                await host.run("builtin", **words)
        with pytest.raises(ramet.UnavailableError, match="can't run here"):
            await host.run("127.0.0.1:1/x", platform="linux/s390x")
        with pytest.raises(ramet.UsageError, match="UTF-8"):
            await host.run("127.0.0.1:1/x", command=["\udcff"])
        with pytest.raises(ramet.UsageError, match="missing, never, always"):
            await host.run("127.0.0.1:1/x", pull="sometimes")  # type: ignore[arg-type]
        await library_of(host._opened).add(material_of([BASE]), name="app", is_local=True)
        with pytest.raises(ramet.UsageError, match="arguments and environment"):
            await host.run("app", command=["x" * 40_000, "y" * 40_000])
        assert await host.list(everything=True) == []
