from __future__ import annotations

import dataclasses
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer import Counters, CpuUsage, NodeInfo, Resources, derive
from cameleer.rates import measured_fields, rate_percent
from cameleer.usage import NO_CPU, IoUsage, MemoryUsage, ProcessUsage

NODE = NodeInfo(total_mhz=8000.0, cores=4)
NO_LIMITS = Resources()
RATES = ("percent", "user_percent", "system_percent", "ticks_mhz", "limit_percent")

nanoseconds = st.integers(min_value=0, max_value=2**62)
windows = st.integers(min_value=1, max_value=10**15)
perhaps = st.none() | nanoseconds


def counters(at_ns: int, total: int | None, user: int | None = None, system: int | None = None) -> Counters:
    cpu = CpuUsage(total_ns=total, user_ns=user, system_ns=system)
    return Counters(at_ns=at_ns, taken_at_ns=at_ns, cpu=cpu)


readings = st.builds(counters, nanoseconds, perhaps, perhaps, perhaps)


def test_the_first_reading_has_totals_and_no_rates() -> None:
    usage = derive(None, counters(5, 100, 60, 40), Resources(cpu_quota_cores=1.0), NODE)
    assert (usage.cpu.total_ns, usage.cpu.user_ns, usage.cpu.system_ns) == (100, 60, 40)
    assert [getattr(usage.cpu, rate) for rate in RATES] == [None] * len(RATES)
    assert usage.window_ns is None


def test_two_busy_cores_read_200_percent() -> None:
    usage = derive(counters(0, 0, 0, 0), counters(10**9, 2 * 10**9, 15 * 10**8, 5 * 10**8), NO_LIMITS, NODE)
    assert usage.window_ns == 10**9
    assert (usage.cpu.percent, usage.cpu.user_percent, usage.cpu.system_percent) == (200.0, 150.0, 50.0)


def test_ticks_are_the_percentage_of_one_core_in_mhz() -> None:
    usage = derive(counters(0, 0), counters(10**9, 15 * 10**8), NO_LIMITS, NODE)
    assert usage.cpu.ticks_mhz == 3000.0  # 150 % of a 2000 MHz core


def test_ticks_are_unknown_where_the_speed_is() -> None:
    usage = derive(counters(0, 0), counters(10**9, 10**9), NO_LIMITS, NodeInfo(total_mhz=None, cores=4))
    assert usage.cpu.percent == 100.0
    assert usage.cpu.ticks_mhz is None


@pytest.mark.parametrize(("quota", "share"), [(0.5, 100.0), (1.0, 50.0), (2.0, 25.0), (None, None)])
def test_the_share_of_the_quota_counts_from_the_quota(quota: float | None, share: float | None) -> None:
    usage = derive(counters(0, 0), counters(10**9, 5 * 10**8), Resources(cpu_quota_cores=quota), NODE)
    assert usage.cpu.limit_percent == share


def test_a_counter_that_went_back_starts_a_new_baseline() -> None:
    before, restarted, after = counters(0, 5 * 10**9), counters(10**9, 10**6), counters(2 * 10**9, 10**6 + 10**9)
    usage = derive(before, restarted, NO_LIMITS, NODE)
    assert (usage.cpu.percent, usage.window_ns, usage.cpu.total_ns) == (None, None, 10**6)
    assert derive(restarted, after, NO_LIMITS, NODE).cpu.percent == 100.0


def test_a_part_that_went_back_takes_only_its_own_rate() -> None:
    usage = derive(counters(0, 100, 90, 10), counters(100, 200, 80, 120), NO_LIMITS, NODE)
    assert (usage.cpu.percent, usage.cpu.user_percent, usage.cpu.system_percent) == (100.0, None, 110.0)


@pytest.mark.parametrize("later_ns", [0, -1])
def test_a_window_without_length_has_no_rates(later_ns: int) -> None:
    usage = derive(counters(1000, 0), counters(1000 + later_ns, 10), NO_LIMITS, NODE)
    assert (usage.cpu.percent, usage.window_ns) == (None, None)


def test_a_rate_needs_its_counter_on_both_sides() -> None:
    assert derive(counters(0, None, 5), counters(10, 5, 5), NO_LIMITS, NODE).cpu.percent is None
    assert derive(counters(0, 5, 5), counters(10, None, 5), NO_LIMITS, NODE).cpu.percent is None
    assert derive(counters(0, None, 5), counters(10, None, 10), NO_LIMITS, NODE).cpu.user_percent == 50.0


def test_groups_that_were_not_read_are_shared_constants() -> None:
    first, second = (Counters(at_ns=at, taken_at_ns=at) for at in (1, 2))
    usage = derive(first, second, NO_LIMITS, NODE)
    assert usage.cpu is NO_CPU
    assert usage.memory is second.memory
    assert usage.window_ns is None


def test_everything_but_the_rates_is_handed_over_as_it_is() -> None:
    current = Counters(
        at_ns=20,
        taken_at_ns=21,
        memory_at_ns=18,
        extended_at_ns=7,
        missing=MappingProxyType({"network": "unsupported"}),
        cpu=CpuUsage(total_ns=5, periods=4, throttled_periods=3, throttled_ns=2),
        memory=MemoryUsage(rss_bytes=1),
        io=IoUsage(read_bytes=2),
        processes=ProcessUsage(processes=3),
        per_process=(),
    )
    names = frozenset({"cpu.total_ns"})
    usage = derive(counters(10, 5), current, NO_LIMITS, NODE, names)
    assert usage.measured is names
    for name in Counters.__struct_fields__:
        if name != "cpu":
            assert getattr(usage, name) == getattr(current, name)
    assert (usage.cpu.periods, usage.cpu.throttled_periods, usage.cpu.throttled_ns) == (4, 3, 2)


def test_derive_changes_nothing_that_it_was_given() -> None:
    first, second = counters(0, 0), counters(10, 5)
    kept = msgspec.to_builtins(first), msgspec.to_builtins(second)
    assert derive(first, second, NO_LIMITS, NODE) == derive(first, second, NO_LIMITS, NODE)
    assert (msgspec.to_builtins(first), msgspec.to_builtins(second)) == kept


@given(previous=st.none() | readings, current=readings, quota=st.none() | st.floats(0.01, 128))
def test_no_rate_is_ever_negative(previous: Counters | None, current: Counters, quota: float | None) -> None:
    cpu = derive(previous, current, Resources(cpu_quota_cores=quota), NODE).cpu
    for rate in RATES:
        value = getattr(cpu, rate)
        assert value is None or value >= 0


@given(previous=readings, current=readings)
def test_no_rate_comes_from_a_counter_that_went_back(previous: Counters, current: Counters) -> None:
    cpu = derive(previous, current, NO_LIMITS, NODE).cpu
    for rate, counter in (("percent", "total_ns"), ("user_percent", "user_ns"), ("system_percent", "system_ns")):
        old, new = getattr(previous.cpu, counter), getattr(current.cpu, counter)
        if old is None or new is None or new < old or current.at_ns <= previous.at_ns:
            assert getattr(cpu, rate) is None


@given(start=nanoseconds, gain=nanoseconds, at_ns=nanoseconds, window_ns=windows)
def test_rate_times_window_is_the_gain(start: int, gain: int, at_ns: int, window_ns: int) -> None:
    usage = derive(counters(at_ns, start), counters(at_ns + window_ns, start + gain), NO_LIMITS, NODE)
    assert usage.window_ns == window_ns
    assert usage.cpu.percent is not None
    assert usage.cpu.percent / 100 * window_ns == pytest.approx(gain, rel=1e-9, abs=1e-6)


@given(
    gains=st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 10**12)), min_size=1, max_size=30),
    restart=st.sets(st.integers(0, 29)),
)
def test_the_rates_of_a_run_add_up_to_its_total(gains: list[tuple[int, int]], restart: set[int]) -> None:
    """Over any run of readings, also with restarts in it: what the rates account for is what was gained in between."""
    previous: Counters | None = None
    total = at_ns = expected = 0
    accounted = 0.0
    for position, (gain, window_ns) in enumerate(gains):
        at_ns += window_ns
        if position in restart and previous is not None and gain < total:
            total = gain  # from zero again, and lower than before
        else:
            total += gain
            expected += gain if previous is not None else 0
        current = counters(at_ns, total)
        usage = derive(previous, current, NO_LIMITS, NODE)
        if usage.cpu.percent is not None and usage.window_ns is not None:
            accounted += usage.cpu.percent / 100 * usage.window_ns
        previous = current
    assert accounted == pytest.approx(expected, rel=1e-9, abs=1e-3)


@given(user=perhaps, system=perhaps, window_ns=windows)
def test_user_and_system_add_up_to_the_whole(user: int | None, system: int | None, window_ns: int) -> None:
    if user is None or system is None:
        return
    cpu = derive(counters(0, 0, 0, 0), counters(window_ns, user + system, user, system), NO_LIMITS, NODE).cpu
    assert cpu.user_percent is not None
    assert cpu.system_percent is not None
    assert cpu.percent == pytest.approx(cpu.user_percent + cpu.system_percent, rel=1e-9)


@given(old=perhaps, new=perhaps, window_ns=windows)
def test_a_rate_is_unknown_or_the_plain_quotient(old: int | None, new: int | None, window_ns: int) -> None:
    percent = rate_percent(old, new, window_ns)
    if old is None or new is None or new < old:
        assert percent is None
    else:
        assert percent == pytest.approx((new - old) / window_ns * 100)


def test_measured_fields_name_what_readings_carry_rates_included() -> None:
    current = Counters(
        at_ns=1,
        taken_at_ns=1,
        cpu=CpuUsage(total_ns=0, user_ns=0),
        memory=MemoryUsage(rss_bytes=0, measure="rss_sum"),
    )
    assert measured_fields(current, NO_LIMITS, dataclasses.replace(NODE, total_mhz=None)) == {
        "cpu.total_ns",
        "cpu.user_ns",
        "cpu.percent",
        "cpu.user_percent",
        "memory.rss_bytes",
        "memory.measure",
    }
    more = measured_fields(current, Resources(cpu_quota_cores=1.0), NODE)
    assert {"cpu.ticks_mhz", "cpu.limit_percent"} <= more


def test_no_rate_is_named_where_the_total_is_not_read() -> None:
    names = measured_fields(counters(1, None, user=3), Resources(cpu_quota_cores=1.0), NODE)
    assert names == {"cpu.user_ns", "cpu.user_percent"}


@given(previous=readings, current=readings)
def test_a_reading_carries_no_field_that_measured_does_not_name(previous: Counters, current: Counters) -> None:
    limits = Resources(cpu_quota_cores=2.0)
    cpu = derive(previous, current, limits, NODE).cpu
    carried = {f"cpu.{name}" for name in CpuUsage.__struct_fields__ if getattr(cpu, name) is not None}
    assert carried <= measured_fields(current, limits, NODE)
