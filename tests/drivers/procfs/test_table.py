"""Which processes the table finds, on a folder that looks like /proc."""

import os
import threading
from contextlib import suppress
from typing import Any

import pytest

from cameleer.drivers.procfs import ProcessTable
from cameleer.errors import RecoverableError, TaskNotFound


@pytest.fixture
def fake(proc: Any) -> Any:
    proc.put(1, 0)
    proc.put(10, 1)
    proc.put(11, 10)
    proc.put(20, 1)
    return proc


def table_of(fake: Any) -> ProcessTable:
    return ProcessTable(str(fake.root))


def test_one_refresh_serves_all_who_come_with_the_same_tick(fake: Any) -> None:
    table = table_of(fake)
    table.track(10)
    tick = object()
    for _ in range(3):
        table.refresh(tick)
    assert table.scans == 1
    table.refresh(object())
    assert table.scans == 2


def test_a_tree_that_comes_within_a_tick_is_searched_for_at_once(fake: Any) -> None:
    table = table_of(fake)
    table.track(20)
    tick = object()
    table.refresh(tick)
    tree = table.track(10)
    table.refresh(tick)
    assert tree.pids == (10, 11)


def test_no_tree_means_no_scan(fake: Any) -> None:
    table = table_of(fake)
    table.refresh(object())
    table.untrack(table.track(10))
    table.refresh(object())
    assert table.scans == 0


def test_a_known_process_is_not_asked_for_its_parent_again(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    table.refresh()
    fake.put(11, 1)  # it became an orphan
    fake.put(12, 11)
    table.refresh()
    assert tree.pids == (10, 11, 12)


def test_a_parent_is_placed_before_its_child_whatever_their_numbers(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    fake.put(5, 7)
    fake.put(7, 9)
    fake.put(9, 11)
    table.refresh()
    assert tree.pids == (10, 11, 9, 7, 5)


def test_a_process_whose_parent_the_listing_lacks_is_looked_at_once_more(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    fake.put(31, 30)
    table.refresh()
    assert tree.pids == (10, 11)
    fake.put(30, 10)
    table.refresh()
    assert tree.pids == (10, 11, 30, 31)


def test_a_circle_of_parents_ends(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    fake.put(30, 31)
    fake.put(31, 30)
    table.refresh()
    assert tree.pids == (10, 11)


def test_a_new_process_with_an_old_pid_is_judged_by_its_own_parent(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    table.refresh()
    tree.usage()
    fake.end(11)
    fake.put(11, 20, start=500)
    fake.put(12, 11)
    table.refresh()
    tree.usage()
    assert tree.pids == (10,)
    fake.end(20)
    fake.put(20, 10, start=600)
    table.refresh()
    tree.usage()
    assert tree.pids == (10, 20)


def test_a_changed_inode_of_the_same_process_changes_nothing(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    table.refresh()
    tree.usage()
    fake.forget(11)
    fake.put(11, 1, start=11)
    table.refresh()
    tree.usage()
    assert tree.pids == (10, 11)
    assert tree.usage().seen == 2


def test_a_root_that_is_gone_takes_its_tree_along(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    table.refresh()
    tree.usage()
    fake.put(10, 1, start=999)
    fake.file(10, "stat").touch()
    with pytest.raises(TaskNotFound, match="process 10"):
        tree.usage()
    with pytest.raises(TaskNotFound):
        tree.extended()


def test_a_garbled_line_fails_this_refresh_only(fake: Any) -> None:
    table = table_of(fake)
    tree = table.track(10)
    fake.put(12, 10)
    whole = fake.file(12, "stat").read_text()
    fake.file(12, "stat").write_text(whole[:20])
    tick = object()
    with pytest.raises(RecoverableError, match="12/stat"):
        table.refresh(tick)
    fake.file(12, "stat").write_text(whole)
    table.refresh(tick)
    assert tree.pids == (10, 11, 12)


def test_a_missing_proc_is_recoverable(fake: Any) -> None:
    table = table_of(fake)
    table.track(10)
    fake.root.rename(fake.root.with_name("elsewhere"))
    with pytest.raises(RecoverableError, match="cannot list"):
        table.refresh()


def test_a_strange_proc_is_scanned_each_time_since_its_last_pid_says_nothing(fake: Any) -> None:
    (fake.root / "loadavg").write_text("0 0 0 1/1 20\n")
    table = table_of(fake)
    table.track(10)
    for _ in range(5):
        table.refresh()
    assert table.scans == 5


@pytest.fixture
def own(fake: Any) -> Any:
    """A proc of this process's own namespace, as it looks."""
    (fake.root / "self").symlink_to(str(os.getpid()))
    (fake.root / "loadavg").write_text("0 0 0 1/1 20\n")
    return fake


def test_nothing_is_listed_while_nothing_was_created(own: Any) -> None:
    table = table_of(own)
    tree = table.track(10)
    table.refresh()
    table.refresh()  # settles what was under way while the first listing was taken
    for _ in range(5):
        table.refresh()
    assert table.scans == 2
    own.put(21, 10)
    (own.root / "loadavg").write_text("0 0 0 1/1 21\n")
    table.refresh()
    assert table.scans == 3
    assert 21 in tree.pids


def test_a_process_that_shows_up_after_its_pid_was_given_out_is_found(own: Any) -> None:
    table = table_of(own)
    tree = table.track(10)
    table.refresh()
    table.refresh()
    (own.root / "loadavg").write_text("0 0 0 1/1 21\n")
    table.refresh()
    own.put(21, 10)
    table.refresh()
    assert 21 in tree.pids


def test_a_listing_is_forced_now_and_then(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(own)
    tree = table.track(10)
    table.refresh()
    table.refresh()
    own.put(20, 10, start=700)  # all pids were used up in between
    own.end(20)
    own.put(20, 10, start=700)
    table.refresh()
    assert 20 not in tree.pids
    table._scan_due_ns = 0
    table.refresh()
    assert 20 in tree.pids


@pytest.mark.parametrize("last", [12, 3])
def test_below_a_young_root_only_younger_pids_are_read(own: Any, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    monkeypatch.setattr("cameleer.drivers.procfs.table.YOUNG_TICKS", 1e18)
    own.put(9, 1)
    own.put(12, 11)
    if last == 3:  # the pids began anew
        own.put(2, 10)
        own.put(3, 2)
    (own.root / "loadavg").write_text(f"0 0 0 1/1 {last}\n")
    own.file(9, "stat").write_text("not read")
    table = table_of(own)
    tree = table.track(10)
    table.refresh()
    assert set(tree.pids) == ({10, 11, 12} if last == 12 else {2, 3, 10, 11, 12})


def test_untrack_does_not_wait_for_a_read_that_hangs_nor_close_under_it(fake: Any) -> None:
    os.mkfifo(fake.file(11, "io"))
    table = table_of(fake)
    tree = table.track(10)
    table.refresh()
    tree.usage()
    errors: list[BaseException] = []

    def kept() -> set[str]:
        links = set()
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the listing's own
                links.add(os.readlink(f"/proc/self/fd/{fd}"))
        return links & {str(fake.file(10, "stat")), str(fake.file(11, "stat"))}

    def read() -> None:
        try:
            tree.extended()
        except BaseException as error:
            errors.append(error)

    assert len(kept()) == 2
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    writer = os.open(fake.file(11, "io"), os.O_WRONLY)  # returns when the reader has opened it too
    try:
        table.untrack(tree)
        assert len(kept()) == 2
        table.track(20)
        table.refresh()  # others go on
        os.write(writer, b"rchar: 1\nsyscr: 1\nsyscw: 1\nread_bytes: 1\nwrite_bytes: 1\n")
    finally:
        os.close(writer)
    reader.join()
    assert errors == []
    assert kept() == set()
    table.close()
