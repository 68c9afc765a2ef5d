"""Commands that can't be started: the step that failed decides what kind of error it is, and the reason names
the file that is at fault.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from ramet.errors import ExecError, ExecNotExecutableError, ExecNotFoundError
from ramet.guest.client import run_exec
from ramet.guest.command_stream import start_error
from ramet.guest.fields import put_number, put_text
from ramet.guest.messages import ExecRequest

from .test_agent import session

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("agent_process")]


def program(path: Path, content: bytes, mode: int = 0o755) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


async def why_not(directory: Path, request: ExecRequest) -> ExecError:
    async with session(directory) as agent:
        with pytest.raises(ExecError) as run:
            await run_exec(agent, request)
        with pytest.raises(ExecError) as spawned:
            await agent.spawn(request)
    assert (type(spawned.value), spawned.value.message) == (type(run.value), run.value.message)
    return run.value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cwd": "/no/such"}, "chdir /no/such: No such file"),
        ({"cwd": "/etc/passwd"}, "chdir /etc/passwd: Not a directory"),
        ({"user": "nobody-of-that-name"}, "no such user"),
        ({"user": "0:no-such-group"}, "no such group: no-such-group"),
        ({"user": "0:4294967295"}, "not a group id"),
        ({"user": "99999999999"}, "not a user id"),
        ({"user": "x" * 256}, "user xxx"),
    ],
)
async def test_a_step_before_the_program_is_no_matter_of_the_program(
    tmp_path: Path, options: dict[str, str], said: str
) -> None:
    error = await why_not(tmp_path, ExecRequest(("true",), **options))  # type: ignore[arg-type]
    assert (type(error), error.code) == (ExecError, "exec_failed")
    assert said in error.message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as somebody else")
async def test_a_directory_that_its_user_may_not_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    error = await why_not(tmp_path, ExecRequest(("true",), cwd=str(closed), user="65534"))
    assert type(error) is ExecError
    assert "chdir" in error.message


@pytest.mark.parametrize(
    ("number", "text", "kind"),
    [
        (2, "tool: No such file or directory", ExecNotFoundError),
        (13, "tool: Permission denied", ExecNotExecutableError),
        (2, "chdir /no/such: No such file or directory", ExecError),
        (13, "user nobody: Permission denied", ExecError),
        (22, "no such user: x: Invalid argument", ExecError),
    ],
)
def test_an_agent_that_names_no_step_is_understood(number: int, text: str, kind: type[ExecError]) -> None:
    """A snapshot of an older ramet has the agent of then."""
    payload = put_number(1, 4, number) + put_text(2, text)
    assert type(start_error(ExecRequest(("tool",)), payload)) is kind


async def test_the_file_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = "/no/such/shell"
    script = program(tmp_path / "script", f"#!{missing} -e\necho\n".encode())
    nested = program(tmp_path / "nested", f"#! {script}\n".encode())
    windows = program(tmp_path / "windows", b"#!/bin/sh\r\necho\r\n")
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    on_path = {"PATH": f"/no/such/directory:{tmp_path}"}
    for request, said in [
        (ExecRequest((script,)), f"its interpreter {missing} isn't there"),
        (ExecRequest((nested,)), f"its interpreter {missing} isn't there"),
        (ExecRequest(("script",), env=on_path), f"script: its interpreter {missing} isn't there"),
        (ExecRequest((windows,)), "its interpreter is /bin/sh followed by a CR"),
        (ExecRequest((str(dangling),)), "it is a link to nowhere, which isn't there"),
        (ExecRequest((f"{tmp_path}/gone",)), "gone: No such file or directory"),
        (ExecRequest(("gone",), env=on_path), "gone: No such file or directory"),
    ]:
        error = await why_not(tmp_path, request)
        assert (type(error), error.exit_code) == (ExecNotFoundError, 127), error
        assert said in error.message


async def test_a_dynamic_program_without_its_loader(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    dynamic = tmp_path / "dynamic"
    loader = "-Wl,--dynamic-linker=/no/such/loader.so"
    build = [compiler, "-x", "c", "-", loader, "-o", str(dynamic)]
    await anyio.run_process(build, input=b"int main(void) { return 0; }")
    error = await why_not(tmp_path, ExecRequest((str(dynamic),)))
    assert error.exit_code == 127
    assert "its loader /no/such/loader.so isn't there" in error.message


async def test_what_is_there_and_cannot_be_executed(tmp_path: Path) -> None:
    elf = bytearray(Path("/bin/true").resolve().read_bytes()[:4096])
    elf[18:20] = (0xF3).to_bytes(2, "little")  # e_machine: RISC-V
    plain = program(tmp_path / "plain", b"echo\n", 0o644)
    for path, said in [
        (plain, "Permission denied (it isn't executable)"),
        (str(tmp_path), "Permission denied (it is a directory)"),
        (
            program(tmp_path / "script", f"#!{plain}\n".encode()),
            f"its interpreter {plain}: Permission denied",
        ),
        (program(tmp_path / "text", b"echo without a first line\n"), "nor a script that begins with #!"),
        (program(tmp_path / "empty", b""), "Exec format error (it is empty)"),
        (program(tmp_path / "foreign", bytes(elf)), "for another kind of processor"),
    ]:
        error = await why_not(tmp_path, ExecRequest((path,)))
        assert (type(error), error.exit_code) == (ExecNotExecutableError, 126), error
        assert said in error.message


async def test_other_reasons_are_neither_missing_nor_not_executable(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    error = await why_not(tmp_path, ExecRequest((str(loop),)))
    assert type(error) is ExecError
    busy = Path(program(tmp_path / "busy", b"#!/bin/sh\n"))
    descriptor = os.open(busy, os.O_RDWR)
    try:
        error = await why_not(tmp_path, ExecRequest((str(busy),)))
    finally:
        os.close(descriptor)
    assert (type(error), "Text file busy" in error.message) == (ExecError, True)
