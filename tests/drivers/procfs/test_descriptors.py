"""What is opened, kept, and given back."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cameleer.driver import Tick
from cameleer.drivers.procfs import ProcessTable, TreeCounters

StartScript = Callable[[str], Any]

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.scandir", "os.listdir"):
        _opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_hook)


@contextmanager
def recorded() -> Iterator[list[str]]:
    global _opened
    _opened = opened = []
    try:
        yield opened
    finally:
        _opened = None


@pytest.fixture
def family(script: StartScript) -> Any:
    """A root with four children."""
    root = script("for _ in range(4): child(signal.pause)\nsay('up')\nwhile hear(): say(child(signal.pause))")
    root.hear()
    return root


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_closing_gives_every_descriptor_back(family: Any) -> None:
    before = descriptors()
    table = ProcessTable()
    trees = [table.track(family.pid) for _ in range(3)]
    table.refresh()
    for tree in trees:
        tree.usage()
        tree.extended()
        tree.pss()
    assert len(descriptors()) == len(before) + 15 + 2  # the last pid and a spare one
    table.untrack(trees[0])
    assert len(descriptors()) == len(before) + 10 + 2
    table.close()
    table.close()
    assert descriptors() == before


def test_members_that_end_give_their_descriptors_back(table: ProcessTable, script: StartScript) -> None:
    root = script("subreaper()\nsay('up')\nwhile hear(): os.waitpid(child(lambda: 0), 0); say('ended')")
    root.hear()
    tree = table.track(root.pid)
    table.refresh()
    tree.usage()
    before = len(descriptors())
    for _ in range(20):
        root.say("go")
        table.refresh()
        tree.usage()
        root.hear()
        tree.usage()
    assert len(descriptors()) == before


def test_a_root_that_is_gone_gives_the_descriptors_of_its_tree_back(table: ProcessTable, family: Any) -> None:
    counters = TreeCounters(table, family.pid)
    counters.read(Tick(1))
    before = len(descriptors())
    family.kill()
    counters.read(Tick(2))
    assert len(descriptors()) <= before - 4


def test_a_reading_opens_nothing_and_reads_one_line_for_each_process(
    table: ProcessTable, family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = TreeCounters(table, family.pid)
    for at_ns in range(3):
        counters.read(Tick(at_ns))
    pread, reads = os.pread, []

    def counting(fd: int, size: int, offset: int) -> bytes:
        reads.append(fd)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    for at_ns in range(100):  # somebody else on the machine may create a process at any time
        reads.clear()
        scans = table.scans
        with recorded() as opened:
            counters.read(Tick(at_ns))
        if table.scans == scans:
            break
    else:
        pytest.skip("others created processes all the time")
    assert opened == []
    assert len(reads) == 1 + 5
    assert len(set(reads)) == 6


def test_a_scan_lists_once_and_opens_what_is_new(table: ProcessTable, family: Any) -> None:
    trees = [table.track(family.pid) for _ in range(10)]
    for _ in range(3):
        table.refresh()
    child = family.ask("more")[0]
    with recorded() as opened:
        table.refresh()
    assert opened.count("os.scandir /proc") == 1
    assert opened.count(f"open /proc/{child}/stat") == 1
    assert not any(f"/{member}/" in line for member in trees[0].pids[:5] for line in opened)


def test_below_a_young_root_nothing_old_is_opened(table: ProcessTable, script: StartScript) -> None:
    root = script("say('up'); signal.pause()")
    root.hear()
    for _ in range(20):  # a machine that is very busy makes it old before it is seen
        tree = table.track(root.pid)
        with recorded() as opened:
            table.refresh()
        if f"open /proc/{os.getpid()}/stat" not in opened:
            break
        table.untrack(tree)
        root = script("say('up'); signal.pause()")
        root.hear()
    else:
        pytest.skip("the machine is too busy")
    assert "open /proc/1/stat" not in opened


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Leave so many descriptors free, counting the spare one of a table as taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(int(fd) for fd in descriptors()) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                break
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reading_goes_on_when_descriptors_are_used_up(table: ProcessTable, family: Any) -> None:
    warm = table.track(os.getpid())
    table.refresh()
    warm.usage()
    with few_descriptors(1):
        counters = TreeCounters(table, family.pid, memory="pss")
        for fresh in (True, False, True):
            reading = counters.read(Tick(0, extended=True, fresh=fresh))
            assert reading.processes.processes == 5
            assert reading.memory.pss_bytes
        child = int(family.ask("more")[0])
        reading = counters.read(Tick(1, fresh=True, per_process=True))
        assert reading.per_process is not None
        assert child in [row.pid for row in reading.per_process]
    assert counters.read(Tick(2, fresh=True)).processes.processes == 6
    counters.close()


def test_with_many_processes_half_of_the_descriptors_are_left_to_others(table: ProcessTable, family: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(descriptors())
    limit = max(int(fd) for fd in descriptors()) + 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        trees = [table.track(family.pid) for _ in range(16)]
        table.refresh()
        assert [tree.usage().processes for tree in trees] == [5] * 16
        assert len(descriptors()) <= before + limit // 2 + 1
        table.refresh()
        assert [tree.usage().processes for tree in trees] == [5] * 16
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
