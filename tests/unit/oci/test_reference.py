from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ramet.errors import UsageError
from ramet.oci.digests import Digest
from ramet.oci.reference import Reference

HEX = "ab" * 32
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("python", "docker.io/library/python:latest", "python:latest"),
        ("python:3.13-slim", "docker.io/library/python:3.13-slim", "python:3.13-slim"),
        ("team/x", "docker.io/team/x:latest", "team/x:latest"),
        ("docker.io/python", "docker.io/library/python:latest", "python:latest"),
        ("index.docker.io/library/python:3", "docker.io/library/python:3", "python:3"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("host:5000/a/b:1", "host:5000/a/b:1", "host:5000/a/b:1"),
        (f"host:5000/x@{SHA}", f"host:5000/x@{SHA}", f"host:5000/x@{SHA}"),
        (f"x:1@{SHA}", f"docker.io/library/x:1@{SHA}", f"x@{SHA}"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("Host/x", "Host/x:latest", "Host/x:latest"),
        ("ghcr.io/a__b/c-d.e", "ghcr.io/a__b/c-d.e:latest", "ghcr.io/a__b/c-d.e:latest"),
        ("host:5000", "docker.io/library/host:5000", "host:5000"),
    ],
)
def test_references_as_docker_reads_them(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert (str(reference), reference.familiar) == (full, familiar)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no name"),
        (":1", "no name"),
        ("Python", "lower case"),
        ("python:", "no tag"),
        ("python:a b", "no tag"),
        (f"python:{'t' * 129}", "no tag"),
        ("a//b", "no part"),
        ("/x", "no part"),
        ("../x", "no host name"),
        ("a/../b", "no part"),
        ("a___b", "no part"),
        ("a._b", "no part"),
        ("x\n", "no part"),
        ("\uff58", "no part"),
        ("host.x:0/y", "no port"),
        ("host.x:65536/y", "no port"),
        ("[zz]:1/y", "no host name"),
        ("[:::]:1/y", "no IPv6"),
        ("-a.b/x", "no host name"),
        ("http://host/x", "no host name"),
        (HEX, "id of an image"),
        ("x@sha256:abc", "malformed"),
        (f"x@md5:{'a' * 32}", "doesn't check"),
        (f"x@sha256:{HEX.upper()}", "malformed"),
        ("x@", "no digest"),
        ("a/" * 200 + "b", "more than 255"),
        ("a" * 5000, "more than 1024"),
    ],
)
def test_errors_say_which_part_is_wrong(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        Reference.parse(text)
    assert raised.value.hint
    assert len(str(raised.value)) < 2000


@given(st.text(max_size=300))
@example("docker.io/library/" + HEX)
@example("docker.io/library/localhost")
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(str(reference)) == reference


_COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)


@given(
    st.sampled_from(["", "localhost/", "host:5000/", "ghcr.io/", "docker.io/", "[::1]:80/", "127.0.0.1/"]),
    st.lists(_COMPONENT, min_size=1, max_size=4),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.none() | st.binary(max_size=9),
)
def test_what_is_written_is_read_again(
    registry: str, path: list[str], tag: str | None, content: bytes | None
) -> None:
    # Docker takes it for a registry there.
    assume(registry or len(path) == 1 or ("." not in path[0] and path[0] != "localhost"))
    digest = f"@{Digest.of(content)}" if content is not None else ""
    text = registry + "/".join(path) + (f":{tag}" if tag else "") + digest
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    familiar = Reference.parse(reference.familiar)
    assert (familiar.registry, familiar.repository) == (reference.registry, reference.repository)
    assert familiar.wanted == reference.wanted
    assert reference.tag == (tag or (None if digest else "latest"))
