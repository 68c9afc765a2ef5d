"""Layers are merged as a program that extracts them would: against a naive model, and rule by rule."""

from __future__ import annotations

import os
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError
from ramet.images.layers.limits import Limits
from ramet.images.layers.tree import walk
from tests.unit.images.layer_tars import Member, Merged, member, merged, tar
from tests.unit.images.naive_layers import Model, RefusedError

DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def listing(tree: Merged) -> dict[str, tuple[int, int, bytes, str]]:
    return {
        os.fsdecode(path): (node.file_type, node.permissions, tree.data(node), os.fsdecode(node.link))
        for path, node in walk(tree.root)
    }


def link_groups(tree: Merged) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for path, node in walk(tree.root):
        groups.setdefault(id(node), set()).add(os.fsdecode(path))
    return {frozenset(group) for group in groups.values() if len(group) > 1}


_names = st.sampled_from(["a", "b", "c", "d"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)


def _whiteout(path: str) -> Member:
    above, slash, name = path.rpartition("/")
    return member(f"{above}{slash}.wh.{name}")


_members = st.one_of(
    st.builds(
        lambda path, mode: member(path, data=path.encode(), mode=mode),
        _paths,
        st.sampled_from([0o644, 0o755]),
    ),
    st.builds(lambda path, mode: member(path, DIR, mode=mode), _paths, st.sampled_from([0o755, 0o700])),
    st.builds(
        lambda path, link: member(path, LINK, link=link),
        _paths,
        st.sampled_from(["a", "b", "../a", "/b", "c/d", "..", "/", "x", "x/y"]),
    ),
    st.builds(lambda path, link: member(path, HARD, link=link), _paths, _paths),
    st.builds(_whiteout, _paths),
    st.builds(lambda path: member(path + "/.wh..wh..opq"), _paths),
    st.just(member(".wh..wh..opq")),
)


def compare(layers: list[list[Member]]) -> bool:
    """Return whether the layers could be applied."""
    model = Model()
    try:
        for layer in layers:
            model.apply(layer)
    except RefusedError:
        with pytest.raises(DamagedError), merged([tar(layer) for layer in layers]):
            pass
        return False
    with merged([tar(layer) for layer in layers]) as tree:
        assert listing(tree) == model.listing()
        assert link_groups(tree) == model.link_groups()
    return True


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_members, max_size=8), min_size=1, max_size=4))
def test_any_layers_give_what_the_model_says(layers: list[list[Member]]) -> None:
    compare(layers)


def test_large_random_layers_give_what_the_model_says() -> None:
    """As real builders write: whiteouts of what is there, hard links to what is there, few refusals."""
    applied = 0
    for seed in range(60):
        draw = random.Random(seed)
        layers = []
        known = ["a"]
        for _ in range(3):
            layer: list[Member] = []
            for _ in range(25):
                path = "/".join(draw.choice("abcdef") for _ in range(draw.randint(1, 4)))
                old = draw.choice(known)
                kind = draw.random()
                if kind < 0.3:
                    layer.append(member(path + ".f", data=str(kind).encode()))
                    known.append(path + ".f")
                elif kind < 0.6:
                    layer.append(member(path, DIR))
                    known.append(path)
                elif kind < 0.65:
                    layer.append(member(path + ".l", LINK, link=draw.choice(["/a", "..", "b", "../c/d"])))
                    known.append(path + ".l")
                elif kind < 0.9:
                    layer.append(_whiteout(old))
                else:
                    layer.append(member(old + "/.wh..wh..opq"))
            layers.append(layer)
        applied += compare(layers)
    assert applied > 40


def names(*layers: list[Member]) -> set[str]:
    with merged([tar(layer) for layer in layers]) as tree:
        return {os.fsdecode(path) for path, _ in walk(tree.root)} - {""}


def test_an_opaque_marker_behind_its_siblings_hides_lower_ones_only() -> None:
    lower = [member("d/old"), member("d/s/old"), member("d/s/t/old")]
    upper = [member("d/new"), member("d/s/new"), member("d/.wh..wh..opq"), member("d/.wh..wh..opq")]
    assert names(lower, upper) == {"d", "d/new", "d/s", "d/s/new"}
    assert names(lower, upper[::-1]) == {"d", "d/new", "d/s", "d/s/new"}


def test_a_whiteout_of_a_directory_that_its_layer_wrote_into() -> None:
    lower = [member("d/old"), member("d/s/old")]
    assert names(lower, [member("d/s/new"), member(".wh.d")]) == {"d", "d/s", "d/s/new"}
    assert names(lower, [member(".wh.d"), member("d/s/new")]) == {"d", "d/s", "d/s/new"}
    assert names(lower, [member(".wh.d")]) == set()


def test_names_go_through_links_inside_the_root() -> None:
    lower = [
        member("usr/bin/old"),
        member("bin", LINK, link="usr/bin"),
        member("out", LINK, link="../../usr"),
        member("up", LINK, link="/out/../usr/bin/"),
    ]
    upper = [
        member("bin/new"),
        member("bin/.wh.old"),
        member("out/x"),
        member("up/y"),
        member("h", HARD, link="bin/new"),
    ]
    assert names(lower, upper) == {
        "usr",
        "usr/bin",
        "usr/bin/new",
        "bin",
        "out",
        "usr/x",
        "up",
        "usr/bin/y",
        "h",
    }


def test_a_directory_replaces_a_link_and_a_whiteout_takes_the_link_itself() -> None:
    lower = [member("usr/bin/x"), member("bin", LINK, link="usr/bin")]
    assert names(lower, [member("bin", DIR)]) == {"usr", "usr/bin", "usr/bin/x", "bin"}
    assert names(lower, [member(".wh.bin")]) == {"usr", "usr/bin", "usr/bin/x"}


def test_a_hard_link_keeps_the_file_that_its_layer_hides() -> None:
    lower = [member("a", data=b"content")]
    assert names(lower, [member("b", HARD, link="a"), member(".wh.a")]) == {"b"}


def test_a_hard_link_changes_no_attributes() -> None:
    lower = [member("a", data=b"x", mode=0o4755, owner=(7, 8), xattrs={b"user.k": b"v"})]
    with merged([tar(lower), tar([member("b", HARD, link="a", mode=0o600, owner=(1, 1))])]) as tree:
        node = dict(walk(tree.root))[b"b"]
        assert (node.permissions, node.uid, node.gid, node.xattrs) == (0o4755, 7, 8, {b"user.k": b"v"})


def test_what_overlayfs_would_obey_is_dropped_and_counted() -> None:
    xattrs = {
        b"trusted.overlay.opaque": b"y",
        b"user.overlay.whiteout": b"",
        b"system.nfs4_acl": b"x",
        b"user.k": b"",
    }
    layer = [member("gone", data=b"x")]
    upper = [
        member("gone", tarfile.CHRTYPE),
        member("null", tarfile.CHRTYPE, device=(1, 3)),
        member("f", xattrs=xattrs),
    ]
    with merged([tar(layer), tar(upper)]) as tree:
        found = dict(walk(tree.root))
        assert set(found) == {b"", b"null", b"f"}
        assert found[b"f"].xattrs == {b"user.k": b""}
        assert (tree.merge.dropped.xattrs, tree.merge.dropped.whiteout_devices) == (3, 1)


def test_an_acl_as_text_is_dropped_and_counted() -> None:
    entry = member("f")
    text = "user::rw-,user:lisa:r--,group::r--,mask::r--,other::---"
    entry[0].pax_headers = {"SCHILY.acl.access": text}
    with merged([tar([entry])]) as tree:
        assert dict(walk(tree.root))[b"f"].xattrs is None
        assert tree.merge.dropped.xattrs == 1


def test_records_of_aufs_are_ignored() -> None:
    assert names([member(".wh..wh.plnk/12.3", HARD, link="a"), member(".wh..wh.aufs"), member("a")]) == {"a"}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ([member("a/../../x")], "leads upwards"),
        ([member("h", HARD, link="../x")], "leads upwards"),
        ([member("h", HARD, link="x")], "isn't there"),
        ([member("d", DIR), member("h", HARD, link="d")], "a directory"),
        ([member("f"), member("f/x")], "no directory"),
        ([member("l", LINK, link="l"), member("l/x")], "loop of links"),
        ([member("l", LINK, link="m"), member("m", LINK, link="/l"), member("l/x")], "loop of links"),
        ([member("l", LINK, link="n" * 256), member("l/x")], "too long"),
        ([member("d/.wh.")], "whiteout of nothing"),
        ([member("d/.wh..")], "whiteout of nothing"),
        ([member("d/.wh...")], "whiteout of nothing"),
        ([member("n" * 256)], "too long"),
        ([member(".", data=b"x")], "root is no directory"),
        ([member("/".join("d" * 1500))], "too deep"),
        (
            [
                member("/".join("d" * 900)),
                member("l", LINK, link="/".join("d" * 899)),
                member("l/" + "/".join("e" * 900)),
            ],
            "too deep",
        ),
    ],
)
def test_what_no_layer_may_have_is_one_error(layer: list[Member], reason: str) -> None:
    with pytest.raises(DamagedError, match=f"layer 0 is damaged: .*{reason}"), merged([tar(layer)]):
        pass


def test_entries_and_steps_are_bounded_over_all_layers() -> None:
    layers = [tar([member(f"{layer}{name}") for name in range(6)]) for layer in "ab"]
    with pytest.raises(DamagedError, match=r"layer 1 is damaged: 'b4': .*too many entries"):  # noqa: SIM117
        with merged(layers, limits=Limits(total_entries=10)):
            pass
    with pytest.raises(DamagedError, match="too many steps"):  # noqa: SIM117
        with merged([tar([member("a/b/c"), member("a/b/d")])], limits=Limits(walk_steps=3)):
            pass


@pytest.mark.timeout(20)
def test_many_markers_on_a_large_directory_take_linear_time() -> None:
    layer = [member(f"d/{number}") for number in range(5000)]
    markers = [member("d/.wh..wh..opq") for _ in range(20_000)]
    assert len(names(layer, [*layer, *markers])) == 5001
