"""Limits: what the kernel is told, and that it holds it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inside import BUSY, FORK_BOMB, cpu_ns, ended, file_of, line, number, ready, start

from cameleer.config import UNLIMITED, Resources
from cameleer.drivers.cgroup import limits
from cameleer.drivers.cgroup.group import Cgroups, Group
from cameleer.errors import ConfigError, NotSupported

MIB = 1 << 20
VERSIONS: tuple[Literal[1, 2], ...] = (1, 2)

ALLOCATE = """
print("ready", flush=True)
data = bytearray(%d)
for at in range(0, len(data), 4096):
    data[at] = 1
print("survived", flush=True)
"""


def files(resources: Resources, version: Literal[1, 2], total_mhz: float | None = None) -> dict[str, str]:
    return {each.file: each.value for each in limits.settings(resources, version, total_mhz)}


def test_nothing_asked_for_is_nothing_set() -> None:
    assert files(Resources(), 1) == files(Resources(), 2) == {}


def test_every_field_has_its_files_in_version_1() -> None:
    wanted = Resources(
        cpu_mhz=500, cpu_quota_cores=0.5, cpuset_cpus="0-1", memory_bytes=64 * MIB, memory_max_bytes=128 * MIB,
        swap_bytes=32 * MIB, pids=10, io_weight=500,
    )  # fmt: skip
    assert list(files(wanted, 1).items()) == [
        ("cpu.shares", "500"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("memory.soft_limit_in_bytes", str(64 * MIB)),
        ("memory.limit_in_bytes", str(128 * MIB)),
        ("memory.memsw.limit_in_bytes", str(160 * MIB)),  # after the limit, below which it must not be
        ("cpuset.cpus", "0-1"),
        ("pids.max", "10"),
        ("blkio.weight", "500"),
    ]


def test_every_field_has_its_files_in_version_2() -> None:
    wanted = Resources(
        cpu_mhz=1024, cpu_quota_cores=2, cpuset_cpus="0-1", memory_bytes=64 * MIB, memory_max_bytes=128 * MIB,
        swap_bytes=0, pids=10, io_weight=1000,
    )  # fmt: skip
    assert files(wanted, 2) == {
        "cpu.weight": "100",
        "cpu.max": "200000 100000",
        "memory.low": str(64 * MIB),
        "memory.max": str(128 * MIB),
        "memory.swap.max": "0",
        "cpuset.cpus": "0-1",
        "pids.max": "10",
        "io.weight": "default 10000",
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_one_memory_limit_is_hard_and_unlimited_leaves_only_the_soft_one(version: Literal[1, 2]) -> None:
    hard, soft = (
        ("memory.limit_in_bytes", "memory.soft_limit_in_bytes") if version == 1 else ("memory.max", "memory.low")
    )
    assert files(Resources(memory_bytes=8 * MIB), version) == {hard: str(8 * MIB)}
    assert files(Resources(memory_bytes=8 * MIB, memory_max_bytes=UNLIMITED), version) == {soft: str(8 * MIB)}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Resources(cpu_mhz=1), "cpu_mhz is 1: it must be at least 2 MHz"),
        (Resources(memory_bytes=6 * MIB - 1), "memory_bytes is 6291455: it must be at least 6291456 bytes"),
        (Resources(memory_max_bytes=4096), "memory_max_bytes is 4096: it must be at least 6291456 bytes"),
        (Resources(cpu_quota_cores=0.0001), "cpu_quota_cores is 0.0001: it must be at least 0.001 cores"),
        (Resources(memory_bytes=1 << 64), "memory_bytes is 18446744073709551616: it must be at most"),
    ],
)
def test_what_no_kernel_would_hold_is_an_error_that_names_the_value(wanted: Resources, message: str) -> None:
    for version in VERSIONS:
        with pytest.raises(ConfigError, match=message):
            limits.settings(wanted, version)


@pytest.mark.parametrize("value", [0, 9, 1001])
def test_an_io_weight_out_of_range_is_an_error_that_names_the_value(value: int) -> None:
    with pytest.raises(ConfigError, match=f"io_weight is {value}: it must be 10 to 1000"):
        limits.check(_unchecked(io_weight=value))


@pytest.mark.parametrize("wanted", [Resources(cpu_mhz=2), Resources(memory_bytes=6 * MIB), Resources(io_weight=10)])
def test_the_least_that_is_allowed(wanted: Resources) -> None:
    limits.check(wanted)


def test_version_1_cannot_limit_swap_alone() -> None:
    with pytest.raises(ConfigError, match="swap_bytes is 5 without a memory limit"):
        limits.settings(Resources(swap_bytes=5), 1)
    assert files(Resources(swap_bytes=5), 2) == {"memory.swap.max": "5"}


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262_143, 10_000), (262_144, 10_000)],
)
def test_weights_of_shares_that_the_other_programs_give(shares: int, weight: int) -> None:
    assert limits.weight(shares) == weight


@given(st.integers(2, 262_144), st.integers(2, 262_144))
def test_more_shares_are_never_less_weight(one: int, other: int) -> None:
    less, more = sorted((limits.weight(one), limits.weight(other)))
    assert 1 <= less <= more <= 10_000
    assert (less, more) == (limits.weight(min(one, other)), limits.weight(max(one, other)))


@given(st.integers(2, 10**7), st.none() | st.floats(1, 10**7))
def test_shares_are_within_the_kernels_range_and_the_megahertz_themselves_where_they_fit(
    mhz: int, total: float | None
) -> None:
    shares = limits.shares(mhz, total)
    assert 2 <= shares <= 262_144
    if mhz <= 262_144 and (total is None or total <= 262_144):
        assert shares == mhz
    if total is not None and total > 262_144 and mhz <= total:
        assert abs(shares - max(2, mhz / total * 262_144)) <= 0.5


@given(st.floats(0.001, 4096))
def test_a_quota_is_what_was_asked_within_a_microsecond(cores: float) -> None:
    most, period = limits.quota(cores)
    assert most >= 1000
    assert 100_000 <= period <= 1_000_000
    assert abs(most - cores * period) <= 0.5000001


@given(st.integers(10, 1000), st.integers(10, 1000))
def test_io_weights_keep_their_order_and_fill_the_range(one: int, other: int) -> None:
    assert limits.io_weight(10) == 1
    assert limits.io_weight(1000) == 10_000
    assert (one <= other) == (limits.io_weight(one) <= limits.io_weight(other)) or one == other


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_of_cpus_is_read_as_the_kernel_reads_it(numbers: set[int]) -> None:
    assert limits.cpus(",".join(map(str, numbers))) == numbers
    low, high = min(numbers), max(numbers)
    assert limits.cpus(f"{low}-{high}\n") == set(range(low, high + 1))
    assert limits.cpus("\n") == set()


def test_a_file_that_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    wanted = {
        "memory.memsw.limit_in_bytes": Resources(memory_bytes=8 * MIB, swap_bytes=0),
        "blkio.weight": Resources(io_weight=100),
        "cpu.cfs_period_us": Resources(cpu_quota_cores=1),
    }
    (tmp_path / "memory.limit_in_bytes").touch()
    folders = dict.fromkeys(("memory", "blkio", "cpu"), str(tmp_path))
    for file, resources in wanted.items():
        with pytest.raises(NotSupported, match=f"cannot be held: this kernel has no {file}"):
            limits.apply(limits.settings(resources, 1), folders)


def test_a_controller_that_is_not_there_is_named() -> None:
    with pytest.raises(NotSupported, match="pids 5 cannot be held: there is no pids controller for pids.max"):
        limits.apply(limits.settings(Resources(pids=5), 2), {})


def test_a_refused_value_is_named_and_nothing_is_left(cgroups: Cgroups) -> None:
    if "cpuset" not in cgroups.mode.controllers:
        pytest.skip("no cpuset controller")
    with pytest.raises(ConfigError, match="cpuset_cpus '4000'"):
        cgroups.make("alloc", "task", Resources(cpuset_cpus="4000"))
    assert cgroups.find("alloc", "task") is None
    assert cgroups.all() == []


def test_the_kernel_has_what_it_was_told(cgroups: Cgroups) -> None:
    wanted = Resources(cpu_mhz=1024, memory_bytes=16 * MIB, memory_max_bytes=32 * MIB, pids=7)
    group = cgroups.make("alloc", "task", wanted)
    assert file_of(group, "pids", "pids.max").read_text() == "7\n"
    if group.paths.version == 1:
        assert file_of(group, "cpu", "cpu.shares").read_text() == "1024\n"
        assert file_of(group, "memory", "memory.limit_in_bytes").read_text() == f"{32 * MIB}\n"
        assert file_of(group, "memory", "memory.soft_limit_in_bytes").read_text() == f"{16 * MIB}\n"
    else:
        assert file_of(group, "cpu", "cpu.weight").read_text() == "100\n"
        assert file_of(group, "memory", "memory.max").read_text() == f"{32 * MIB}\n"
        assert file_of(group, "memory", "memory.low").read_text() == f"{16 * MIB}\n"


def test_swap_is_limited_or_the_missing_file_is_named(cgroups: Cgroups) -> None:
    wanted = Resources(memory_bytes=16 * MIB, swap_bytes=4 * MIB)
    version_1 = cgroups.mode.version == 1
    name, value = ("memory.memsw.limit_in_bytes", 20 * MIB) if version_1 else ("memory.swap.max", 4 * MIB)
    bare = cgroups.make("alloc", "bare")
    if file_of(bare, "memory", name).exists():
        group = cgroups.make("alloc", "task", wanted)
        assert file_of(group, "memory", name).read_text() == f"{value}\n"
    else:
        with pytest.raises(NotSupported, match=f"swap_bytes 4194304 cannot be held: this kernel has no {name}"):
            cgroups.make("alloc", "task", wanted)


def test_an_io_weight_is_set_or_the_missing_file_is_named(cgroups: Cgroups) -> None:
    names = ("blkio.weight", "blkio.bfq.weight") if cgroups.mode.version == 1 else ("io.weight", "io.bfq.weight")
    bare = cgroups.make("alloc", "bare")
    if file_of(bare, "blkio", names[0]).exists():
        group = cgroups.make("alloc", "task", Resources(io_weight=1000))
        assert "1000" in file_of(group, "blkio", names[0]).read_text()
    elif file_of(bare, "blkio", names[1]).exists() and limits._bfq():
        group = cgroups.make("alloc", "task", Resources(io_weight=1000))
        assert "1000" in file_of(group, "blkio", names[1]).read_text()
    else:
        with pytest.raises(NotSupported, match=f"io_weight 1000 cannot be held: .* no {names[0]}"):
            cgroups.make("alloc", "task", Resources(io_weight=1000))


def test_a_task_over_its_memory_is_killed_and_the_kill_is_counted(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task", Resources(memory_bytes=32 * MIB))
    process = ready(group, ALLOCATE % (100 * MIB))
    assert ended(process) == -signal.SIGKILL
    name = "memory.oom_control" if group.paths.version == 1 else "memory.events"
    assert number(group, "memory", name, "oom_kill") == 1


def test_a_task_within_its_memory_is_left_alone(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task", Resources(memory_bytes=64 * MIB))
    process = ready(group, ALLOCATE % (16 * MIB))
    assert line(process) == "survived"
    assert ended(process) == 0


def test_half_a_core_throttles(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task", Resources(cpu_quota_cores=0.5))
    process = ready(group, BUSY)
    before, started = cpu_ns(group), time.monotonic_ns()
    while number(group, "cpu", "cpu.stat", "nr_throttled") < 5:
        assert time.monotonic_ns() - started < 60e9, "it is not throttled"
        time.sleep(0.05)
    share = (cpu_ns(group) - before) / (time.monotonic_ns() - started)
    group.remove()
    ended(process)
    assert share < 0.75  # a period more than asked for at most, of about six


def test_a_task_runs_on_its_cpus_only(cgroups: Cgroups) -> None:
    if "cpuset" not in cgroups.mode.controllers:
        pytest.skip("no cpuset controller")
    group = cgroups.make("alloc", "task", Resources(cpuset_cpus="0"))
    process = start(group, "import os; print(os.sched_getaffinity(0))")
    assert line(process) == "{0}"
    assert ended(process) == 0


def test_a_fork_bomb_stops_at_its_limit_and_dies_with_the_group(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task", Resources(pids=25))
    process = ready(group, FORK_BOMB)
    deadline = time.monotonic() + 60
    while number(group, "pids", "pids.events", "max") < 1:
        assert time.monotonic() < deadline, "the limit was never met"
    assert len(group.pids()) <= 25
    assert int(file_of(group, "pids", "pids.current").read_text()) == 25
    group.remove(60)
    ended(process)
    assert not any(os.path.exists(folder) for folder in group.paths.folders.values())


def test_a_group_that_is_shared_is_not_limited(cgroups: Cgroups) -> None:
    theirs = cgroups.make("theirs", "task")
    shared = frozenset(theirs.paths.folders)
    group = Group(name="theirs", paths=theirs.paths, joined=shared, shared=shared)
    group.limit(Resources())
    with pytest.raises(NotSupported, match=r"pids 5 cannot be held: .* is not this task's alone"):
        group.limit(Resources(pids=5))
    assert file_of(theirs, "pids", "pids.max").read_text() == "max\n"


def _unchecked(**values: int) -> Resources:
    """Resources with values that their constructor would refuse, as an older handle may hold them."""
    made = Resources()
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
