"""Programs and directories are named by settings that people write in many ways; each has one meaning."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import config, programs
from ramet.errors import UnavailableError
from ramet.programs import Program, why_not
from tests.support import preloaded

PATHS = ("RAMET_HOME", "RAMET_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the variables that say where things lie is set."""
    for name in PATHS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def nobody(bare: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """And the user has no passwd entry, as in many containers."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    bare.setattr(pwd, "getpwuid", unknown)
    return bare


def script(path: Path, interpreter: str = "/bin/sh", mode: int = 0o755) -> Path:
    path.write_text(f"#!{interpreter}\n")
    path.chmod(mode)
    return path


class TestDirectories:
    @pytest.mark.parametrize("find", [config.home_directory, config.cache_directory])
    def test_without_any_home_both_variables_are_named(
        self, nobody: pytest.MonkeyPatch, find: Callable[[], Path]
    ) -> None:
        for value in (None, ""):
            if value is not None:
                nobody.setenv("HOME", value)
            with pytest.raises(UnavailableError) as caught:
                find()
            assert "RAMET_" in caught.value.message
            assert "HOME" in caught.value.message
            assert f"user {os.getuid()}" in caught.value.message
            assert "RAMET_" in str(caught.value.hint)

    def test_ramet_home_is_enough(self, nobody: pytest.MonkeyPatch, tmp_path: Path) -> None:
        nobody.setenv("RAMET_HOME", str(tmp_path))
        assert config.home_directory() == tmp_path
        assert config.cache_directory() == tmp_path / "cache"
        nobody.setenv("XDG_CACHE_HOME", "/c")
        assert config.cache_directory() == Path("/c/ramet")

    def test_an_xdg_data_home_is_enough(self, nobody: pytest.MonkeyPatch, tmp_path: Path) -> None:
        nobody.setenv("XDG_DATA_HOME", str(tmp_path))
        assert config.home_directory() == tmp_path / "ramet"
        assert config.cache_directory() == tmp_path / "ramet" / "cache"

    @pytest.mark.parametrize("home", ["/nonexistent", "/dev/null", "/dev/null/x"])
    def test_a_home_that_is_no_directory_is_not_made(self, bare: pytest.MonkeyPatch, home: str) -> None:
        bare.setenv("HOME", home)
        with pytest.raises(UnavailableError, match=f"RAMET_HOME isn't set, and HOME is {home}"):
            config.home_directory()
        assert not Path("/nonexistent").exists()

    def test_the_passwd_entry_stands_in_for_home(self, bare: pytest.MonkeyPatch) -> None:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        for value in (None, "", "relative", "~"):
            if value is not None:
                bare.setenv("HOME", value)
            assert config.home_directory() == home / ".local/share/ramet"

    def test_empty_is_unset(self, bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
        bare.setenv("HOME", str(tmp_path))
        for name in PATHS[:-1]:
            bare.setenv(name, "")
        assert config.home_directory() == tmp_path / ".local/share/ramet"
        assert config.cache_directory() == tmp_path / ".cache/ramet"
        for name in ("RAMET_AGENT", "RAMET_KERNEL", "RAMET_DRIVER", "RAMET_QEMU"):
            bare.setenv(name, "")
        assert config.agent_binary() is config.kernel_image() is None
        assert (config.driver(), config.qemu_binary()) == ("auto", "qemu-system-x86_64")

    @pytest.mark.parametrize("value", ["x", "./x", "~/x", "~nobody/x"])
    def test_a_relative_xdg_directory_is_ignored(
        self, bare: pytest.MonkeyPatch, tmp_path: Path, value: str
    ) -> None:
        bare.setenv("HOME", str(tmp_path))
        bare.setenv("XDG_DATA_HOME", value)
        bare.setenv("XDG_CACHE_HOME", value)
        assert config.home_directory() == tmp_path / ".local/share/ramet"
        assert config.cache_directory() == tmp_path / ".cache/ramet"

    def test_a_tilde_is_what_a_shell_makes_of_it(self, bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
        bare.setenv("HOME", str(tmp_path))
        bare.setenv("RAMET_HOME", "~/mine")
        assert config.home_directory() == tmp_path / "mine"
        bare.setenv("RAMET_HOME", "~root")
        assert config.home_directory() == Path(pwd.getpwnam("root").pw_dir)
        bare.setenv("RAMET_HOME", "~no-such-user/x")
        with pytest.raises(
            UnavailableError, match=r"RAMET_HOME is '~no-such-user/x'.* no user 'no-such-user'"
        ):
            config.home_directory()

    @pytest.mark.parametrize("variable", ["RAMET_HOME", "RAMET_CACHE"])
    def test_a_relative_one_stays_where_it_was(
        self, bare: pytest.MonkeyPatch, tmp_path: Path, variable: str
    ) -> None:
        find = config.home_directory if variable == "RAMET_HOME" else config.cache_directory
        bare.setenv(variable, f"a-{tmp_path.name}")
        bare.chdir(tmp_path)
        assert find() == tmp_path / f"a-{tmp_path.name}"
        bare.chdir("/")
        assert find() == tmp_path / f"a-{tmp_path.name}"

    def test_without_a_working_directory_a_relative_one_is_an_error(
        self, bare: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        bare.chdir(gone)
        gone.rmdir()
        bare.setenv("RAMET_HOME", f"a-{tmp_path.name}")
        with pytest.raises(UnavailableError, match=r"RAMET_HOME is .* the working directory is gone"):
            config.home_directory()
        bare.setenv("RAMET_HOME", "/absolute")
        assert config.home_directory() == Path("/absolute")


class TestPrograms:
    def find(self, name: str = "prog", **options: object) -> str:
        return Program("Prog", name, hint="install it", setting="RAMET_QEMU", **options).path()  # type: ignore[arg-type]

    def test_a_path_means_the_directory_in_which_it_was_first_seen(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        name = f"q-{tmp_path.name}"
        script(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("RAMET_QEMU", f"./{name}")
        wanted = Program("Prog", "prog", hint="-", setting="RAMET_QEMU")
        monkeypatch.chdir("/")
        assert Path(wanted.path()) == tmp_path / name
        assert Path(self.find()) == tmp_path / name

    @pytest.mark.parametrize("entry", ["", ".", "bin"])
    def test_relative_and_empty_entries_of_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str
    ) -> None:
        programs._from_here.cache_clear()
        monkeypatch.delenv("RAMET_QEMU", raising=False)
        directory = tmp_path / entry
        directory.mkdir(exist_ok=True)
        script(directory / "prog")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", f"/nowhere:{entry}")
        found = self.find()
        assert Path(found).is_absolute()
        assert Path(found).samefile(directory / "prog")
        monkeypatch.chdir("/")
        assert self.find() == found
        programs._from_here.cache_clear()

    def test_an_empty_path_is_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert self.find("sh") in {f"{directory}/sh" for directory in os.defpath.split(":")}

    def test_what_cannot_run_is_passed_over_and_named_where_nothing_else_is(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("RAMET_QEMU", raising=False)
        for name in "abc":
            (tmp_path / name).mkdir()
        script(tmp_path / "a/prog", mode=0o644)
        (tmp_path / "b/prog").mkdir()
        monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c")
        with pytest.raises(UnavailableError, match=rf"{tmp_path}/a/prog may not be executed"):
            self.find()
        good = script(tmp_path / "c/prog")
        assert self.find() == str(good)

    def test_an_error_names_the_variable_the_value_and_the_reason(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "directory").mkdir()
        (tmp_path / "dangling").symlink_to("nothing")
        os.mkfifo(tmp_path / "fifo")
        script(tmp_path / "plain", mode=0o644)
        script(tmp_path / "orphan", interpreter="/nowhere/sh -e")
        for name, why in {
            "missing": "isn't there",
            "plain/x": "isn't there",
            "directory": "is a directory",
            "dangling": "is a link to nothing",
            "fifo": "is no regular file",
            "plain": "may not be executed",
            "orphan": "is a script whose interpreter /nowhere/sh isn't there",
        }.items():
            monkeypatch.setenv("RAMET_QEMU", f"{tmp_path}/{name}")
            with pytest.raises(UnavailableError) as caught:
                self.find()
            assert f"RAMET_QEMU says {tmp_path}/{name}, which {why}" in caught.value.message
            assert "RAMET_QEMU" in str(caught.value.hint)

    def test_a_link_is_followed(self, tmp_path: Path) -> None:
        script(tmp_path / "real")
        (tmp_path / "link").symlink_to("real")
        assert why_not(str(tmp_path / "link")) is None

    def test_a_name_in_the_setting_is_looked_for_on_path_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script(tmp_path / "mine")
        monkeypatch.setenv("RAMET_QEMU", "mine")
        with pytest.raises(UnavailableError, match=r"RAMET_QEMU says 'mine', and mine is not on PATH"):
            self.find(beside=[tmp_path])
        monkeypatch.setenv("RAMET_QEMU", "")
        assert self.find("mine", beside=[tmp_path]) == str(tmp_path / "mine")

    def test_without_pythons_own_program_the_reason_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "")
        with pytest.raises(UnavailableError, match="Python's own program isn't known"):
            programs.python()

    def test_what_starts_elsewhere_is_given_absolute_paths(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("RAMET_CACHE", f"c-{tmp_path.name}")
        monkeypatch.setenv("RAMET_QEMU", "qemu")
        given = programs.environment()
        assert given["RAMET_CACHE"] == str(tmp_path / f"c-{tmp_path.name}")
        assert given["RAMET_QEMU"] == "qemu"
        assert all(entry.startswith("/") for entry in given["PATH"].split(":"))


def test_only_these_files_start_processes_or_look_for_programs() -> None:
    """`ramet.system.outside` runs outside programs; the others start ramet's own processes and VMMs."""
    may = {
        *("system/outside.py", "system/spawn.py", "system/launching.py"),
        *(
            "system/pause_watchdog.py",
            "system/owners.py",
            "system/owner_watcher.py",
            "engine/maintenance/requests.py",
        ),
        "testing/driver_contract/another_process.py",
        "oci/credentials.py",  # Docker's configuration names a helper, which is looked for on PATH
    }
    source = Path(programs.__file__).parent
    starts = re.compile(
        r"^\s*(import subprocess|from subprocess)|\b(run_process|open_process|shutil\.which|posix_spawn"
        r"|create_subprocess_\w+|os\.(system|popen|spawn\w+|fork|forkpty|exec\w+))\(",
        re.MULTILINE,
    )
    found = {
        str(path.relative_to(source)) for path in source.rglob("*.py") if starts.search(path.read_text())
    }
    assert found <= may


def test_ramet_alone_needs_no_home(nobody: pytest.MonkeyPatch) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in PATHS}
    for word in ("--version", "--help"):
        words = [sys.executable, "-m", "ramet.cli.main", word]
        assert subprocess.run(words, env=environment, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["-I"], ["-OO"], ["-X", "dev", "-W", "error"], ["-P"], ["-S", "-E"]], ids=" ".join
)
def test_it_runs_as_a_module(tmp_path: Path, options: list[str]) -> None:
    """However Python is started, and from a directory that is gone."""
    if "-S" in options:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        options = ["-S", "-c", f"import sys; sys.path[:] = {path.split(os.pathsep)}; import ramet.__main__"]
    else:
        options = [*options, "-m", "ramet"]
    environment = {**os.environ, "RAMET_HOME": str(tmp_path / "home"), "RAMET_CACHE": str(tmp_path / "cache")}
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    for words in ([] if options else [["image", "ls"]]) + [["ps", "-a"]]:
        done = subprocess.run(
            ["sh", "-c", script, tmp_path / "gone", sys.executable, *options, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        # In its debug mode asyncio tells of what takes long, as here on a busy machine.
        said = [line for line in done.stderr.splitlines() if not line.startswith(b"Executing <")]
        assert (done.returncode, said) == (0, []), done
        assert done.stdout.startswith(b"NAME")


@pytest.mark.vm
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", marks=pytest.mark.deep),
        pytest.param("./q", marks=pytest.mark.deep),
        *("q", "./directory", "./nothing", "./plain", "./orphan"),
    ],
)
def test_doctor_and_run_agree(tmp_path: Path, home: Path, value: str) -> None:
    """`q` is found by an empty entry of PATH, which is the working directory."""
    real = Program("QEMU", "qemu-system-x86_64", hint="-").path()
    (tmp_path / "q").symlink_to(real)
    (tmp_path / "directory").mkdir()
    script(tmp_path / "plain", mode=0o644)
    script(tmp_path / "orphan", interpreter="/nowhere/sh")
    environment = {
        **os.environ,
        "RAMET_HOME": str(home),
        "RAMET_DRIVER": "qemu",
        "RAMET_QEMU": value,
        "PATH": f":{os.environ['PATH']}",
    }

    def ramet(*words: str) -> subprocess.CompletedProcess[bytes]:
        return preloaded.run(
            "ramet.cli.main", words, environment=environment, directory=tmp_path, limit_s=120
        )

    drivers = {driver["name"]: driver for driver in json.loads(ramet("doctor", "--json").stdout)["drivers"]}
    done = ramet("run", "--rm", "builtin", "true")
    if drivers["qemu"]["usable"]:
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        assert done.returncode == 125  # ramet's own trouble, where a command's exit code is returned
        assert drivers["qemu"]["reason"].split(" (")[0] in done.stderr.decode()
        for word in ("RAMET_QEMU", value, str(tmp_path / value)):
            assert word in done.stderr.decode()
            assert word in drivers["qemu"]["reason"]
    assert drivers["qemu"]["usable"] == (value in ("", "./q", "q"))


@pytest.mark.vm
def test_a_program_that_ignores_sigchld_and_blocks_signals(home: Path) -> None:
    """Boots, makes disks, forks; its handlers and its mask are its own. Its VMMs hear signals."""
    code = (
        "import asyncio, os, signal, ramet\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "mine = signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM, signal.SIGRTMIN})\n"
        "async def main():\n"
        "    async with ramet.Host() as host:\n"
        "        vm = await host.run('builtin', disks=['16M:/data'])\n"
        "        template = await vm.template()\n"
        "        fork, = await template.fork(1)\n"
        "        print((await fork.exec('sh', '-c', 'echo x > /data/x; cat /data/x')).text.strip())\n"
        "        status = open(f'/proc/{(await fork.info()).pid}/status').read()\n"
        "        blocked = int(status.partition('SigBlk:')[2].split()[0], 16)\n"
        "        print([n for n in (signal.SIGTERM, signal.SIGRTMIN) if blocked >> (n - 1) & 1])\n"
        "        print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN)\n"
        "        print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAMET_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=150,
        check=False,
    )
    if b"UnavailableError" in done.stderr:
        pytest.skip(done.stderr.decode())
    assert done.stderr == b""
    assert done.stdout == b"x\n[]\nTrue\n2\n"
