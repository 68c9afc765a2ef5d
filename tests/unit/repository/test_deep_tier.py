"""The deep tier: which parts a change calls for; a part ends when its time is up, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools import deep
from tools.deep_parts import PARTS, SEED_CASE, Part, covers, named

from ramet import config
from tests.support.copied_packages import ROOT

ONE = Part("one", ("tests/one",), ("src/engine/",), 1)
OTHER = Part("other", ("tests/other",), ("src/cli/", "pyproject.toml"), 1)


class Repository:
    """A real one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "--quiet", "--initial-branch=main", os.fspath(path))

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(
            ["git", "-C", os.fspath(self.path), *who, *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        """Write files (`__` for a slash) and commit everything; the commit's id."""
        for name, text in files.items():
            file = self.path / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")
        return self.git("rev-parse", "HEAD")

    def base(self, commit: str) -> None:
        (self.path / deep.BASE).parent.mkdir(exist_ok=True)
        (self.path / deep.BASE).write_text(f"{commit}\n")

    def called_for(self) -> list[str]:
        return [part.name for part in deep.called_for([ONE, OTHER], deep.changed_since_base(self.path))]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository")


def test_a_change_calls_for_the_parts_of_its_paths(repository: Repository) -> None:
    repository.base(repository.commit(src__engine__a="1", src__cli__b="1", docs__c="1"))
    repository.commit(docs__c="2")
    assert repository.called_for() == []
    repository.commit(src__cli__b="2")
    assert repository.called_for() == ["other"]
    repository.commit(tests__one__test_a="1")
    assert repository.called_for() == ["one", "other"]


def test_a_file_that_is_moved_away_calls_for_the_part_of_its_old_place(repository: Repository) -> None:
    repository.base(repository.commit(src__engine__a="something\n" * 9))
    (repository.path / "docs").mkdir()
    repository.git("mv", "src/engine/a", "docs/a")
    repository.commit()
    assert repository.called_for() == ["one"]


def test_what_is_not_committed_counts(repository: Repository) -> None:
    repository.base(repository.commit(src__engine__a="1", src__cli__b="1"))
    (repository.path / "src/engine/a").write_text("2")
    assert repository.called_for() == ["one"]
    (repository.path / "src/cli/new").touch()
    assert repository.called_for() == ["one", "other"]


def test_without_the_base_all_parts_count_as_changed(repository: Repository, tmp_path: Path) -> None:
    first = repository.commit(docs__a="1")
    repository.commit(docs__a="2")
    assert repository.called_for() == ["one", "other"], "there is no base"
    repository.base("0" * 40)
    assert repository.called_for() == ["one", "other"], "no such commit"
    repository.base("--all")
    assert repository.called_for() == ["one", "other"], "no commit at all"
    repository.base(first)
    repository.commit()
    assert repository.called_for() == []
    shallow = tmp_path / "shallow"
    where = (repository.path.as_uri(), os.fspath(shallow))
    subprocess.run(["git", "clone", "--quiet", "--depth=1", *where], check=True, timeout=60)
    assert deep.changed_since_base(shallow) is None
    assert deep.changed_since_base(tmp_path) is None, "no repository"


def test_the_base_is_what_was_tested(repository: Repository) -> None:
    commit = repository.commit(src__engine__a="1", tests__deep="")
    (repository.path / "tests/deep").unlink()
    assert "not everything" in deep.set_base(repository.path)
    repository.git("checkout", "--quiet", ".")
    assert commit in deep.set_base(repository.path)
    assert repository.called_for() == []


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """Parts that were begun, and their limits; each is green, and takes seven minutes."""
    found: list[tuple[str, float | None]] = []
    now = [1000.0]

    def run(words: object, *, limit_s: float | None, root: Path) -> deep.Outcome:
        found.append((str(words), limit_s))
        took = 7 * 60.0 if limit_s is None else min(7 * 60.0, limit_s)
        now[0] += took
        return deep.Outcome(0 if took == 7 * 60 else 2, ended=took < 7 * 60)

    monkeypatch.setattr(deep, "run", run)
    monkeypatch.setattr(deep, "uptime_s", lambda: now[0])
    return found


def test_the_minutes_of_continuous_integration(
    ran: list[tuple[str, float | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    """From minute 17: at 17, 24, and at 31 nothing more; but the seed's case whenever it is."""
    assert deep.run_parts([ONE, OTHER, ONE, OTHER], began_s=1000 - 17 * 60)
    assert len(ran) == 2
    assert capsys.readouterr().out.count("left out") == 2
    assert deep.run_parts([ONE, SEED_CASE], began_s=1000 - (35 - 14) * 60)
    [(words, limit_s)] = ran[2:]
    assert SEED_CASE.tests[0] in words
    assert limit_s is not None
    assert deep.run_parts([ONE]), "without continuous integration there are no limits"
    assert ran[-1][1] is None


def test_a_part_that_runs_at_the_end_is_ended(
    ran: list[tuple[str, float | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert deep.run_parts([SEED_CASE], began_s=1000 - 40 * 60)
    [(_, limit_s)] = ran
    assert limit_s is not None
    assert 3 * 60 < limit_s < 4 * 60
    assert "ended" in capsys.readouterr().out


def test_the_outcome() -> None:
    assert deep.Outcome(0).ok
    assert deep.Outcome(5).ok, "there was nothing to run"
    assert not deep.Outcome(1).ok
    assert deep.Outcome(2, ended=True).ok
    assert not deep.Outcome(2, ("tests/a.py::b",), ended=True).ok


LEAVES = """
import os, subprocess, sys, time
home, ready = sys.argv[1:]
os.mkdir(home)
sleeping = "import time; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleeping, home], start_new_session=True)
subprocess.Popen([sys.executable, "-c", sleeping, home], start_new_session=True, cwd=home, env={})
with open(os.environ["RAMET_TESTS_FAILED"], "a") as failed:
    failed.write("tests/a.py::b\\n")
try:
    time.sleep(600)
finally:
    open(ready, "w").write("interrupted")
    with open(os.environ["RAMET_TESTS_FAILED"], "a") as failed:
        failed.write("tests/a.py::interrupted\\n")
"""


@pytest.mark.slow
@pytest.mark.timing
def test_an_ended_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon goes by its environment, one without any by the home that it works in; a test that fails since
    it is interrupted doesn't count.
    """
    monkeypatch.setenv("RAMET_CACHE", os.fspath(tmp_path))
    home, ready = tmp_path / "tests-x", tmp_path / "ready"
    words = [sys.executable, "-c", LEAVES, os.fspath(home), os.fspath(ready)]
    outcome = deep.run(words, limit_s=5)
    assert outcome.ended
    assert outcome.failed == ("tests/a.py::b",)
    assert ready.read_text() == "interrupted"
    assert not home.exists()
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True, timeout=60)
    assert os.fspath(home) not in done.stdout


def test_a_run_that_is_not_asked_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_CACHE", os.fspath(tmp_path))
    assert deep.run([sys.executable, "-c", "raise SystemExit(3)"]) == deep.Outcome(3)


def test_every_deep_test_is_in_one_part() -> None:
    """What is alone in one, what no other names in another, and no file in two."""
    assert [part.tests for part in PARTS if part.alone] == [("tests",)]
    [rest] = [part for part in PARTS if part.rest]
    assert rest.tests == ("tests",)
    paths = named(PARTS)
    ignored = {word for word in rest.pytest_words() if word.startswith("--ignore")}
    assert ignored == {f"--ignore={path}" for path in paths}
    for path in paths:
        assert [other for other in paths if covers(other, path)] == [path]
    assert rest.called_for_by(["tests/somewhere/test_new.py"])
    assert not rest.called_for_by([f"{paths[0]}"])


def test_every_path_is_there() -> None:
    """With something in it: a folder that was moved away may have left its bytecode."""
    for part in PARTS:
        for path in (*part.tests, *part.paths):
            found = ROOT / path
            if path.endswith("/"):
                assert any(path.is_file() and path.suffix != ".pyc" for path in found.rglob("*")), (
                    f"{part.name}: {path}"
                )
            else:
                assert found.exists(), f"{part.name}: {path}"


def test_the_cache_is_where_homes_are_made() -> None:
    """Where `Leftovers` looks for them."""
    source = (ROOT / "tests" / "conftest.py").read_text()
    assert 'prefix="tests-", dir=cache' in source
    assert config.cache_directory().is_absolute()
