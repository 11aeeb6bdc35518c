from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.config import Resources
from cameleer.drivers.docker.stats.machine import UNKNOWN, Machine, machine
from cameleer.drivers.docker.stats.statistics import Reply, convert, counters, decode, shape
from cameleer.errors import RecoverableError
from cameleer.node import NodeInfo
from cameleer.rates import derive
from cameleer.usage import (
    NO_CPU,
    NO_IO,
    NO_MEMORY,
    NO_NETWORK,
    NO_PRESSURE,
    NO_PROCESSES,
    Counters,
    CpuUsage,
    IoUsage,
    MemoryUsage,
    NetworkUsage,
    ProcessUsage,
    TaskResourceUsage,
)

DATA = Path(__file__).parents[3] / "data/docker"
MIB = 1 << 20
SECOND_NS = 1_000_000_000
NODE = NodeInfo(cores=4, total_mhz=8000.0)


def recorded(name: str) -> Reply:
    return decode((DATA / f"{name}.json").read_bytes())


def machine_of(folder: str) -> Machine:
    return machine(json.loads((DATA / folder / "info.json").read_bytes()))


def counted(name: str, *, at_ns: int = 1) -> Counters:
    found = counters(recorded(name), at_ns=at_ns, taken_at_ns=2, machine=machine_of(name.partition("/")[0]))
    assert found is not None
    return found


def changed(name: str, **groups: Any) -> Counters:
    """A recorded answer with some of its objects replaced."""
    reply = json.loads((DATA / f"{name}.json").read_bytes()) | groups
    found = counters(convert(reply), at_ns=1, taken_at_ns=2)
    assert found is not None
    return found


def rates(first: Counters, second: Counters) -> TaskResourceUsage:
    return derive(first, second, Resources(), NODE)


# -- version 1 -----------------------------------------------------------------------------------------------------


def test_version_1_gives_every_field_that_the_engine_names() -> None:
    found = counted("v1-20.10/busy")
    assert (found.at_ns, found.taken_at_ns) == (1, 2)
    assert found.cpu == CpuUsage(
        total_ns=621_778_983,
        user_ns=610_000_000,
        system_ns=10_000_000,
        periods=32,
        throttled_periods=30,
        throttled_ns=2_350_184_006,
    )
    assert found.memory == MemoryUsage(
        rss_bytes=118_784,
        cache_bytes=8_351_744,
        mapped_file_bytes=0,
        usage_bytes=8_855_552,
        working_set_bytes=8_855_552 - 8_351_744,
        peak_bytes=10_276_864,
        unevictable_bytes=0,
        limit_bytes=64 * MIB,
        minor_faults=1721,
        major_faults=0,
        measure="cgroup",
    )
    assert found.io == IoUsage(read_bytes=8 * MIB, write_bytes=8 * MIB, read_ops=4, write_ops=8)
    assert found.processes == ProcessUsage(threads=2, limit=20)
    assert found.network is NO_NETWORK
    assert found.pressure is NO_PRESSURE


def test_what_the_engine_does_not_say_is_named() -> None:
    assert counted("v1-20.10/busy").missing == {
        "memory.kernel_bytes": "unsupported",
        "memory.kernel_peak_bytes": "unsupported",
        "memory.oom_kills": "unsupported",
        "memory.socket_bytes": "unsupported",
        "memory.soft_limit_bytes": "unsupported",
        "memory.swap_bytes": "unsupported",
        "memory.usage_with_swap_bytes": "unsupported",
        "network": "unsupported",
        "pressure": "unsupported",
        "processes.processes": "unsupported",
    }


def test_equal_gaps_are_one_object() -> None:
    assert counted("v1-20.10/busy").missing is counted("v1-20.10/busy").missing


def test_without_limits_there_are_none() -> None:
    found = counted("v1-20.10/idle")
    assert (found.memory.limit_bytes, found.processes.limit) == (None, None)
    assert not {"memory.limit_bytes", "processes.limit"} & found.missing.keys()


def test_the_machines_memory_is_no_limit() -> None:
    reply = recorded("v2-25.0/unlimited")
    known = counters(reply, at_ns=1, taken_at_ns=2, machine=Machine(memory_bytes=16_777_216_000))
    assert known is not None
    assert known.memory.limit_bytes is None


@pytest.mark.parametrize("limit", [0, 1 << 62, 9_223_372_036_854_771_712, (1 << 64) - 1])
def test_huge_and_zero_limits_are_none(limit: int) -> None:
    found = changed(
        "v2-25.0/busy", memory_stats={"usage": 1, "limit": limit}, pids_stats={"current": 1, "limit": limit}
    )
    assert (found.memory.limit_bytes, found.processes.limit) == (None, None)


def test_the_groups_inside_are_counted() -> None:
    stats = {"rss": 1, "total_rss": 100, "cache": 2, "total_cache": 200, "inactive_file": 3, "total_inactive_file": 50}
    stats |= {"pgfault": 4, "total_pgfault": 40, "pgmajfault": 1, "total_pgmajfault": 10}
    found = changed("v1-20.10/busy", memory_stats={"usage": 1000, "stats": stats}).memory
    assert (found.rss_bytes, found.cache_bytes, found.working_set_bytes) == (100, 200, 950)
    assert (found.minor_faults, found.major_faults) == (30, 10)


def test_a_swap_key_is_taken_where_there_is_one() -> None:
    found = changed("v1-20.10/busy", memory_stats={"usage": 1000, "stats": {"total_rss": 1, "total_swap": 24}})
    assert (found.memory.swap_bytes, found.memory.usage_with_swap_bytes) == (24, 1024)
    assert "memory.swap_bytes" not in found.missing


def test_a_difference_is_never_below_zero() -> None:
    stats = {"total_rss": 1, "total_inactive_file": 2000, "total_pgfault": 1, "total_pgmajfault": 2}
    found = changed("v1-20.10/busy", memory_stats={"usage": 1000, "stats": stats}).memory
    assert (found.working_set_bytes, found.minor_faults) == (0, 0)


# -- version 2 -----------------------------------------------------------------------------------------------------


def test_version_2_gives_every_field_that_the_engine_names() -> None:
    found = counted("v2-25.0/busy")
    assert found.cpu == CpuUsage(
        total_ns=5_250_000_000,
        user_ns=4_500_000_000,
        system_ns=750_000_000,
        periods=120,
        throttled_periods=60,
        throttled_ns=3_000_000_000,
    )
    assert found.memory == MemoryUsage(
        rss_bytes=24 * MIB,
        cache_bytes=14 * MIB,
        mapped_file_bytes=5 * MIB,
        usage_bytes=42 * MIB,
        working_set_bytes=30 * MIB,
        unevictable_bytes=8192,
        socket_bytes=4096,
        limit_bytes=64 * MIB,
        minor_faults=9864,
        major_faults=12,
        measure="cgroup",
    )
    assert found.io == IoUsage(read_bytes=1_052_672, write_bytes=2_105_344)
    assert found.processes == ProcessUsage(threads=7, limit=100)
    assert found.missing["memory.peak_bytes"] == found.missing["io.read_ops"] == "unsupported"
    assert "memory.kernel_peak_bytes" not in found.missing  # version 2 never has it


def test_networks_are_added_up() -> None:
    assert counted("v2-25.0/busy").network == NetworkUsage(
        rx_bytes=124_456,
        rx_packets=799,
        rx_errors=1,
        rx_drops=2,
        tx_bytes=67_432,
        tx_packets=341,
        tx_errors=3,
        tx_drops=4,
    )


def test_the_loopback_device_is_left_out() -> None:
    reply = (DATA / "v1-bridge/busy.json").read_bytes()
    found = counters(decode(reply), at_ns=1, taken_at_ns=2)
    assert found is not None
    assert (found.network.rx_bytes, found.network.tx_packets, found.network.rx_drops) == (1296, 2, 3)
    assert "network" not in found.missing


@pytest.mark.parametrize("networks", [None, {}, {"lo": {"rx_bytes": 5}}])
def test_without_a_network_of_its_own_there_are_no_figures(networks: object) -> None:
    found = changed("v2-25.0/busy", networks=networks)
    assert found.network is NO_NETWORK
    assert found.missing["network"] == "unsupported"


@pytest.mark.parametrize(("read", "write"), [("read", "write"), ("Read", "Write"), ("READ", "WRITE")])
def test_operations_are_found_in_any_case(read: str, write: str) -> None:
    entries = [{"op": read, "value": 3}, {"op": write, "value": 5}, {"op": "Total", "value": 8}]
    found = changed("v2-25.0/busy", blkio_stats={"io_service_bytes_recursive": entries * 2})
    assert (found.io.read_bytes, found.io.write_bytes) == (6, 10)


def test_no_device_listed_is_unknown_unless_the_machine_counts_all() -> None:
    reply = recorded("v2-25.0/unlimited")
    unknown = counters(reply, at_ns=1, taken_at_ns=2)
    assert unknown is not None
    assert unknown.io is NO_IO
    assert unknown.missing["io"] == "disabled"
    assert counted("v2-25.0/unlimited").io == IoUsage(read_bytes=0, write_bytes=0)
    assert counted("v1-20.10/idle").io is NO_IO  # from Linux 6.10 on


@pytest.mark.parametrize(
    ("info", "counts"),
    [
        ({"KernelVersion": "6.9.12", "CgroupVersion": "1"}, True),
        ({"KernelVersion": "5.10.0-28-amd64"}, True),
        ({"KernelVersion": "6.10.0", "CgroupVersion": "1"}, False),
        ({"KernelVersion": "6.18.44", "CgroupVersion": "2"}, True),
        ({"KernelVersion": "6.1.0", "CgroupVersion": "2", "Warnings": ["WARNING: No io.max (rbps) support"]}, False),
        ({"KernelVersion": "10.0 20348 (20348.1)", "CgroupVersion": None}, False),
        ({}, False),
    ],
)
def test_whether_a_machine_counts_all_io_follows_from_its_kernel(info: dict[str, object], counts: bool) -> None:
    assert machine(info).counts_all_io is counts


def test_the_machines_memory_is_known() -> None:
    assert machine_of("v1-20.10").memory_bytes == 25_276_502_016
    assert machine({"MemTotal": 0}) == UNKNOWN


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_answer_about_the_machine_is_facts_or_an_error(value: object) -> None:
    for info in (value, {"MemTotal": value, "KernelVersion": value}, {"Warnings": value, "CgroupVersion": "2"}):
        with suppress(RecoverableError):
            assert isinstance(machine(info), Machine)


# -- which version -------------------------------------------------------------------------------------------------


def test_the_keys_decide_the_version_and_not_a_peak_of_zero() -> None:
    assert shape(recorded("v1-20.10/busy")) == "v1"
    assert shape(recorded("v2-25.0/busy")) == "v2"
    assert shape(recorded("windows-25.0/busy")) == "windows"
    assert shape(recorded("v2-25.0/stopped")) == "unknown"
    no_peak = {"usage": 1, "max_usage": 0, "stats": {"total_rss": 0, "total_cache": 0}}
    assert shape(convert({"memory_stats": no_peak})) == "v1"
    assert shape(convert({"memory_stats": {"usage": 5, "max_usage": 7, "stats": {"anon": 0, "file": 0}}})) == "v2"


def test_memory_that_is_not_accounted_for_is_missing() -> None:
    found = changed("v1-20.10/busy", memory_stats={})
    assert found.memory is NO_MEMORY
    assert found.missing["memory"] == "disabled"
    assert found.cpu.total_ns == 621_778_983


def test_usage_alone_is_no_working_set() -> None:
    found = changed("v1-20.10/busy", memory_stats={"usage": 5000, "limit": 9000}).memory
    assert (found.usage_bytes, found.limit_bytes, found.working_set_bytes, found.rss_bytes) == (5000, 9000, None, None)


def test_an_engine_without_control_groups_has_no_zero_cpu() -> None:
    nothing = {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}}
    found = changed("v1-20.10/busy", cpu_stats=nothing, memory_stats={}, pids_stats={})
    assert (found.cpu, found.processes) == (NO_CPU, NO_PROCESSES)
    assert found.missing["cpu"] == found.missing["processes"] == "disabled"


# -- windows -------------------------------------------------------------------------------------------------------


def test_windows_counts_in_units_of_100_ns() -> None:
    found = counted("windows-25.0/busy")
    assert found.cpu == CpuUsage(total_ns=15 * SECOND_NS, user_ns=9 * SECOND_NS, system_ns=6 * SECOND_NS)
    assert found.memory == MemoryUsage(
        rss_bytes=59_961_344,
        usage_bytes=77_160_448,
        working_set_bytes=59_961_344,
        peak_bytes=105_000_960,
        measure="cgroup",
    )
    assert found.io == IoUsage(read_bytes=31_457_280, write_bytes=5_242_880, read_ops=1200, write_ops=340)
    assert (found.network.rx_bytes, found.network.rx_drops) == (5000, 1)
    assert found.processes is NO_PROCESSES  # num_procs is how many processors there are
    assert found.missing == {"pressure": "unsupported", "processes": "unsupported"}


def test_percent_on_windows_is_of_one_core_as_everywhere() -> None:
    found = rates(counted("windows-25.0/busy"), counted("windows-25.0/busy-next", at_ns=1 + SECOND_NS))
    assert found.cpu.percent == pytest.approx(200)
    assert found.cpu.user_percent == pytest.approx(150)
    assert found.cpu.system_percent == pytest.approx(50)


# -- containers that do not run, and counters that go back ---------------------------------------------------------


@pytest.mark.parametrize("name", ["v1-20.10/stopped", "v1-20.10/created", "v2-25.0/stopped", "windows-25.0/stopped"])
def test_the_zero_answer_about_a_stopped_container_gives_no_counters(name: str) -> None:
    reply = recorded(name)
    assert reply.is_empty
    assert counters(reply, at_ns=1, taken_at_ns=2) is None


def test_an_answer_without_a_time_gives_no_counters() -> None:
    assert counters(convert({"cpu_stats": {"cpu_usage": {"total_usage": 5}}}), at_ns=1, taken_at_ns=2) is None


def test_a_counter_that_went_back_gives_no_rate_and_no_spike() -> None:
    """A restarted container; upstream subtracts without a sign and gives 1.8e19."""
    first, second = counted("v2-25.0/busy-next"), counted("v2-25.0/busy", at_ns=1 + SECOND_NS)
    found = rates(first, second)
    assert (found.cpu.percent, found.cpu.user_percent, found.cpu.system_percent) == (None, None, None)
    assert found.cpu.total_ns == second.cpu.total_ns


def test_user_and_system_are_of_the_same_base_as_the_total() -> None:
    """Upstream divides them by the container's own time: an idle container shows 1600 % on 16 cores."""
    found = rates(counted("v2-25.0/busy"), counted("v2-25.0/busy-next", at_ns=1 + 2 * SECOND_NS)).cpu
    assert found.percent == pytest.approx(50)
    assert found.user_percent == pytest.approx(40)
    assert found.system_percent == pytest.approx(10)


@pytest.mark.parametrize("cores", [{}, {"online_cpus": 0}, {"online_cpus": 64}, {"percpu_usage": None}])
def test_percent_does_not_depend_on_the_processors_that_the_engine_names(cores: dict[str, object]) -> None:
    """Version 2 has no list per processor, old engines no ``online_cpus``; the window is time, not the host's CPU."""
    found = []
    for position, name in enumerate(("v2-25.0/busy", "v2-25.0/busy-next")):
        reply = json.loads((DATA / f"{name}.json").read_bytes())
        stats = {"cpu_usage": reply["cpu_stats"]["cpu_usage"], **cores}
        taken = counters(convert(reply | {"cpu_stats": stats}), at_ns=1 + 2 * SECOND_NS * position, taken_at_ns=2)
        assert taken is not None
        found.append(taken)
    assert rates(*found).cpu.percent == pytest.approx(50)


def test_counters_are_exact_beyond_what_a_float_holds() -> None:
    total = (1 << 63) + 1
    found = changed("v2-25.0/busy", cpu_stats={"cpu_usage": {"total_usage": total}})
    assert found.cpu.total_ns == total


def test_the_stream_has_the_same_shape() -> None:
    lines = (DATA / "v1-20.10/busy-stream.json").read_bytes().splitlines()
    found = [counters(decode(line), at_ns=at, taken_at_ns=at) for at, line in enumerate(lines)]
    totals = [each.cpu.total_ns for each in found if each is not None]
    assert len(totals) == 2
    assert all(earlier is not None and later is not None and earlier < later for earlier, later in pairwise(totals))


# -- whatever comes ------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "read",
    "num_procs",
    "os_type",
    "cpu_stats",
    "memory_stats",
    "blkio_stats",
    "storage_stats",
    "networks",
    "pids_stats",
)


def is_counters_none_or_recoverable(data: bytes) -> None:
    try:
        found = counters(decode(data), at_ns=1, taken_at_ns=2)
    except RecoverableError:
        return
    assert found is None or type(found) is Counters


@given(st.binary(max_size=50) | VALUES.map(json.dumps).map(str.encode))
def test_any_bytes_are_counters_or_nothing_or_an_error(data: bytes) -> None:
    is_counters_none_or_recoverable(data)


@given(
    st.sampled_from(["v1-20.10/busy", "v2-25.0/busy", "windows-25.0/busy"]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
)
def test_any_change_of_an_answer_is_counters_or_nothing_or_an_error(name: str, change: dict[str, object]) -> None:
    reply = json.loads((DATA / f"{name}.json").read_bytes())
    is_counters_none_or_recoverable(json.dumps(reply | change).encode())


@given(
    st.sampled_from(["v1-20.10/busy", "v2-25.0/busy", "windows-25.0/busy"]),
    st.data(),
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
)
def test_any_change_of_one_value_is_counters_or_nothing_or_an_error(
    name: str, data: st.DataObject, value: object
) -> None:
    reply = json.loads((DATA / f"{name}.json").read_bytes())
    place = reply
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key]:
            break
        place = place[key]
    place[key] = value
    is_counters_none_or_recoverable(json.dumps(reply).encode())


@given(st.integers(min_value=0))
def test_an_answer_cut_short_is_an_error(cut: int) -> None:
    data = (DATA / "v1-20.10/busy.json").read_bytes().rstrip()
    with pytest.raises(RecoverableError, match="trying again may help"):
        decode(data[: cut % len(data)])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"x":' * 100_000, '{"num_procs":' + "9" * 10_000 + "}", '{"read":"\\ud800"}']
)
def test_absurd_answers_are_errors_too(text: str) -> None:
    is_counters_none_or_recoverable(text.encode())


def test_negative_counters_are_refused() -> None:
    with pytest.raises(RecoverableError, match="total_usage"):
        decode(b'{"read":"2024-03-05T10:11:12Z","cpu_stats":{"cpu_usage":{"total_usage":-1}}}')
