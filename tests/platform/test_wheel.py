"""The wheel: what is in it, the same bytes from the same source, its agents, the demo from an empty venv.

Building needs the cross-compiler, which `make wheel` fetches; without it these tests are skipped.
`make test-wheel` does both, and so does the deep tier.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path

import anyio
import pytest

from ramet.guest.client import AgentClient, run_exec
from ramet.guest.messages import ExecRequest
from ramet.guest.ports import claim_port
from tests.support.unix_sockets import listening

ROOT = Path(__file__).parents[2]
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}  # e_machine, as elf.h has it
PT_DYNAMIC, PT_INTERP = 2, 3
PROBE = "ramet/guest/bin/probe-x86_64"

# A first build, without zig's cache, takes minutes.
pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(900)]


def build(source: Path, into: Path, *, umask: int = 0o022, **environment: str) -> Path:
    """The wheel of the tree `source`, built by this checkout's program."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "build_wheel.py", "--source", source, "--into", into],
        env={**os.environ, **environment},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = into.iterdir()
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what wheels are made of, which stays as it is while somebody edits the checkout."""
    if not (ROOT / ".venv-wheel" / ".made-from").exists():
        pytest.skip("the cross-compiler isn't installed: run `make wheel` (a download of 100 MB)")
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src/ramet", copy / "src/ramet")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def agents(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the wheel's agents, unpacked."""
    directory = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        for arch in ELF_MACHINE:
            path = Path(archive.extract(f"ramet/guest/bin/agent-{arch}", directory))
            path.chmod(0o755)
    return directory / "ramet" / "guest" / "bin"


def version_of(source: Path) -> str:
    text = (source / "src" / "ramet" / "version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def test_everything_that_runs_is_in_it_and_nothing_else(source: Path, wheel: Path) -> None:
    version = version_of(source)
    assert wheel.name == f"ramet-{version}-py3-none-any.whl"
    about = f"ramet-{version}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(source / "src")) for path in source.glob("src/ramet/**/*.py")}
    described = {f"{about}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    described |= {f"{about}/top_level.txt", f"{about}/licenses/LICENSE"}
    programs = {f"ramet/guest/bin/agent-{arch}" for arch in ELF_MACHINE} | {PROBE}
    assert names == modules | described | programs | {"ramet/py.typed"}


def test_it_says_what_it_is(source: Path, wheel: Path) -> None:
    version = version_of(source)
    metadata = Parser().parsestr(
        zipfile.ZipFile(wheel).read(f"ramet-{version}.dist-info/METADATA").decode("utf-8")
    )
    assert (metadata["Name"], metadata["Version"]) == ("ramet", version)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"]
    assert "Operating System :: POSIX :: Linux" in metadata.get_all("Classifier", [])
    assert metadata.get_payload() == (source / "README.md").read_text()
    assert str(metadata).count("file://") == 0


def test_the_same_source_gives_the_same_bytes(source: Path, wheel: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place" / "deeper"
    shutil.copytree(source, elsewhere, copy_function=shutil.copyfile)
    for directory in ("src/ramet/guest/bin", "src/ramet/__pycache__", "build/lib/ramet"):
        (elsewhere / directory).mkdir(parents=True, exist_ok=True)
        (elsewhere / directory / "left-over.py").write_text("of another build\n")
    for path in elsewhere.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1e9, 1e9))
    again = build(
        elsewhere,
        tmp_path / "dist of it",
        umask=0o077,
        TZ="Asia/Tokyo",
        SOURCE_DATE_EPOCH="1700000000",
        MAKEFLAGS="-B",
    )
    assert again.read_bytes() == wheel.read_bytes()


def test_another_source_gives_other_bytes(source: Path, wheel: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    with (changed / "src/ramet/guest/agent/main.c").open("a") as main:
        main.write('\nconst char changed[] __attribute__((used, retain)) = "changed";\n')
    wheel_of_it = build(changed, tmp_path / "dist")
    assert wheel_of_it.read_bytes() != wheel.read_bytes()


@pytest.mark.parametrize("word", ["no-such-function", "another-version"])
def test_a_failed_build_leaves_the_last_wheel(source: Path, tmp_path: Path, word: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    if word == "another-version":  # the agent's header says the old one
        (broken / "src/ramet/version.py").write_text('__version__ = "99.0"\n')
    else:
        (broken / "src/ramet/guest/agent/main.c").write_text(
            "int main(void) { return no_such_function(); }\n"
        )
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "ramet-0-py3-none-any.whl").write_text("the last one")
    with pytest.raises(AssertionError, match=r"no_such_function|AGENT_VERSION"):
        build(broken, dist)
    assert [path.read_text() for path in dist.iterdir()] == ["the last one"]


@pytest.mark.parametrize("arch", ELF_MACHINE)
def test_an_agent_is_static_and_knows_nothing_of_its_build(agents: Path, arch: str) -> None:
    program = (agents / f"agent-{arch}").read_bytes()
    assert program[:6] == b"\x7fELF\x02\x01", "64 bits, little-endian"
    machine, offset, size, count = struct.unpack_from("<18xH12xQ14xHH", program)
    assert machine == ELF_MACHINE[arch]
    kinds = {struct.unpack_from("<I", program, offset + size * i)[0] for i in range(count)}
    assert not kinds & {PT_DYNAMIC, PT_INTERP}
    for trace in (b".wheel-", b"/tmp/", b".venv", b"ziglang", os.fsencode(ROOT)):
        assert trace not in program
    assert len(program) < 200_000


def test_the_probe_is_one_for_firecracker_and_knows_nothing_of_its_build(wheel: Path) -> None:
    program = zipfile.ZipFile(wheel).read(PROBE)
    assert program[:6] == b"\x7fELF\x02\x01", "64 bits, little-endian"
    machine, entry, offset, size, count = struct.unpack_from("<18xH4xQQ14xHH", program)
    assert (machine, entry) == (ELF_MACHINE["x86_64"], 0x100000)
    kinds = {struct.unpack_from("<I", program, offset + size * i)[0] for i in range(count)}
    assert not kinds & {PT_DYNAMIC, PT_INTERP}
    for trace in (b".wheel-", b"/tmp/", b".venv", b"ziglang", os.fsencode(ROOT)):
        assert trace not in program
    assert len(program) < 100_000


@contextmanager
def answering(command: list[str | Path], socket: Path) -> Iterator[None]:
    with subprocess.Popen([*command, "--socket", socket]) as process:
        try:
            deadline = time.monotonic() + 20
            while not listening(socket):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            process.kill()


@pytest.mark.anyio
@pytest.mark.parametrize("arch", ELF_MACHINE)
async def test_an_agent_answers(source: Path, agents: Path, tmp_path: Path, arch: str) -> None:
    command: list[str | Path] = [agents / f"agent-{arch}"]
    if arch != os.uname().machine:
        emulator = shutil.which(f"qemu-{arch}") or shutil.which(f"qemu-{arch}-static")
        if emulator is None:
            pytest.skip(f"no program here runs {arch} code: Debian's package qemu-user has qemu-{arch}")
        command.insert(0, emulator)
    said = (await anyio.run_process([*command, "--version"])).stdout.decode()
    assert said.startswith(f"ramet agent {version_of(source)}, protocol ")
    with answering(command, tmp_path / "agent0.sock"):
        async with claim_port(tmp_path, count=1, wait_s=5) as stream, AgentClient.connect(stream) as agent:
            await agent.ping()
            outcome = await run_exec(agent, ExecRequest(("sh", "-c", "cat; exit 3")), b"x" * 1_000_000)
            assert (outcome.exit_code, outcome.stdout) == (3, b"x" * 1_000_000)


def locked_for(wheel: Path, python: Path) -> str:
    """The part of requirements.lock that the wheel asks for: what it forgets to ask for is then missing."""
    lock = (ROOT / "requirements.lock").read_text()
    stanzas = dict(re.findall(r"^([\w-]+)(==(?:[^\n]*\\\n)*[^\n]*\n)", lock, re.MULTILINE))
    pins = wheel.parent / "pins"
    pins.write_text("".join(f"{name}{rest.split()[0]}\n" for name, rest in stanzas.items()))
    asked = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report=-", "--constraint", pins, wheel],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    pins.unlink()
    names = [package["metadata"]["name"] for package in json.loads(asked.stdout)["install"]]
    canonical = {re.sub(r"[-_.]+", "-", name).lower() for name in names} - {"ramet"}
    return "".join(f"{name}{stanzas[name]}" for name in sorted(canonical))


def test_the_demo_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    (tmp_path / "lock").write_text(locked_for(wheel, python))
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, "--require-hashes", "-r", tmp_path / "lock"], check=True, timeout=300)
    subprocess.run([*pip, "--no-index", wheel], check=True, timeout=120)
    subprocess.run([python, "-m", "pip", "check"], check=True, timeout=60)

    outside = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RAMET_AGENT", "RAMET_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in outside}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    where = "import ramet, ramet.guest.agent_binary as a; print(ramet.__file__, a.agent_path(), sep='\\n')"
    used = run(python, "-c", where).stdout.splitlines()
    assert [Path(path).is_relative_to(tmp_path / "venv") for path in used] == [True, True]
    demo = run(tmp_path / "venv" / "bin" / "ramet", "demo", "--forks", "2")
    if demo.returncode == 5:
        pytest.skip(f"this machine can't run the built-in guest: {demo.stderr}")
    assert demo.returncode == 0, demo.stderr
    print(demo.stdout)
