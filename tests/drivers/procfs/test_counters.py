"""A tree as the counters of the contract."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cameleer.driver import Tick
from cameleer.drivers.procfs import PAGE_BYTES, ProcessTable, TreeCounters
from cameleer.errors import TaskNotFound, UnrecoverableError

StartScript = Callable[[str], Any]
MIB = 1 << 20


def fresh() -> Tick:
    return Tick(time.monotonic_ns(), extended=True, fresh=True)


def plain() -> Tick:
    return Tick(time.monotonic_ns())


def extended() -> Tick:
    return Tick(time.monotonic_ns(), extended=True)


def test_a_first_reading_has_every_group(table: ProcessTable, script: StartScript) -> None:
    root = script("child(signal.pause); say('up'); signal.pause()")
    root.hear()
    before_ns, before_unix_ns = time.monotonic_ns(), time.time_ns()
    counters = TreeCounters(table, root.pid).read(plain())
    assert before_ns <= counters.at_ns <= time.monotonic_ns()
    assert before_unix_ns <= counters.taken_at_ns <= time.time_ns()
    assert counters.memory_at_ns is counters.extended_at_ns is None
    assert dict(counters.missing) == {"network": "unsupported", "pressure": "unsupported"}
    assert counters.cpu.total_ns is not None
    assert counters.memory.measure == "rss_sum"
    assert counters.memory.in_use_bytes == counters.memory.rss_bytes
    assert counters.memory.swap_bytes is not None
    assert counters.memory.minor_faults
    assert counters.io.read_ops
    assert counters.processes.processes == counters.processes.threads == counters.processes.seen == 2
    assert counters.processes.voluntary_switches is not None
    assert counters.per_process is None


def test_shared_pages_count_once_in_pss_and_often_in_the_sum(table: ProcessTable, script: StartScript) -> None:
    root = script("""
memory = bytearray(50 << 20)
for _ in range(4):
    child(signal.pause)
say('up')
signal.pause()
""")
    root.hear()
    pss = TreeCounters(table, root.pid, memory="pss").read(fresh()).memory
    rss = TreeCounters(table, root.pid, memory="rss").read(fresh()).memory
    assert pss.measure == "pss"
    assert pss.in_use_bytes == pss.pss_bytes
    assert 50 * MIB < (pss.pss_bytes or 0) < 70 * MIB
    assert rss.measure == "rss_sum"
    assert (rss.rss_bytes or 0) > 250 * MIB
    assert (rss.pss_bytes or 0) == pytest.approx(pss.pss_bytes, rel=0.05)


def test_the_second_tier_is_handed_over_under_its_own_time(table: ProcessTable, script: StartScript) -> None:
    root = script("say('up')\nwhile True:\n    hear()\n    say(child(signal.pause))")
    root.hear()
    counters = TreeCounters(table, root.pid)
    first = counters.read(fresh())
    root.ask("more")
    second = counters.read(plain())
    assert second.extended_at_ns == first.at_ns < second.at_ns
    assert second.io is first.io
    assert second.processes is first.processes
    assert second.memory.pss_bytes == first.memory.pss_bytes
    assert (second.memory.rss_bytes or 0) > (first.memory.rss_bytes or 0)
    third = counters.read(fresh())
    assert third.extended_at_ns is None
    assert third.processes.processes == 2


def test_what_is_dear_is_not_read_so_often_that_it_costs_much(
    table: ProcessTable, script: StartScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cameleer.drivers.procfs.counters.THRIFT", 10**9)
    root = script("say('up'); memory = bytearray(int(hear())); say('more'); signal.pause()")
    root.hear()
    counters = TreeCounters(table, root.pid, memory="pss", process_stats_ttl_s=0)
    first = counters.read(fresh())
    root.ask(str(30 << 20))
    for tick in (plain(), extended()):
        later = counters.read(tick)
        assert later.memory_at_ns == later.extended_at_ns == first.at_ns
        assert later.memory.pss_bytes == first.memory.pss_bytes
    asked = counters.read(fresh())
    assert asked.memory_at_ns is asked.extended_at_ns is None
    assert (asked.memory.pss_bytes or 0) > (first.memory.pss_bytes or 0) + 25 * MIB


def test_pss_follows_memory_that_changed_and_else_waits_for_its_ttl(
    table: ProcessTable, script: StartScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cameleer.drivers.procfs.counters.THRIFT", 0)
    root = script("say('up'); memory = bytearray(int(hear())); say('more'); signal.pause()")
    root.hear()
    counters = TreeCounters(table, root.pid, memory="pss", process_stats_ttl_s=3600)
    first = counters.read(plain())
    same = counters.read(plain())
    assert same.memory_at_ns == first.at_ns
    root.ask(str(30 << 20))
    more = counters.read(plain())
    assert more.memory_at_ns is None
    assert (more.memory.pss_bytes or 0) > (first.memory.pss_bytes or 0) + 25 * MIB


def test_pss_is_read_again_after_its_ttl(
    table: ProcessTable, script: StartScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cameleer.drivers.procfs.counters.THRIFT", 0)
    root = script("say('up'); signal.pause()")
    root.hear()
    counters = TreeCounters(table, root.pid, memory="pss", process_stats_ttl_s=0)
    counters.read(plain())
    assert counters.read(plain()).memory_at_ns is None


def test_a_peak_between_readings_is_seen_in_the_processes_own_peak(table: ProcessTable, script: StartScript) -> None:
    root = script("memory = bytearray(100 << 20); del memory; say('up'); signal.pause()")
    root.hear()
    for measure in ("rss", "pss"):
        memory = TreeCounters(table, root.pid, memory=measure).read(fresh()).memory
        assert 100 * MIB < (memory.peak_bytes or 0) < 130 * MIB
        assert (memory.rss_bytes or 0) < 50 * MIB


def test_a_peak_stays_when_memory_is_given_back(table: ProcessTable, script: StartScript) -> None:
    root = script("pid = child(signal.pause); say(pid); hear(); os.kill(pid, 9); os.wait(); say('less'); hear()")
    root.hear()
    counters = TreeCounters(table, root.pid)
    two = counters.read(plain()).memory
    assert two.peak_bytes == two.rss_bytes
    root.ask("less")
    one = counters.read(plain()).memory
    assert (one.rss_bytes or 0) < (two.rss_bytes or 0)
    assert one.peak_bytes == two.peak_bytes


def test_written_bytes_of_ended_children_are_kept(table: ProcessTable, script: StartScript, tmp_path: Any) -> None:
    root = script(f"""
def write():
    with open({str(tmp_path / "file")!r}, "wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
os.waitpid(child(write), 0)
say('written')
signal.pause()
""")
    root.hear()
    io = TreeCounters(table, root.pid).read(fresh()).io
    assert (io.write_ops or 0) > 0
    assert io.write_bytes in (0, 1 << 20) or (io.write_bytes or 0) > 1 << 20  # nothing on a file system in memory


def test_rows_are_given_when_the_tick_asks(table: ProcessTable, script: StartScript) -> None:
    root = script("say(child(signal.pause)); signal.pause()")
    child = int(root.hear()[0])
    counters = TreeCounters(table, root.pid)
    rows = counters.read(Tick(time.monotonic_ns(), per_process=True)).per_process
    assert rows is not None
    assert [row.pid for row in rows] == [root.pid, child]
    assert counters.read(plain()).per_process is None


def test_after_the_end_the_last_counters_are_the_answer_under_their_own_time(table: ProcessTable) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        counters = TreeCounters(table, process.pid)
        never_read = TreeCounters(table, process.pid)
        last = counters.read(fresh())
        process.kill()
    for tick in (plain(), fresh()):
        assert counters.read(tick) == last
    with pytest.raises(TaskNotFound):
        never_read.read(fresh())
    with pytest.raises(TaskNotFound):
        TreeCounters(table, process.pid)


def test_a_supervisor_without_a_task_says_what_the_task_used(table: ProcessTable, script: StartScript) -> None:
    root = script("say('up'); hear(); os.waitpid(child(lambda: spin(0.1)), 0); say('ended'); hear()")
    root.hear()
    counters = TreeCounters(table, root.pid, include_root=False, memory="pss")
    first = counters.read(fresh())
    assert first.processes.processes == 0
    assert first.memory.in_use_bytes == 0
    root.ask("go")
    last = counters.read(fresh())
    assert last.memory.measure == "pss"
    assert last.memory.in_use_bytes == 0
    assert (last.cpu.total_ns or 0) >= 0.09e9
    assert last.cpu.total_ns == (last.cpu.user_ns or 0) + (last.cpu.system_ns or 0)


def test_closing_ends_reading_and_may_be_repeated(table: ProcessTable) -> None:
    counters = TreeCounters(table, os.getpid())
    counters.read(plain())
    counters.close()
    counters.close()
    with pytest.raises(UnrecoverableError):
        counters.read(plain())


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up what lets root read everything; nothing changes for anybody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_missing_and_the_rest_is_there(table: ProcessTable, script: StartScript) -> None:
    root = script("ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); say('not dumpable'); signal.pause()")
    root.hear()
    with as_nobody():
        counters = TreeCounters(table, root.pid, memory="pss")
        first = counters.read(fresh())
        again = counters.read(fresh())
    assert first.missing["io"] == "not permitted"
    assert first.io.read_bytes is None
    assert first.cpu.total_ns is not None
    assert first.memory.measure == "rss_sum", "the measure is one for the whole life of a task"
    assert first.memory.in_use_bytes
    assert again.missing is first.missing
    assert again.memory.measure == "rss_sum"


@pytest.fixture
def fake_counters(proc: Any) -> Callable[..., TreeCounters]:
    proc.put(10, 0, rss=100)
    proc.put(11, 10, rss=50)
    return lambda **options: TreeCounters(ProcessTable(str(proc.root)), 10, **options)


def test_a_kernel_without_pss_and_io_accounting_gives_the_sum_and_a_reason(
    fake_counters: Callable[..., TreeCounters],
) -> None:
    counters = fake_counters(memory="pss").read(fresh())
    assert counters.memory.measure == "rss_sum"
    assert counters.memory.in_use_bytes == 150 * PAGE_BYTES
    assert counters.memory.pss_bytes is None
    assert counters.missing["io"] == "unsupported"


def test_a_member_whose_pss_may_not_be_read_counts_with_its_resident_set(
    proc: Any, fake_counters: Callable[..., TreeCounters]
) -> None:
    proc.file(10, "smaps_rollup").write_text("x\nRss: 400 kB\nPss: 70 kB\n")
    memory = fake_counters(memory="pss").read(fresh()).memory
    assert memory.measure == "pss"
    assert memory.pss_bytes == 70 * 1024 + 50 * PAGE_BYTES


def test_a_short_command_is_measured_by_two_readings_at_little_cost(table: ProcessTable) -> None:
    """The readings of a 50 ms run: they must not cost more than a few of them."""
    with subprocess.Popen(["sleep", "60"]) as process:
        began = time.thread_time_ns()
        counters = TreeCounters(table, process.pid, memory="pss")
        counters.read(fresh())
        counters.read(fresh())
        cost_ns = time.thread_time_ns() - began
        process.kill()
    assert cost_ns < 20_000_000
