"""A row for each process of a group."""

from __future__ import annotations

from pathlib import Path

import pytest
from inside import SLEEPER, ended, into_nested, nested_folder, ready

from cameleer.drivers.cgroup import rows as module
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.cgroup.rows import rows
from cameleer.errors import RecoverableError, TaskNotFound

LINE = "{pid} (a) S 1 1 1 0 -1 0 5 0 1 0 7 3 0 0 20 0 2 0 {start} 0 10 0\n"


def test_processes_of_a_group_and_of_those_inside(cgroups: Cgroups) -> None:
    group = cgroups.make("a", "t")
    processes = [ready(group, SLEEPER), ready(group, SLEEPER)]
    inner = nested_folder(group, "inner")
    into_nested(group, inner, processes[1].pid)
    for folder in group.paths.folders.values():
        found = rows(folder)
        assert [row.pid for row in found] == sorted(each.pid for each in processes)
        assert {row.state for row in found} == {"S"}
        assert all(row.rss_bytes and row.threads == 1 for row in found)
    group.remove()
    for each in processes:
        ended(each)
    with pytest.raises(TaskNotFound):
        rows(next(iter(group.paths.folders.values())))


def test_an_empty_group_has_none(cgroups: Cgroups) -> None:
    group = cgroups.make("a", "t")
    assert rows(next(iter(group.paths.folders.values()))) == ()
    group.remove()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A group of five processes; the third has ended, and the fourth's line is to be written."""
    (tmp_path / "cgroup.procs").write_text("5\n3\n4\n1\n2\n")
    for pid in (1, 2, 5):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(LINE.format(pid=pid, start=pid * 10))
    (tmp_path / "4").mkdir()
    return tmp_path


def test_a_process_that_ended_meanwhile_has_no_row(folder: Path) -> None:
    found = rows(str(folder), str(folder))
    assert [(row.pid, row.start_ticks, row.threads) for row in found] == [(1, 10, 2), (2, 20, 2), (5, 50, 2)]
    assert found[0].user_ns == 70_000_000


def test_there_are_so_many_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    assert [row.pid for row in rows(str(folder), str(folder))] == [1, 2]


def test_a_garbled_line_is_an_error_that_may_pass(folder: Path) -> None:
    (folder / "4/stat").write_text("4 (a")
    with pytest.raises(RecoverableError, match="4/stat"):
        rows(str(folder), str(folder))
