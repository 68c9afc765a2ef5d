"""Images in OCI layouts and their archives: chosen by name and platform, checked to the last byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramet.errors import DamagedError, NotFoundError, UsageError
from ramet.images.library.library import Library
from ramet.images.sources.load import import_image
from tests.unit.images.library.libraries import seen
from tests.unit.images.sources.archives import (
    LAYERS,
    NAME,
    TAG,
    Contents,
    archive,
    blob,
    image_in,
    index_of,
    layout,
    one_image,
    write,
)
from tests.unit.oci.registry_server import digest_of

pytestmark = pytest.mark.anyio

INDEX = "application/vnd.oci.image.index.v1+json"


async def test_a_layout_becomes_the_image_that_its_documents_describe(
    library: Library, tmp_path: Path
) -> None:
    contents = one_image(annotations={TAG: "team/app:3"})
    source = write(contents, tmp_path / "layout")
    image = (await import_image(library, source)).image
    assert image.name == "team/app:3"
    assert image.digest == json.loads(contents["index.json"])["manifests"][0]["digest"]
    assert image.config.cmd == ("/bin/tool",)
    assert (image.config.env, image.config.working_dir, image.config.stop_signal) == (
        ("A=b",),
        "/etc",
        "SIGINT",
    )
    assert image.record.platform == "linux/amd64"
    files = seen(image)
    assert set(files) == {b"", b"etc", b"etc/motd", b"bin", b"bin/tool"}
    assert files[b"bin/tool"].uid == 7  # type: ignore[attr-defined]
    assert library.is_local("team/app:3")


@pytest.mark.parametrize("prefix", ["", "./"])
async def test_an_archive_of_a_layout_is_the_same_image(
    library: Library, tmp_path: Path, prefix: str
) -> None:
    contents = one_image()
    made = (await import_image(library, write(contents, tmp_path / "layout"), name="a")).image
    again = (
        await import_image(library, archive(contents, tmp_path / "x.tar", prefix=prefix), name="b")
    ).image
    assert (again.digest, again.bases) == (made.digest, made.bases)


async def test_a_tag_alone_is_no_name(library: Library, tmp_path: Path) -> None:
    source = write(one_image(annotations={TAG: "latest"}), tmp_path / "My App.oci")
    assert (await import_image(library, source)).image.name == "my-app:latest"
    assert (await import_image(library, source, name="other")).image.name == "other:latest"


async def test_several_images_are_chosen_by_name(library: Library, tmp_path: Path) -> None:
    contents: Contents = {}
    first = image_in(contents, LAYERS[:1], annotations={TAG: "1"})
    second = image_in(contents, LAYERS, annotations={TAG: "2", NAME: "docker.io/library/app:2"})
    source = write(layout(first, second, contents=contents), tmp_path / "app")
    with pytest.raises(UsageError, match=r"has 2 images: 1, docker\.io/library/app:2 \(say which one: --ref"):
        await import_image(library, source)
    with pytest.raises(NotFoundError, match=r"has no image '3': it has 1, docker\.io/library/app:2"):
        await import_image(library, source, ref="3")
    for ref in ("2", "app:2", "docker.io/library/app:2", second["digest"]):
        image = (await import_image(library, source, ref=ref)).image
        assert (image.digest, image.name) == (second["digest"], "app:2")
    assert (await import_image(library, source, ref="1")).image.digest == first["digest"]
    assert (await import_image(library, source, ref="1")).image.name == "app:latest"


async def test_two_names_of_one_image_are_no_choice(library: Library, tmp_path: Path) -> None:
    contents: Contents = {}
    first = image_in(contents, annotations={TAG: "1"})
    second = image_in(contents, annotations={TAG: "latest"})
    source = write(layout(first, second, contents=contents), tmp_path / "app")
    assert (await import_image(library, source)).image.digest == first["digest"] == second["digest"]


@pytest.mark.parametrize("nested", [False, True])
async def test_the_variant_for_this_machine_is_chosen(library: Library, tmp_path: Path, nested: bool) -> None:
    contents: Contents = {}
    arm = image_in(contents, LAYERS[:1], platform="linux/arm64", platform_=None)
    arm = {**arm, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
    amd = {**image_in(contents), "platform": {"os": "linux", "architecture": "amd64"}}
    note = {
        **image_in(contents, LAYERS[1:]),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    manifests = [arm, note, amd]
    if nested:
        manifests = [blob(contents, index_of(manifests), INDEX, annotations={TAG: "app:1"})]
    source = write(layout(*manifests, contents=contents), tmp_path / "app")
    assert (await import_image(library, source, platform="linux/amd64")).image.digest == amd["digest"]
    other = (await import_image(library, source, platform="linux/arm64", name="arm")).image
    assert (other.digest, other.record.platform) == (arm["digest"], "linux/arm64")
    with pytest.raises(NotFoundError, match=r"has no image for linux/s390x: it has linux/amd64, linux/arm64"):
        await import_image(library, source, platform="linux/s390x")


async def test_an_image_for_another_machine_is_refused(library: Library, tmp_path: Path) -> None:
    source = write(one_image(platform="linux/s390x"), tmp_path / "app")
    with pytest.raises(NotFoundError, match="an image for linux/s390x, and this is linux/"):
        await import_image(library, source)


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
@pytest.mark.parametrize("harm", ["missing", "changed", "longer"])
@pytest.mark.parametrize("form", ["directory", "archive"])
async def test_a_damaged_blob_is_named_and_nothing_is_published(
    library: Library, tmp_path: Path, which: str, harm: str, form: str
) -> None:
    contents = one_image()
    manifest_digest = json.loads(contents["index.json"])["manifests"][0]["digest"]
    manifest = json.loads(contents["blobs/" + manifest_digest.replace(":", "/")])
    digest = {
        "layer": manifest["layers"][1]["digest"],
        "config": manifest["config"]["digest"],
        "manifest": manifest_digest,
    }[which]
    path = "blobs/" + digest.replace(":", "/")
    if harm == "missing":
        del contents[path]
    elif harm == "longer":
        contents[path] += b"x"
    else:
        contents[path] = contents[path][:-9] + bytes([contents[path][-9] ^ 1]) + contents[path][-8:]
    source = (
        write(contents, tmp_path / "app") if form == "directory" else archive(contents, tmp_path / "app.tar")
    )
    with pytest.raises(DamagedError) as caught:
        await import_image(library, source)
    assert "app" in caught.value.message
    expected = {
        "missing": "has no blobs/sha256/",
        "longer": "bytes instead of",
        "changed": "isn't what its digest",
    }
    # A changed gzip stream is seen by gzip before its end is reached.
    assert expected[harm] in caught.value.message or (
        which == "layer" and "decompressed" in caught.value.message
    )
    assert library.images() == []
    assert list(library._places.root.glob(".making-*")) == []


async def test_a_blob_of_the_right_digest_with_another_diff_id_is_refused(
    library: Library, tmp_path: Path
) -> None:
    contents: Contents = {}
    manifest = image_in(contents)
    name = "blobs/" + manifest["digest"].replace(":", "/")
    document = json.loads(contents[name])
    document["layers"].reverse()
    swapped = blob(contents, json.dumps(document).encode(), manifest["mediaType"])
    source = write(layout(swapped, contents=contents), tmp_path / "app")
    with pytest.raises(DamagedError, match=r"^layer 1 of .* is damaged: its content has the digest"):
        await import_image(library, source)


@pytest.mark.parametrize("kind", ["absolute", "relative", "loop", "directory", "fifo"])
async def test_links_that_lead_out_are_refused(library: Library, tmp_path: Path, kind: str) -> None:
    source = write(one_image(suffix=""), tmp_path / "app")
    path = source / "blobs" / "sha256" / digest_of(LAYERS[0]).removeprefix("sha256:")
    outside = path.rename(tmp_path / "outside")
    match kind:
        case "absolute":
            path.symlink_to(outside)
        case "relative":
            path.symlink_to("../../../outside")
        case "loop":
            path.symlink_to(path.name)
        case "directory":
            path.mkdir()
        case "fifo":
            import os

            os.mkfifo(path)
    expected = "leads out of" if kind in ("absolute", "relative") else "no regular file|which it should have"
    with pytest.raises(DamagedError, match=expected):
        await import_image(library, source)


async def test_links_inside_are_followed(library: Library, tmp_path: Path) -> None:
    source = write(one_image(), tmp_path / "app")
    (source / "blobs" / "sha256").rename(source / "blobs" / "real")
    (source / "blobs" / "sha256").symlink_to("real")
    assert (await import_image(library, source)).image.config.cmd == ("/bin/tool",)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"layers": []}, "has no layers"),
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}, "it is encrypted"),
        (
            {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
            "may not be distributed",
        ),
        ({"schemaVersion": 1}, "schema 1, which registries have given up"),
    ],
)
async def test_what_cannot_be_unpacked_is_refused_by_name(
    library: Library, tmp_path: Path, change: dict[str, object], error: str
) -> None:
    contents: Contents = {}
    described = image_in(contents)
    document = json.loads(contents["blobs/" + described["digest"].replace(":", "/")])
    if "mediaType" in change:
        document["layers"][0].update(change)
    else:
        document.update(change)
    changed = blob(contents, json.dumps(document).encode(), described["mediaType"])
    with pytest.raises(DamagedError, match=error):
        await import_image(library, write(layout(changed, contents=contents), tmp_path / "app"))


@pytest.mark.parametrize(
    "index", [b"", b"<html>", b"[]", b'{"schemaVersion":2,"manifests":[]}', b"{" * 100_000]
)
async def test_an_index_that_is_none_is_refused(library: Library, tmp_path: Path, index: bytes) -> None:
    contents = one_image()
    contents["index.json"] = index
    with pytest.raises(DamagedError, match=r"app"):
        await import_image(library, write(contents, tmp_path / "app"))


async def test_indexes_nested_in_themselves_end(library: Library, tmp_path: Path) -> None:
    contents: Contents = {}
    entry = image_in(contents)
    for _ in range(6):
        entry = blob(contents, index_of([entry]), INDEX)
    with pytest.raises(DamagedError, match="nested too deep"):
        await import_image(library, write(layout(entry, contents=contents), tmp_path / "app"))


async def test_a_layer_that_the_library_has_is_not_read_again(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ramet.images.erofs.blob.SHARED_FROM_BYTES", 4096)
    contents: Contents = {}
    both = image_in(contents, annotations={TAG: "a:1"})
    await import_image(library, write(layout(both, contents=contents), tmp_path / "a"))
    other: Contents = {}
    one = image_in(other, LAYERS[1:], annotations={TAG: "b:1"})
    layer = write(layout(one, contents=other), tmp_path / "b") / "blobs" / "sha256"
    path = next(path for path in layer.iterdir() if path.read_bytes()[:2] == b"\x1f\x8b")
    path.write_bytes(bytes(path.stat().st_size))
    assert (await import_image(library, tmp_path / "b")).image.config.cmd == ("/bin/tool",)
