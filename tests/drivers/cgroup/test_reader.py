"""The readers on recordings of several kernels: plain folders stand for groups, so they run everywhere."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cameleer.driver import Tick
from cameleer.drivers.cgroup import files as files_module
from cameleer.drivers.cgroup import reader as reader_module
from cameleer.drivers.cgroup import reader_v1
from cameleer.drivers.cgroup.fields import EXTENDED, FIELDS, At, Version, source
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.drivers.cgroup.reader import CgroupCounters
from cameleer.errors import NotSupported, RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.usage import NO_IO, NO_MEMORY, NO_PRESSURE, Counters

RECORDINGS = Path(__file__).parents[2] / "data" / "cgroup"
V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio")
SECOND = 1_000_000_000
CORE = Tick(0)
EXTENDED_TOO = Tick(0, extended=True)
FRESH = Tick(0, extended=True, fresh=True)


class Clock:
    """Stands in for ``time.monotonic_ns``."""

    def __init__(self) -> None:
        self.ns = 1000 * SECOND

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * SECOND)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reader_module, "monotonic_ns", clock)
    return clock


class Recorded:
    """A copy of a recording that a test may change, and readers of it."""

    def __init__(self, folder: Path, recording: str) -> None:
        shutil.copytree(RECORDINGS / recording, folder)
        self.folder = folder
        self.version: Version = 1 if recording.startswith("v1") else 2
        names = V1_CONTROLLERS if self.version == 1 else ("unified",)
        self.paths = GroupPaths(version=self.version, folders=dict.fromkeys(names, str(folder)))
        self.readers: list[CgroupCounters] = []

    def reader(self, **options: bool) -> CgroupCounters:
        self.readers.append(CgroupCounters(self.paths, **options))
        return self.readers[-1]

    def __getitem__(self, name: str) -> str:
        return (self.folder / name).read_text()

    def __setitem__(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def add(self, at: At, amount: int) -> None:
        """Let the value that a field comes from grow, in the kernel's unit."""
        name = at.file if (self.folder / at.file).exists() else at.older
        text, key = self[name], at.key
        if not key:
            self[name] = f"{int(text) + amount}\n"
        elif " " in key:  # pressure: kind and word
            kind, word = key.split()
            self[name] = _grown(text, lambda line: line.startswith(kind), f"{word}=", amount)
        elif f"{key}=" in text:
            self[name] = _grown(text, lambda line: f"{key}=" in line, f"{key}=", amount)
        else:
            self[name] = _grown(text, lambda line: line.split()[-2] == key, " ", amount)


def _grown(text: str, is_it: Callable[[str], bool], before: str, amount: int) -> str:
    """Add to the number behind ``before`` in the first line that is meant."""
    lines = text.splitlines()
    index = next(index for index, line in enumerate(lines) if is_it(line))
    head, _, tail = lines[index].rpartition(before)
    number, space, rest = tail.partition(" ")
    lines[index] = f"{head}{before}{int(number) + amount}{space}{rest}"
    return "\n".join(lines) + "\n"


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Callable[[str], Recorded]]:
    made: list[Recorded] = []

    def make(recording: str) -> Recorded:
        made.append(Recorded(tmp_path / f"group{len(made)}", recording))
        return made[-1]

    yield make
    for each in made:
        for reader in each.readers:
            reader.close()


Make = Callable[[str], Recorded]
ALL = sorted(f"{path.parent.name}/{path.name}" for path in RECORDINGS.glob("v*/*"))
RICH = {1: "v1-4.19/busy", 2: "v2-6.12/busy"}
"""Each has every field of its version."""
ROWS = [(version, field.name) for version in (1, 2) for field in FIELDS if field.at(version) is not None]
ROWS = [(version, name) for version, name in ROWS if not name.startswith("network.") and name != "processes.limit"]


def flat(counters: Counters) -> dict[str, object]:
    groups = ("cpu", "memory", "io", "network", "processes", "pressure")
    values = {group: getattr(counters, group) for group in groups}
    return {f"{g}.{f}": getattr(v, f) for g, v in values.items() for f in v.__struct_fields__}


class TestTheTable:
    @pytest.mark.parametrize(("version", "name"), ROWS)
    def test_each_field_follows_the_file_and_key_that_the_table_names(
        self, recorded: Make, version: Version, name: str
    ) -> None:
        group, at = recorded(RICH[version]), source(version, name)
        group["memory.low" if version == 2 else "memory.soft_limit_in_bytes"] = "4096\n"
        reader = group.reader()
        before = flat(reader.read(FRESH))
        if name == "processes.processes":
            group["cgroup.procs"] += "4711\n"
        else:
            group.add(at, 3)
        after = flat(reader.read(FRESH))
        grown = before[name]
        assert isinstance(grown, int)
        assert after[name] == grown + (1 if name == "processes.processes" else 3) * at.unit.factor
        others = {key for key in before if before[key] != after[key]} - {name}
        sources = {key: source(version, key) for version_, key in ROWS if version_ == version}
        related = {key for key, its in sources.items() if (at.file, at.key) in ((its.file, its.key), its.other)}
        assert others <= related

    @pytest.mark.parametrize(("version", "name"), ROWS)
    def test_only_fields_of_the_core_tier_change_without_an_extended_tick(
        self, recorded: Make, version: Version, name: str
    ) -> None:
        group, at = recorded(RICH[version]), source(version, name)
        group["memory.low" if version == 2 else "memory.soft_limit_in_bytes"] = "4096\n"
        reader = group.reader(has_quota=True, adaptive=False)
        before = flat(reader.read(FRESH))
        if name == "processes.processes":
            group["cgroup.procs"] += "4711\n"
        else:
            group.add(at, 3)
        assert (flat(reader.read(CORE))[name] != before[name]) == (at.tier != EXTENDED)
        assert flat(reader.read(EXTENDED_TOO))[name] != before[name]

    @pytest.mark.parametrize("version", [1, 2])
    def test_every_field_of_the_table_has_a_value_where_the_kernel_writes_it(
        self, recorded: Make, version: Version
    ) -> None:
        group = recorded(RICH[version])
        group["memory.low" if version == 2 else "memory.soft_limit_in_bytes"] = "4096\n"
        group["pids.max"] = "50\n"
        values = flat(group.reader().read(FRESH))
        lacking = {f.name for f in FIELDS if f.at(version) is not None and values[f.name] is None}
        assert {name for name in lacking if not name.startswith("network.")} == set()
        beyond = {name for name, value in values.items() if value is not None} - {
            f.name for f in FIELDS if f.at(version)
        }
        assert beyond == {"memory.measure"}

    def test_the_page_of_the_documentation_is_this_table(self) -> None:
        from cameleer.drivers.cgroup.fields import markdown

        page = Path(__file__).resolve().parents[3] / "docs" / "cgroup-fields.md"
        assert page.read_text() == markdown(), "python -m cameleer.drivers.cgroup.fields >docs/cgroup-fields.md"


class TestRecordings:
    @pytest.mark.parametrize("recording", ALL)
    def test_every_kernel_gives_cpu_and_memory_that_fit_together(self, recorded: Make, recording: str) -> None:
        counters = recorded(recording).reader().read(FRESH)
        cpu, memory = counters.cpu, counters.memory
        assert None not in (cpu.total_ns, cpu.user_ns, cpu.system_ns, cpu.periods, cpu.throttled_ns)
        assert memory.measure == "cgroup"
        assert memory.usage_bytes is not None
        assert memory.working_set_bytes is not None
        assert memory.rss_bytes is not None
        assert memory.cache_bytes is not None
        assert 0 <= memory.working_set_bytes <= memory.usage_bytes
        assert memory.rss_bytes + memory.cache_bytes <= memory.usage_bytes
        if memory.peak_bytes is not None:
            assert memory.peak_bytes >= memory.usage_bytes
        assert memory.in_use_bytes == memory.working_set_bytes

    def test_version_1_in_full(self, recorded: Make) -> None:
        counters = recorded("v1-4.19/busy").reader().read(FRESH)
        assert {name: value for name, value in flat(counters).items() if value is not None} == {
            "cpu.total_ns": 48_211_937_421,
            "cpu.user_ns": 40_120_000_000,
            "cpu.system_ns": 7_310_000_000,
            "cpu.periods": 912,
            "cpu.throttled_periods": 17,
            "cpu.throttled_ns": 1_804_000_113,
            "memory.rss_bytes": 60260352,
            "memory.cache_bytes": 18067456,
            "memory.swap_bytes": 1216512,
            "memory.mapped_file_bytes": 5812224,
            "memory.usage_bytes": 81788928,
            "memory.usage_with_swap_bytes": 81788928 + 1216512,
            "memory.working_set_bytes": 81788928 - 12435456,
            "memory.peak_bytes": 90112000,
            "memory.kernel_bytes": 3379200,
            "memory.kernel_peak_bytes": 3760128,
            "memory.unevictable_bytes": 4096,
            "memory.socket_bytes": 8192,
            "memory.limit_bytes": 268435456,
            "memory.minor_faults": 71247 - 132,
            "memory.major_faults": 132,
            "memory.oom_kills": 2,
            "memory.measure": "cgroup",
            "io.read_bytes": 7630848,
            "io.write_bytes": 176128,
            "io.read_ops": 278,
            "io.write_ops": 43,
            "processes.processes": 3,
            "processes.threads": 9,
        }
        assert counters.missing == {"network": "unsupported", "pressure": "unsupported"}

    def test_version_2_in_full(self, recorded: Make) -> None:
        counters = recorded("v2-6.12/busy").reader().read(FRESH)
        assert {name: value for name, value in flat(counters).items() if value is not None} == {
            "cpu.total_ns": 48_211_937_000,
            "cpu.user_ns": 40_120_021_000,
            "cpu.system_ns": 8_091_916_000,
            "cpu.periods": 912,
            "cpu.throttled_periods": 17,
            "cpu.throttled_ns": 1_804_000_000,
            "memory.rss_bytes": 60260352,
            "memory.cache_bytes": 18067456,
            "memory.swap_bytes": 1216512,
            "memory.mapped_file_bytes": 5812224,
            "memory.usage_bytes": 81788928,
            "memory.usage_with_swap_bytes": 81788928 + 1216512,
            "memory.working_set_bytes": 81788928 - 12435456,
            "memory.peak_bytes": 90112000,
            "memory.kernel_bytes": 3379200,
            "memory.unevictable_bytes": 4096,
            "memory.socket_bytes": 8192,
            "memory.limit_bytes": 268435456,
            "memory.minor_faults": 71247 - 132,
            "memory.major_faults": 132,
            "memory.oom_kills": 2,
            "memory.measure": "cgroup",
            "io.read_bytes": 7630848,
            "io.write_bytes": 176128,
            "io.read_ops": 278,
            "io.write_ops": 43,
            "processes.processes": 3,
            "processes.threads": 9,
            "pressure.cpu_some_ns": 218_761_000,
            "pressure.cpu_full_ns": 1_004_000,
            "pressure.memory_some_ns": 1_021_000,
            "pressure.memory_full_ns": 998_000,
            "pressure.io_some_ns": 40_012_000,
            "pressure.io_full_ns": 39_005_000,
        }
        assert counters.missing == {"network": "unsupported"}

    def test_a_kernel_that_does_not_account_for_swap_says_nothing_about_it(self, recorded: Make) -> None:
        memory = recorded("v1-5.10-noswap/busy").reader().read(FRESH).memory
        assert memory.swap_bytes is None
        assert memory.usage_with_swap_bytes is None
        assert memory.rss_bytes == 60260352

    def test_an_old_kernel_of_version_2_lacks_peak_and_kernel_memory(self, recorded: Make) -> None:
        counters = recorded("v2-5.4/busy").reader().read(FRESH)
        assert counters.memory.peak_bytes is None
        assert counters.memory.kernel_bytes is None
        assert counters.pressure.cpu_full_ns is None
        assert counters.missing == {"network": "unsupported", "memory.peak_bytes": "unsupported"}

    def test_a_kernel_without_pressure_says_so(self, recorded: Make) -> None:
        counters = recorded("v2-6.1/busy").reader().read(FRESH)
        assert counters.pressure is NO_PRESSURE
        assert counters.missing["pressure"] == "unsupported"
        assert counters.io.read_bytes == 1310720
        assert counters.memory.limit_bytes == 67108864
        assert counters.memory.soft_limit_bytes == 33554432

    @pytest.mark.parametrize(("counts_all", "expected"), [(True, 0), (False, None)])
    def test_no_device_listed_is_no_io_only_where_the_kernel_would_have_counted(
        self, recorded: Make, monkeypatch: pytest.MonkeyPatch, counts_all: bool, expected: int | None
    ) -> None:
        monkeypatch.setattr(reader_v1, "_COUNTS_ALL_IO", counts_all)
        group = recorded("v1-6.18/busy")
        reader = group.reader()
        counters = reader.read(FRESH)
        assert counters.io.read_bytes == expected
        assert counters.missing.get("io") == (None if counts_all else "disabled")
        group["blkio.throttle.io_service_bytes_recursive"] = "8:0 Read 512\n8:0 Write 0\n8:0 Total 512\nTotal 512\n"
        counters = reader.read(EXTENDED_TOO)
        assert counters.io.read_bytes == 512
        assert "io" not in counters.missing

    @pytest.mark.parametrize(
        ("release", "expected"),
        [("6.9.12", True), ("6.10.0-rc1", False), ("6.18.44-fc-v669", False), ("5.4", True), ("7", False)],
    )
    def test_kernels_are_told_apart_by_their_release(self, release: str, expected: bool) -> None:
        assert reader_v1._counts_all_io(release) is expected


class TestWhatIsAbsent:
    def test_a_controller_that_is_off_is_disabled_with_its_group(self, recorded: Make) -> None:
        group = recorded("v2-6.1/busy")
        group["cgroup.controllers"] = "cpu io pids\n"
        for path in group.folder.glob("memory.*"):
            path.unlink()
        counters = group.reader().read(FRESH)
        assert counters.memory is NO_MEMORY
        assert counters.missing["memory"] == "disabled"
        assert counters.cpu.total_ns == 500_000_000

    def test_without_the_cpu_controller_there_is_cpu_time_and_no_throttling(self, recorded: Make) -> None:
        group = recorded("v2-6.1/busy")
        group["cpu.stat"] = "usage_usec 5\nuser_usec 3\nsystem_usec 2\n"
        cpu = group.reader().read(FRESH).cpu
        assert (cpu.total_ns, cpu.user_ns, cpu.system_ns) == (5000, 3000, 2000)
        assert cpu.periods is cpu.throttled_periods is cpu.throttled_ns is None

    def test_the_root_of_version_2_has_no_usage_of_its_own(self, recorded: Make) -> None:
        group = recorded("v2-6.1/busy")
        for name in ("memory.current", "memory.peak", "memory.swap.current", "memory.events", "memory.max"):
            (group.folder / name).unlink()
        memory = group.reader().read(FRESH).memory
        assert memory.usage_bytes is memory.working_set_bytes is memory.usage_with_swap_bytes is None
        assert memory.rss_bytes == 11350016

    def test_controllers_of_version_1_that_are_not_mounted_are_left_out(self, recorded: Make) -> None:
        group = recorded("v1-4.19/busy")
        reader = CgroupCounters(GroupPaths(version=1, folders={"cpuacct": str(group.folder)}))
        group.readers.append(reader)
        counters = reader.read(FRESH)
        assert counters.cpu.total_ns == 48_211_937_421
        assert counters.cpu.periods is None
        assert counters.memory is NO_MEMORY
        assert counters.io is NO_IO
        assert counters.missing["memory"] == counters.missing["io"] == "unsupported"

    def test_memory_alone_can_be_measured(self, recorded: Make) -> None:
        group = recorded("v1-4.19/busy")
        reader = CgroupCounters(GroupPaths(version=1, folders={"memory": str(group.folder)}))
        group.readers.append(reader)
        assert reader.read(FRESH).memory.usage_bytes == 81788928
        assert reader.read(CORE).missing["cpu"] == "unsupported"

    def test_a_folder_without_anything_to_count_is_refused(self, tmp_path: Path) -> None:
        before = os.listdir("/proc/self/fd")
        for version, name in ((1, "freezer"), (2, "unified")):
            with pytest.raises(NotSupported):
                CgroupCounters(GroupPaths(version=version, folders={name: str(tmp_path)}))  # type: ignore[arg-type]
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_no_limit_is_none(self, recorded: Make) -> None:
        group = recorded("v2-6.1/fresh")
        counters = group.reader().read(FRESH)
        assert counters.memory.limit_bytes is counters.memory.soft_limit_bytes is counters.processes.limit is None
        assert "memory.limit_bytes" not in counters.missing


class TestTiers:
    def test_the_extended_tier_is_handed_over_again_under_its_own_time(self, recorded: Make, clock: Clock) -> None:
        group = recorded("v2-6.12/busy")
        reader = group.reader()
        first = reader.read(CORE)
        assert first.extended_at_ns is None, "the first reading has everything"
        began = clock.ns
        clock.advance(1)
        group.add(source(2, "io.read_bytes"), 1)
        group.add(source(2, "cpu.total_ns"), 1)
        second = reader.read(CORE)
        assert second.io is first.io
        assert (second.at_ns, second.memory_at_ns, second.extended_at_ns) == (clock.ns, None, began)
        clock.advance(1)
        third = reader.read(EXTENDED_TOO)
        assert third.io.read_bytes == (first.io.read_bytes or 0) + 1
        assert third.extended_at_ns is None

    def test_throttling_without_a_quota_waits_for_the_extended_tier_until_it_moves(self, recorded: Make) -> None:
        group = recorded("v1-4.19/busy")
        group["cpu.cfs_quota_us"] = "-1\n"
        reader = group.reader(adaptive=False)
        assert reader.read(FRESH).cpu.periods == 912
        group.add(source(1, "cpu.periods"), 1)
        assert reader.read(CORE).cpu.periods == 912
        assert reader.read(EXTENDED_TOO).cpu.periods == 913
        group.add(source(1, "cpu.periods"), 1)
        assert reader.read(CORE).cpu.periods == 914, "it has a quota after all"

    def test_unix_time_is_that_of_the_reading(self, recorded: Make) -> None:
        reader = recorded("v2-6.12/busy").reader()
        before = time.time_ns()
        counters = reader.read(Tick(0))
        assert before - SECOND // 1000 <= counters.taken_at_ns <= time.time_ns() + SECOND // 1000

    def test_groups_that_were_not_read_are_the_same_objects(self, recorded: Make) -> None:
        reader = recorded("v2-6.12/busy").reader(adaptive=False)
        first, second = reader.read(FRESH), reader.read(FRESH)
        for name in ("cpu", "io", "network", "processes", "pressure", "missing"):
            assert getattr(first, name) is getattr(second, name)

    def test_two_readers_share_what_is_the_same_for_both(self, recorded: Make) -> None:
        group = recorded("v2-6.12/busy")
        assert group.reader().read(FRESH).missing is group.reader().read(FRESH).missing


class TestIdleTasks:
    @pytest.mark.parametrize("recording", ["v1-4.19/busy", "v2-6.12/busy"])
    def test_only_the_cpu_counter_is_read_once_it_stood_still_for_three_seconds(
        self, recorded: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch, recording: str
    ) -> None:
        reads = counting(monkeypatch)
        group = recorded(recording)
        reader = group.reader()
        reader.read(FRESH)
        clock.advance(1)
        group.add(source(group.version, "memory.rss_bytes"), 4096)
        assert reader.read(CORE).memory_at_ns is None, "memory.stat may lag for 2 s"
        clock.advance(2)
        settled = reader.read(CORE)
        assert settled.memory_at_ns is None
        true_at_ns = clock.ns
        reads.clear()
        group.add(source(group.version, "memory.rss_bytes"), 4096)
        for _ in range(20):
            clock.advance(1)
            idle = reader.read(CORE)
            assert idle.memory is settled.memory
            assert (idle.at_ns, idle.memory_at_ns) == (clock.ns, true_at_ns)
        assert len(reads) == 20
        clock.advance(10)
        anew = reader.read(CORE)
        assert anew.memory_at_ns is anew.extended_at_ns is None
        assert anew.memory.rss_bytes == (settled.memory.rss_bytes or 0) + 4096

    def settled(self, group: Recorded, clock: Clock) -> CgroupCounters:
        reader = group.reader()
        reader.read(FRESH)
        clock.advance(3)
        reader.read(EXTENDED_TOO)
        clock.advance(1)
        assert reader.read(CORE).memory_at_ns == clock.ns - SECOND
        return reader

    def test_all_is_anew_at_once_when_the_counter_moves(self, recorded: Make, clock: Clock) -> None:
        group = recorded("v2-6.12/busy")
        reader = self.settled(group, clock)
        clock.advance(4)
        old = reader.read(EXTENDED_TOO)
        assert old.extended_at_ns == clock.ns - 5 * SECOND, "idle: not read"
        clock.advance(1)
        group.add(source(2, "cpu.total_ns"), 1)
        group.add(source(2, "memory.rss_bytes"), 1)
        group.add(source(2, "io.read_bytes"), 1)
        new = reader.read(CORE)
        assert new.memory_at_ns is new.extended_at_ns is None
        assert new.io != old.io
        assert new.memory != old.memory

    def test_a_fresh_reading_is_fresh(self, recorded: Make, clock: Clock) -> None:
        group = recorded("v1-4.19/busy")
        reader = self.settled(group, clock)
        group.add(source(1, "memory.rss_bytes"), 1)
        assert reader.read(FRESH).memory_at_ns is None
        assert reader.read(FRESH).memory.rss_bytes == 60260353

    def test_what_the_extended_tier_says_after_the_last_move_is_read_once(self, recorded: Make, clock: Clock) -> None:
        group = recorded("v2-6.12/busy")
        reader = group.reader()
        reader.read(FRESH)
        clock.advance(3.5)
        reader.read(CORE)
        group.add(source(2, "io.read_bytes"), 1)
        clock.advance(1)
        assert reader.read(CORE).memory_at_ns is not None
        clock.advance(1)
        assert reader.read(EXTENDED_TOO).io.read_bytes == 7630849
        clock.advance(1)
        assert reader.read(EXTENDED_TOO).extended_at_ns == clock.ns - SECOND

    def test_it_can_be_switched_off(self, recorded: Make, clock: Clock) -> None:
        reader = recorded("v2-6.12/busy").reader(adaptive=False)
        for _ in range(10):
            clock.advance(10)
            assert reader.read(CORE).memory_at_ns is None

    def test_rare_readings_settle_only_on_memory_read_late_enough(self, recorded: Make, clock: Clock) -> None:
        reader = recorded("v2-6.12/busy").reader()
        reader.read(FRESH)
        clock.advance(10)
        assert reader.read(CORE).memory_at_ns is None
        clock.advance(10)
        assert reader.read(CORE).memory_at_ns == clock.ns - 10 * SECOND


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all reads that follow."""
    reads: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    return reads


_opened: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "open":
        _opened.append(str(arguments[0]))


class TestWhatASampleCosts:
    @pytest.mark.parametrize(("recording", "most"), [("v1-4.19/busy", 8), ("v2-6.12/busy", 5)])
    def test_no_file_is_opened_for_a_sample_and_few_are_read(
        self, recorded: Make, monkeypatch: pytest.MonkeyPatch, clock: Clock, recording: str, most: int
    ) -> None:
        global _watching
        reads = counting(monkeypatch)
        group = recorded(recording)
        reader = group.reader(has_quota=True)
        reader.read(FRESH)
        sys.addaudithook(_watch)
        _opened.clear()
        for extended in (False, True, False):
            clock.advance(5)
            tick = Tick(0, extended=extended)
            group.add(source(group.version, "cpu.total_ns"), 1)
            group.add(source(group.version, "memory.rss_bytes"), 1)
            reads.clear()
            _watching = True
            try:
                reader.read(tick)
            finally:
                _watching = False
            assert _opened == []
            assert len(reads) <= (24 if extended else most)

    def test_bytes_that_did_not_change_are_not_parsed_again(
        self, recorded: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = recorded("v1-4.19/busy").reader(adaptive=False)
        reader.read(FRESH)
        first = reader.read(CORE)
        monkeypatch.setattr(reader_v1, "MemoryUsage", None)
        monkeypatch.setattr(reader_v1, "CpuUsage", None)
        assert reader.read(CORE).memory is first.memory


class TestWhatGoesWrong:
    CORE_FILES = (
        ("v1-4.19/busy", "cpuacct.usage"),
        ("v1-4.19/busy", "cpuacct.stat"),
        ("v1-4.19/busy", "cpu.stat"),
        ("v1-4.19/busy", "memory.stat"),
        ("v1-4.19/busy", "memory.usage_in_bytes"),
        ("v1-4.19/busy", "memory.max_usage_in_bytes"),
        ("v2-6.12/busy", "cpu.stat"),
        ("v2-6.12/busy", "memory.stat"),
        ("v2-6.12/busy", "memory.current"),
        ("v2-6.12/busy", "memory.peak"),
        ("v2-6.12/busy", "memory.swap.current"),
        ("v1-4.19/busy", "memory.oom_control"),
        ("v1-4.19/busy", "blkio.throttle.io_serviced"),
        ("v2-6.12/busy", "io.stat"),
        ("v2-6.12/busy", "cpu.pressure"),
        ("v2-6.12/busy", "pids.max"),
        ("v2-6.12/busy", "cgroup.procs"),
    )

    @pytest.mark.parametrize("damage", ["cut", "garbled", "emptied"])
    @pytest.mark.parametrize(("recording", "name"), CORE_FILES)
    def test_a_damaged_text_is_named_and_the_next_good_one_read(
        self, recorded: Make, recording: str, name: str, damage: str
    ) -> None:
        group = recorded(recording)
        reader = group.reader(has_quota=True)
        good = flat(reader.read(FRESH))
        whole = group[name]
        garbled = re.sub("[0-9]", "x", whole.replace("max", "mx"))
        group[name] = {"cut": whole[:-1], "garbled": garbled, "emptied": ""}[damage]
        if damage == "emptied" and name in ("cgroup.procs", "io.stat"):
            return  # these say "none" so
        for _ in range(2):
            with pytest.raises(RecoverableError, match=name):
                reader.read(FRESH)
        group[name] = whole
        assert flat(reader.read(FRESH)) == good

    def test_a_group_that_has_done_no_io_has_done_none(self, recorded: Make) -> None:
        """Version 2 lists the devices that were used; that is an empty text at first, and no unknown."""
        group = recorded("v2-6.12/busy")
        group["io.stat"] = ""
        io = group.reader().read(FRESH).io
        assert (io.read_bytes, io.write_bytes, io.read_ops, io.write_ops) == (0, 0, 0, 0)

    def test_a_group_that_is_not_there_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(TaskNotFound, match="nowhere"):
            CgroupCounters(GroupPaths(version=2, folders={"unified": f"{tmp_path}/nowhere"}))

    def test_a_closed_reader_says_so_and_is_closed_twice_without_error(self, recorded: Make) -> None:
        reader = recorded("v2-6.12/busy").reader()
        kept = files_module.BUDGET.kept
        reader.close()
        reader.close()
        assert files_module.BUDGET.kept < kept
        with pytest.raises(UnrecoverableError, match="closed"):
            reader.read(CORE)

    def test_extended_figures_of_a_reading_that_failed_come_with_the_next(self, recorded: Make) -> None:
        group = recorded("v1-4.19/busy")
        reader = group.reader()
        reader.read(FRESH)
        whole = group["memory.stat"]
        group["memory.stat"] = whole[:-1]
        group.add(source(1, "memory.kernel_bytes"), 1)
        with pytest.raises(RecoverableError):
            reader.read(EXTENDED_TOO)
        group["memory.stat"] = whole
        counters = reader.read(CORE)
        assert counters.memory.kernel_bytes == 3379201
        assert counters.extended_at_ns is None

    def test_a_file_that_fails_once_is_recoverable(self, recorded: Make) -> None:
        reader = recorded("v2-6.12/busy").reader()
        reader.read(FRESH)

        def fails(fd: int, size: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        reader._pread = fails
        with pytest.raises(RecoverableError, match="Input/output error"):
            reader.read(CORE)
        reader._pread = os.pread
        assert reader.read(CORE).cpu.total_ns == 48_211_937_000

    def test_a_controller_switched_off_while_its_files_are_open_is_told_from_the_end(self, recorded: Make) -> None:
        group = recorded("v2-6.1/busy")
        reader = group.reader()
        reader.read(FRESH)

        def gone(fd: int, size: int, offset: int) -> bytes:
            raise OSError(errno.ENODEV, "No such device")

        for path in group.folder.glob("memory.*"):
            path.unlink()
        group["cgroup.controllers"] = "cpu pids\n"
        reader._pread = gone
        with pytest.raises(RecoverableError, match="switched"):
            reader.read(CORE)
        assert reader.read(CORE).missing["memory"] == "disabled"

    def test_pressure_that_is_switched_off_is_disabled(self, recorded: Make) -> None:
        group = recorded("v2-6.12/busy")
        reader = group.reader()
        real, off = reader._extended.pread, {reader._extended.handles[f"{n}.pressure"] for n in ("cpu", "memory", "io")}

        def pread(fd: int, size: int, offset: int) -> bytes:
            if fd in off:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(fd, size, offset)

        reader._extended.pread = pread
        counters = reader.read(FRESH)
        assert counters.pressure is NO_PRESSURE
        assert counters.missing["pressure"] == "disabled"
        assert reader.read(FRESH).missing["pressure"] == "disabled"


class TestTooFewDescriptors:
    @pytest.fixture
    def few(self, monkeypatch: pytest.MonkeyPatch) -> files_module.Budget:
        """Room for no file at all; the limit itself stays as it is."""
        monkeypatch.setattr(files_module.BUDGET, "_said", False)
        monkeypatch.setattr(files_module.BUDGET, "kept", 1 << 60)
        return files_module.BUDGET

    @pytest.mark.parametrize("recording", ALL)
    def test_it_goes_on_by_opening_for_each_read_with_the_same_values(
        self, recorded: Make, few: files_module.Budget, recording: str
    ) -> None:
        group = recorded(recording)
        opening = group.reader()
        few.kept = 0
        keeping = group.reader()
        assert keeping._core.are_kept
        assert not opening._core.are_kept
        for tick in (FRESH, CORE, EXTENDED_TOO):
            one, other = opening.read(tick), keeping.read(tick)
            assert flat(one) == flat(other)
            assert one.missing == other.missing

    def test_it_says_so_once(self, recorded: Make, few: files_module.Budget, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "cameleer"):
            for _ in range(3):
                recorded("v2-6.12/busy").reader().read(FRESH)
        assert sum("ulimit -n" in record.message for record in caplog.records) == 1

    def test_the_kernels_refusal_has_the_same_outcome(self, recorded: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files_module.BUDGET, "_said", False)
        group = recorded("v2-6.12/busy")
        real, left = os.open, 4

        def refused(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
            nonlocal left
            if dir_fd is not None and not left:
                raise OSError(errno.EMFILE, "Too many open files")
            left -= dir_fd is not None
            return real(path, flags, *args, dir_fd=dir_fd)

        before = sorted(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(os, "open", refused)
        reader = group.reader()
        assert sorted(os.listdir("/proc/self/fd")) == before, "what was opened is closed again"
        assert reader.read(FRESH).memory.usage_bytes == 81788928

    def test_a_group_removed_meanwhile_is_not_found(self, recorded: Make, few: files_module.Budget) -> None:
        group = recorded("v2-6.12/busy")
        reader = group.reader()
        reader.read(FRESH)
        shutil.rmtree(group.folder)
        with pytest.raises(TaskNotFound):
            reader.read(CORE)

    def test_no_descriptor_left_at_all_is_recoverable(
        self, recorded: Make, few: files_module.Budget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = recorded("v2-6.12/busy").reader()

        def refused(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            raise OSError(errno.EMFILE, "Too many open files", path)

        monkeypatch.setattr(os, "open", refused)
        with pytest.raises(RecoverableError, match="Too many open files"):
            reader.read(CORE)

    def test_at_most_three_quarters_of_the_limit_are_held(self) -> None:
        budget = files_module.Budget()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert not budget.take(limit // 2, seldom=True)
        assert budget.take(limit * 3 // 4)
        assert not budget.take(1)
        budget.give_back(1)
        assert budget.take(1)
