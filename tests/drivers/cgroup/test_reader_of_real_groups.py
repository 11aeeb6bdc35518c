"""The readers on groups of this machine's kernel, with real processes inside."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from inside import PATIENCE_S, SLEEPER, ended, file_of, into_nested, line, nested_folder, ready, start

from cameleer.config import Resources
from cameleer.driver import Tick
from cameleer.drivers.cgroup.group import Cgroups, Group
from cameleer.drivers.cgroup.network import NetworkCounters
from cameleer.drivers.cgroup.reader import CgroupCounters
from cameleer.errors import TaskNotFound
from cameleer.usage import NO_NETWORK, Counters

FRESH = Tick(0, extended=True, fresh=True)
MIB = 1 << 20
HOLD = f"""
held = bytearray({8 * MIB})
for at in range(0, len(held), 4096):
    held[at] = 1
print("ready", flush=True)
input()
"""
TOO_MUCH = f"""
input()
held = []
while True:
    held.append(b"x" * {MIB})
"""
BUSY_FOR = """
import time
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
print("ready", flush=True)
input()
"""

Open = Callable[[Group], CgroupCounters]


@pytest.fixture
def opened() -> Iterator[Open]:
    readers: list[CgroupCounters] = []

    def open_one(group: Group) -> CgroupCounters:
        readers.append(CgroupCounters(group.paths))
        return readers[-1]

    yield open_one
    for each in readers:
        each.close()


def soon(reader: CgroupCounters, is_it: Callable[[Counters], bool]) -> Counters:
    """Read until it is so; the kernel adds up small changes late."""
    until = time.monotonic() + PATIENCE_S
    while not is_it(counters := reader.read(FRESH)):
        assert time.monotonic() < until, counters
        select.select([], [], [], 0.05)
    return counters


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    ended(process)


def test_memory_and_cpu_time_of_a_process_are_seen(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t")
    reader = opened(group)
    assert reader.read(FRESH).cpu.total_ns == 0
    process = ready(group, BUSY_FOR)
    holder = ready(group, HOLD)
    try:
        counters = soon(reader, lambda each: (each.memory.rss_bytes or 0) > 8 * MIB)
        assert counters.cpu.total_ns is not None
        assert counters.cpu.total_ns >= 250_000_000
        assert counters.memory.usage_bytes is not None
        assert counters.memory.peak_bytes is not None
        assert counters.memory.usage_bytes <= counters.memory.peak_bytes
        assert counters.memory.minor_faults is not None
        assert counters.memory.minor_faults > 8 * MIB // 4096
        assert counters.processes.processes == counters.processes.threads == 2
    finally:
        end(process)
        end(holder)


def test_groups_that_a_task_makes_inside_its_own_are_counted(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t")
    process = start(group, f"input()\n{BUSY_FOR.replace('input()', '')}{HOLD}")
    try:
        inner = nested_folder(group, "inner")
        into_nested(group, inner, process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert line(process) == "ready"
        assert line(process) == "ready"
        counters = soon(opened(group), lambda each: (each.memory.rss_bytes or 0) > 8 * MIB)
        assert counters.cpu.total_ns is not None
        assert counters.cpu.total_ns >= 250_000_000
        assert counters.processes.processes == 1
        assert counters.processes.threads == 1
    finally:
        end(process)


def test_oom_kills_are_live_also_those_in_a_group_inside(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t", Resources(memory_bytes=24 * MIB))
    sleeper = ready(group, SLEEPER)
    reader = opened(group)
    assert reader.read(FRESH).memory.oom_kills == 0
    try:
        for nested, expected in ((False, 1), (True, 2)):
            victim = start(group, TOO_MUCH)
            if nested:
                into_nested(group, nested_folder(group, "inner"), victim.pid)
            assert victim.stdin is not None
            victim.stdin.write(b"\n")
            victim.stdin.flush()
            assert ended(victim) == -9
            until = time.monotonic() + PATIENCE_S
            while reader.read(FRESH).memory.oom_kills != expected:
                assert time.monotonic() < until
                select.select([], [], [], 0.05)
        assert reader.read(FRESH).memory.limit_bytes == 24 * MIB
        for folder in group.paths.folders.values():
            os.rmdir(f"{folder}/inner")
        assert reader.read(FRESH).memory.oom_kills == 2, "a removed group's kills stay"
    finally:
        end(sleeper)


def test_throttling_is_counted_under_a_quota(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t", Resources(cpu_quota_cores=0.2))
    reader = opened(group)
    process = ready(group, BUSY_FOR)
    try:
        cpu = reader.read(Tick(0)).cpu
        assert cpu.periods
        assert cpu.throttled_periods
        assert cpu.throttled_ns
        assert cpu.throttled_periods <= cpu.periods
    finally:
        end(process)


def test_limits_are_seen_when_they_change(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t", Resources(pids=7))
    reader = opened(group)
    before = reader.read(FRESH)
    assert before.processes.limit == 7
    assert before.memory.limit_bytes is None
    group.limit(Resources(memory_bytes=32 * MIB, memory_max_bytes=64 * MIB))
    after = reader.read(FRESH)
    assert after.memory.limit_bytes == 64 * MIB
    assert after.memory.soft_limit_bytes == 32 * MIB


def test_a_group_removed_while_its_files_are_open_is_not_found(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t")
    reader = opened(group)
    reader.read(FRESH)
    group.remove()
    for tick in (Tick(0), FRESH):
        with pytest.raises(TaskNotFound, match="removed"):
            reader.read(tick)


def test_a_group_of_the_same_name_made_since_is_another(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t")
    reader = opened(group)
    group.remove()
    again = cgroups.make("a", "t")
    with pytest.raises(TaskNotFound):
        reader.read(FRESH)
    assert opened(again).read(FRESH).cpu.total_ns == 0


def test_processes_are_counted_anew_although_the_file_was_read_just_now(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t")
    reader = opened(group)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for expected in range(3):
            assert reader.read(FRESH).processes.processes == expected
            processes.append(ready(group, SLEEPER))
    finally:
        for process in processes:
            end(process)


def test_every_file_of_the_table_that_this_kernel_has_is_read(cgroups: Cgroups, opened: Open) -> None:
    group = cgroups.make("a", "t")
    reader = opened(group)
    missing = reader.read(FRESH).missing
    assert missing.keys() <= {"network", "pressure", "io", "memory.peak_bytes", "memory.kernel_bytes"}
    assert file_of(group, "memory", "memory.stat").exists()


class TestNetwork:
    @pytest.fixture
    def namespace(self) -> Iterator[int]:
        """A process in a network namespace of its own."""
        program = shutil.which("unshare")
        if program is None:
            pytest.skip("there is no unshare(1)")
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        process = subprocess.Popen(
            [program, *user, "--net", "sh", "-c", "echo ready; read _"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                pytest.skip("no network namespace can be made")
            yield process.pid
        finally:
            end(process)

    def test_a_namespace_of_its_own_is_counted_and_the_loopback_left_out(self, namespace: int) -> None:
        counters = NetworkCounters(namespace)
        try:
            assert counters.missing is None
            usage = counters.read()
            assert usage.rx_bytes == usage.tx_bytes == usage.rx_drops == 0
            assert counters.read() is usage
        finally:
            counters.close()

    def test_it_goes_on_when_that_process_has_ended(self, namespace: int) -> None:
        counters = NetworkCounters(namespace)
        try:
            os.kill(namespace, 9)
            os.waitid(os.P_PID, namespace, os.WEXITED | os.WNOWAIT)
            assert counters.read().rx_bytes == 0
        finally:
            counters.close()

    @pytest.mark.parametrize("pid", [os.getpid(), 1])
    def test_the_hosts_numbers_are_never_given(self, pid: int) -> None:
        counters = NetworkCounters(pid)
        assert counters.missing in ("unsupported", "not permitted")
        assert counters.read() is NO_NETWORK
        counters.close()

    def test_a_process_that_is_gone_gives_nothing(self) -> None:
        process = subprocess.Popen(["true"])
        process.wait()
        counters = NetworkCounters(process.pid)
        assert counters.missing == "failed"
        assert counters.read() is NO_NETWORK
        counters.close()

    def test_readings_of_a_group_carry_it(self, namespace: int, cgroups: Cgroups) -> None:
        group = cgroups.make("a", "t")
        reader = CgroupCounters(group.paths, network_pid=namespace)
        try:
            counters = reader.read(FRESH)
            assert counters.network.rx_bytes == 0
            assert "network" not in counters.missing
        finally:
            reader.close()
