"""What a joined group had counted before is taken off, whatever it was."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.cgroup.baseline import Baseline
from cameleer.usage import NO_CPU, NO_MEMORY, Counters, CpuUsage, IoUsage, MemoryUsage, PressureUsage

COUNTS = st.none() | st.integers(0, 1 << 62)
READINGS = st.builds(
    Counters,
    at_ns=st.just(1),
    taken_at_ns=st.just(1),
    cpu=st.builds(CpuUsage, total_ns=COUNTS, user_ns=COUNTS, throttled_ns=COUNTS, periods=COUNTS),
    memory=st.builds(MemoryUsage, usage_bytes=COUNTS, peak_bytes=COUNTS, minor_faults=COUNTS, oom_kills=COUNTS),
    io=st.builds(IoUsage, read_bytes=COUNTS, write_ops=COUNTS),
    pressure=st.builds(PressureUsage, cpu_some_ns=COUNTS),
)


@given(READINGS, READINGS)
def test_what_is_left_is_what_was_counted_since(before: Counters, now: Counters) -> None:
    left = Baseline.of(before).since(now)
    for had, has, is_left in (
        (before.cpu.total_ns, now.cpu.total_ns, left.cpu.total_ns),
        (before.cpu.throttled_ns, now.cpu.throttled_ns, left.cpu.throttled_ns),
        (before.memory.oom_kills, now.memory.oom_kills, left.memory.oom_kills),
        (before.io.write_ops, now.io.write_ops, left.io.write_ops),
        (before.pressure.cpu_some_ns, now.pressure.cpu_some_ns, left.pressure.cpu_some_ns),
    ):
        assert is_left == (None if has is None else max(has - (had or 0), 0))
    assert left.memory.usage_bytes == now.memory.usage_bytes, "it is no counter"
    peak, had = now.memory.peak_bytes, before.memory.peak_bytes or 0
    assert left.memory.peak_bytes == (peak if peak is not None and peak > had else None)


@given(READINGS, READINGS)
def test_it_is_the_same_after_it_was_kept(before: Counters, now: Counters) -> None:
    baseline = Baseline.of(before)
    kept = Baseline.kept_in(msgspec.json.decode(msgspec.json.encode(baseline.kept())))
    assert (kept or Baseline()).since(now) == baseline.since(now)


def test_what_the_kernel_does_not_count_stays_unknown() -> None:
    left = Baseline.of(Counters(at_ns=1, taken_at_ns=1)).since(Counters(at_ns=1, taken_at_ns=1))
    assert (left.cpu, left.memory) == (NO_CPU, NO_MEMORY)
