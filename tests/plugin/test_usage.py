from __future__ import annotations

import dataclasses
import re
from typing import Any

import msgspec
import pytest

from cameleer.usage import (
    Counters,
    CpuUsage,
    IoUsage,
    MemoryUsage,
    NetworkUsage,
    PressureUsage,
    ProcessRow,
    ProcessUsage,
    RunUsage,
    TaskResourceUsage,
)

GROUPS = (CpuUsage, MemoryUsage, IoUsage, NetworkUsage, ProcessUsage, PressureUsage)
UNITS = ("_ns", "_bytes", "_percent", "_mhz", "_ops", "_packets", "_errors", "_drops", "_faults", "_kills", "_switches")
TIMES = {"at_ns": 1, "taken_at_ns": 1}
COUNTS = {"percent", "periods", "throttled_periods", "processes", "threads", "limit", "seen", "measure"}


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_is_none_and_never_zero(group: type[msgspec.Struct]) -> None:
    empty = group()
    assert all(getattr(empty, name) is None for name in group.__struct_fields__)


@pytest.mark.parametrize("group", GROUPS)
def test_every_name_carries_its_unit_or_is_a_count(group: type[msgspec.Struct]) -> None:
    for name in group.__struct_fields__:
        assert name.endswith(UNITS) or name in COUNTS, name


@pytest.mark.parametrize("kind", [*GROUPS, Counters, TaskResourceUsage, ProcessRow])
def test_readings_cannot_be_changed(kind: type[Any]) -> None:
    needed = {ProcessRow: {"pid": 1, "name": "init"}, Counters: TIMES, TaskResourceUsage: TIMES}
    value = kind(**needed.get(kind, {}))
    with pytest.raises(AttributeError):
        setattr(value, kind.__struct_fields__[0], 5)


@pytest.mark.parametrize("kind", [CpuUsage, MemoryUsage, IoUsage, ProcessUsage, ProcessRow, RunUsage])
def test_every_field_is_described(kind: type[Any]) -> None:
    names = (
        [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind.__struct_fields__
    )
    described = re.findall(r":ivar (\w+):", kind.__doc__ or "")
    assert described == list(names)


def test_a_reading_has_the_groups_of_the_counters_and_what_is_derived() -> None:
    derived = {"window_ns", "measured"}
    assert set(TaskResourceUsage.__struct_fields__) - derived == set(Counters.__struct_fields__)


@pytest.mark.parametrize(
    ("memory", "in_use"),
    [
        (MemoryUsage(measure="cgroup", working_set_bytes=1, rss_bytes=2, pss_bytes=3), 1),
        (MemoryUsage(measure="pss", working_set_bytes=1, rss_bytes=2, pss_bytes=3), 3),
        (MemoryUsage(measure="rss_sum", working_set_bytes=1, rss_bytes=2, pss_bytes=3), 2),
        (MemoryUsage(measure="pss", rss_bytes=2), None),
        (MemoryUsage(), None),
    ],
)
def test_memory_in_use_goes_by_its_measure(memory: MemoryUsage, in_use: int | None) -> None:
    assert memory.in_use_bytes == in_use


def test_a_reading_becomes_json_and_back() -> None:
    usage = TaskResourceUsage(
        at_ns=1,
        taken_at_ns=2,
        measured=frozenset({"cpu.total_ns"}),
        missing={"network": "unsupported"},
        cpu=CpuUsage(total_ns=2**53 + 1),
        per_process=(ProcessRow(pid=1, name="init"),),
    )
    assert msgspec.json.decode(msgspec.json.encode(usage), type=TaskResourceUsage) == usage
