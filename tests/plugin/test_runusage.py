from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer import Counters, CpuUsage, IoUsage, MemoryUsage, ProcessUsage, Resources, RunUsage, TaskResourceUsage
from cameleer.runusage import RunAccount

S = 10**9
MB = 10**6
START = 1000 * S
NO_LIMITS = Resources()


def reading(at_s: float, total_s: float | None = None, **groups: Any) -> TaskResourceUsage:
    at_ns = START + int(at_s * S)
    cpu = CpuUsage(total_ns=None if total_s is None else int(total_s * S))
    return TaskResourceUsage(at_ns=at_ns, taken_at_ns=at_ns, **{"cpu": cpu, **groups})


def final(**groups: Any) -> Counters:
    return Counters(at_ns=START, taken_at_ns=START, **groups)


def account(*usages: TaskResourceUsage) -> RunAccount:
    made = RunAccount()
    for usage in usages:
        made.add(usage)
    return made


def summary(
    of: RunAccount, end: Counters | None = None, limits: Resources = NO_LIMITS, wall_s: float | None = None
) -> RunUsage:
    return of.summary(end, limits, None if wall_s is None else int(wall_s * S), since_recovery=False)


def test_a_run_that_nobody_measured_has_the_kernels_totals() -> None:
    usage = summary(account(), final(cpu=CpuUsage(total_ns=3 * S, user_ns=2 * S, system_ns=S)), wall_s=2)
    assert (usage.cpu_total_ns, usage.cpu_user_ns, usage.cpu_system_ns) == (3 * S, 2 * S, S)
    assert usage.cpu_percent_average == 150.0
    assert usage.cpu_percent_peak is None
    assert usage.readings == 0


def test_a_run_of_which_nothing_is_known_is_all_none() -> None:
    usage = summary(account())
    assert usage == RunUsage()


def test_the_kernels_totals_win_over_the_last_reading() -> None:
    usage = summary(account(reading(0, 0), reading(1, 0.9)), final(cpu=CpuUsage(total_ns=S)), wall_s=1)
    assert usage.cpu_total_ns == S


def test_what_the_kernels_totals_lack_is_taken_from_the_last_reading() -> None:
    last = reading(1, 0.9, io=IoUsage(read_bytes=7), processes=ProcessUsage(seen=4))
    end = final(cpu=CpuUsage(total_ns=S), processes=ProcessUsage(voluntary_switches=3))
    usage = summary(account(last), end, wall_s=1)
    assert (usage.io_read_bytes, usage.processes_seen, usage.voluntary_switches) == (7, 4, 3)


def test_user_and_system_come_from_where_the_total_comes_from() -> None:
    last = reading(1, cpu=CpuUsage(total_ns=S, user_ns=S, system_ns=0))
    usage = summary(account(last), final(cpu=CpuUsage(total_ns=2 * S)), wall_s=1)
    assert (usage.cpu_total_ns, usage.cpu_user_ns) == (2 * S, None)


def test_the_peak_is_the_busiest_window() -> None:
    readings = [reading(0, 0), reading(1, 0.5), reading(2, 2.5), reading(3, 2.6)]
    assert summary(account(*readings), wall_s=3).cpu_percent_peak == pytest.approx(200.0)


def test_no_peak_comes_from_a_window_below_half_a_second() -> None:
    assert summary(account(reading(0, 0), reading(0.1, 0.1), reading(0.49, 0.4)), wall_s=0.5).cpu_percent_peak is None


def test_short_windows_are_joined_until_they_are_long_enough() -> None:
    """One scheduler tick of 10 ms in a window of 10 ms is no peak of 100 percent."""
    readings = [reading(position / 100, 0.01 * (position // 10)) for position in range(101)]
    assert summary(account(*readings), wall_s=1).cpu_percent_peak == pytest.approx(10.0, abs=2.1)


def test_the_peak_is_never_below_the_average() -> None:
    """Children that no sample saw are in the kernel's total alone."""
    usage = summary(account(reading(0, 0), reading(1, 0.1)), final(cpu=CpuUsage(total_ns=2 * S)), wall_s=1)
    assert usage.cpu_percent_average == 200.0
    assert usage.cpu_percent_peak == 200.0


def test_a_counter_that_went_back_makes_no_peak() -> None:
    usage = summary(account(reading(0, 5), reading(1, 0), reading(2, 0.5)), wall_s=2)
    assert usage.cpu_percent_peak == pytest.approx(50.0)


@given(gains=st.lists(st.tuples(st.integers(1, 3 * S), st.integers(0, 400)), min_size=1, max_size=40))
def test_the_peak_lies_between_the_average_and_the_busiest_moment(gains: list[tuple[int, int]]) -> None:
    made, at, total = RunAccount(), START, 0.0
    made.add(TaskResourceUsage(at_ns=at, taken_at_ns=at, cpu=CpuUsage(total_ns=0)))
    for window_ns, percent in gains:
        at += window_ns
        total += window_ns * percent / 100
        made.add(TaskResourceUsage(at_ns=at, taken_at_ns=at, cpu=CpuUsage(total_ns=int(total))))
    usage = made.summary(None, NO_LIMITS, at - START, since_recovery=False)
    if usage.cpu_percent_peak is not None:
        assert usage.cpu_percent_average is not None
        assert usage.cpu_percent_average <= usage.cpu_percent_peak + 1e-6
        assert usage.cpu_percent_peak <= max(percent for _, percent in gains) + 1e-3
    else:
        assert at - START < S  # only a run without one whole window has none


def test_the_largest_sample_of_a_tree_is_its_peak() -> None:
    usages = [reading(at, memory=MemoryUsage(pss_bytes=size * MB, measure="pss")) for at, size in enumerate([1, 9, 4])]
    usage = summary(account(*usages))
    assert (usage.memory_peak_bytes, usage.memory_measure) == (9 * MB, "pss")


def test_a_spike_that_no_sample_saw_is_known_from_the_kernel() -> None:
    sampled = reading(0, memory=MemoryUsage(pss_bytes=10 * MB, measure="pss"))
    usage = summary(account(sampled), final(memory=MemoryUsage(peak_bytes=200 * MB, measure="max_rss")))
    assert (usage.memory_peak_bytes, usage.memory_measure) == (200 * MB, "max_rss")


def test_a_sampled_sum_wins_over_the_largest_single_process() -> None:
    sampled = reading(0, memory=MemoryUsage(pss_bytes=300 * MB, measure="pss"))
    usage = summary(account(sampled), final(memory=MemoryUsage(peak_bytes=200 * MB, measure="max_rss")))
    assert (usage.memory_peak_bytes, usage.memory_measure) == (300 * MB, "pss")


@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_cgroups_own_peak_wins_over_everything(at_the_end: bool) -> None:
    of_group = MemoryUsage(peak_bytes=50 * MB, working_set_bytes=40 * MB, measure="cgroup")
    of_process = MemoryUsage(peak_bytes=90 * MB, measure="max_rss")
    first, last = (of_process, of_group) if at_the_end else (of_group, of_process)
    usage = summary(account(reading(0, memory=first)), final(memory=last))
    assert (usage.memory_peak_bytes, usage.memory_measure) == (50 * MB, "cgroup")


def test_an_unknown_memory_is_not_zero() -> None:
    assert summary(account(reading(0, 0)), wall_s=1).memory_peak_bytes is None


def test_shares_count_from_the_limits() -> None:
    limits = Resources(cpu_quota_cores=0.5, memory_bytes=100 * MB, memory_max_bytes=200 * MB)
    end = final(
        cpu=CpuUsage(total_ns=S, periods=10, throttled_periods=4, throttled_ns=5),
        memory=MemoryUsage(peak_bytes=50 * MB),
    )
    usage = summary(account(), end, limits, wall_s=4)
    assert usage.cpu_limit_percent == 50.0
    assert usage.memory_limit_percent == 25.0
    assert (usage.throttled_percent, usage.throttled_ns) == (40.0, 5)


def test_there_is_no_share_without_a_limit() -> None:
    end = final(cpu=CpuUsage(total_ns=S, periods=0, throttled_periods=0), memory=MemoryUsage(peak_bytes=1))
    usage = summary(account(), end, wall_s=1)
    assert (usage.cpu_limit_percent, usage.memory_limit_percent, usage.throttled_percent) == (None, None, None)


@pytest.mark.parametrize("wall_s", [None, 0])
def test_there_is_no_average_over_no_time(wall_s: float | None) -> None:
    assert summary(account(), final(cpu=CpuUsage(total_ns=S)), wall_s=wall_s).cpu_percent_average is None


def test_readings_and_drops_are_counted() -> None:
    made = account(reading(0, 0), reading(1, 0))
    made.dropped += 3
    usage = made.summary(None, NO_LIMITS, None, since_recovery=True)
    assert (usage.readings, usage.readings_dropped, usage.since_recovery) == (2, 3, True)
