"""Rates from two sets of counters: the only place where a percentage is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cameleer.usage import NO_CPU, Counters, CpuUsage, TaskResourceUsage

if TYPE_CHECKING:
    from cameleer.config import Resources
    from cameleer.node import NodeInfo

_GROUPS = ("cpu", "memory", "io", "network", "processes", "pressure")
_RATES = {
    "cpu.percent": "cpu.total_ns",
    "cpu.user_percent": "cpu.user_ns",
    "cpu.system_percent": "cpu.system_ns",
}


def derive(
    previous: Counters | None,
    current: Counters,
    limits: Resources,
    node: NodeInfo,
    measured: frozenset[str] = frozenset(),
) -> TaskResourceUsage:
    """Turn the newest counters into a reading, with rates over the time since the previous ones.

    ``percent = Δtotal_ns / Δat_ns × 100``. Without a previous reading, in a window without length, or where a counter
    went back, the rate is None and the current counters are the new baseline: never a negative rate, never a spike.

    :param previous: the last counters handed to the same consumer, None at first.
    :param limits: gives the CPU quota that ``limit_percent`` is a share of.
    :param node: gives the MHz behind ``ticks_mhz``.
    :param measured: handed on as it is, see :func:`measured_fields`.
    """
    cpu = current.cpu
    window_ns: int | None = None
    if previous is not None and cpu is not NO_CPU:
        old = previous.cpu
        elapsed_ns = current.at_ns - previous.at_ns
        total_ns, old_total_ns = cpu.total_ns, old.total_ns
        if elapsed_ns > 0 and (total_ns is None or old_total_ns is None or total_ns >= old_total_ns):
            window_ns = elapsed_ns
            percent = ticks_mhz = limit_percent = None
            if total_ns is not None and old_total_ns is not None:
                percent = (total_ns - old_total_ns) * 100.0 / elapsed_ns
                mhz = node.mhz_per_percent
                if mhz is not None:
                    ticks_mhz = percent * mhz
                if limits.cpu_quota_cores is not None:
                    limit_percent = percent / limits.cpu_quota_cores
            user_ns, old_user_ns, user_percent = cpu.user_ns, old.user_ns, None
            if user_ns is not None and old_user_ns is not None and user_ns >= old_user_ns:
                user_percent = (user_ns - old_user_ns) * 100.0 / elapsed_ns
            system_ns, old_system_ns, system_percent = cpu.system_ns, old.system_ns, None
            if system_ns is not None and old_system_ns is not None and system_ns >= old_system_ns:
                system_percent = (system_ns - old_system_ns) * 100.0 / elapsed_ns
            cpu = CpuUsage(  # by position, and no calls above: this runs for every task and tick
                total_ns,
                user_ns,
                system_ns,
                percent,
                user_percent,
                system_percent,
                ticks_mhz,
                limit_percent,
                cpu.periods,
                cpu.throttled_periods,
                cpu.throttled_ns,
            )
    return TaskResourceUsage(
        current.at_ns,
        current.taken_at_ns,
        current.memory_at_ns,
        current.extended_at_ns,
        window_ns,
        measured,
        current.missing,
        cpu,
        current.memory,
        current.io,
        current.network,
        current.processes,
        current.pressure,
        current.per_process,
    )


def rate_percent(old_ns: int | None, new_ns: int | None, window_ns: int) -> float | None:
    """Gain of a time counter as percent of a window; None where it is unknown or went back.

    :param window_ns: nanoseconds, above 0.
    """
    if old_ns is None or new_ns is None or new_ns < old_ns:
        return None
    return (new_ns - old_ns) * 100.0 / window_ns


def measured_fields(counters: Counters, limits: Resources, node: NodeInfo) -> frozenset[str]:
    """Names of the fields that readings made of such counters carry, rates included.

    :param limits: a CPU quota adds ``cpu.limit_percent``.
    :param node: known MHz add ``cpu.ticks_mhz``.
    """
    names: set[str] = set()
    for group in _GROUPS:
        values = getattr(counters, group)
        names.update(f"{group}.{field}" for field in values.__struct_fields__ if getattr(values, field) is not None)
    names.update(rate for rate, counter in _RATES.items() if counter in names)
    if "cpu.percent" in names:
        if limits.cpu_quota_cores is not None:
            names.add("cpu.limit_percent")
        if node.mhz_per_percent is not None:
            names.add("cpu.ticks_mhz")
    return frozenset(names)
