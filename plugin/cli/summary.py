"""The end of a run: at most six lines for people, one JSON object for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cameleer.cli.units import NOT_MEASURED, number, percent, seconds, several, shown, size
from cameleer.config import Resources
from cameleer.status import ExitResult, FinalStatus, signal_name

if TYPE_CHECKING:
    from cameleer.usage import ProcessRow, RunUsage

MEASURES: Mapping[str | None, str] = {
    "cgroup": "cgroup",
    "pss": "PSS",
    "rss_sum": "sum of RSS, an upper bound",
    "max_rss": "RSS of the largest process",
}
"""What stands for "memory in use", in the words of the summary."""

_COMMAND_WIDTH = 36
_LEFT_NAMED = 6


def lines(result: ExitResult, command: Sequence[str], limits: Resources) -> list[str]:
    """Sum up a run for people: what ``/usr/bin/time -v`` says as far as the kernel does, and what only we know.

    :param limits: what was asked for; each has its share shown.
    """
    usage = result.usage
    text = [
        f"cameleer: {ending(result, command)}, {_after(usage)} ({result.driver})",
        f"  cpu      {cpu(usage)}; {throttling(usage, limits)}",
        f"  memory   {memory(usage, limits)}",
        f"  faults   {faults(usage)}; switches {switches(usage)}",
        f"  io       read {size(usage.io_read_bytes)}, written {size(usage.io_write_bytes)}; {processes(usage)}",
    ]
    if result.left_running:
        text.append(f"  left     still running: {left(result.left_running)}")
    return text


def watched_lines(result: ExitResult, name: str, *, ended: bool) -> list[str]:
    """Sum up what was watched of a process that somebody else runs."""
    usage = result.usage
    what = "ended" if ended else "still runs"
    return [
        f"cameleer: {result.task_id} ({shown([name])}) {what}, watched for {seconds(usage.wall_ns)}",
        f"  cpu      {cpu(usage)}",
        f"  memory   {memory(usage, Resources()).removesuffix('; no limit')}",
        f"  faults   {faults(usage)}; switches {switches(usage)}",
        f"  io       read {size(usage.io_read_bytes)}, written {size(usage.io_write_bytes)}; {processes(usage)}",
    ]


def ending(result: ExitResult, command: Sequence[str]) -> str:
    """Say how the command ended."""
    name = shown(list(command), _COMMAND_WIDTH)
    if result.status is FinalStatus.TIMEOUT:
        return f"{name} ran into its timeout"
    memory = ", out of memory" if result.oom_killed and result.exit_code else ""
    if result.signal is not None:
        return f"{name} was killed by {signal_name(result.signal)}{memory}"
    if result.exit_code is None:
        return f"{name} ended, nobody knows how"
    return f"{name} exited with {result.exit_code}{memory}"


def _after(usage: RunUsage) -> str:
    return f"{seconds(usage.wall_ns)} elapsed" if usage.wall_ns is not None else "elapsed time not measured"


def cpu(usage: RunUsage) -> str:
    """Totals of the CPU; average and peak in percent of one core."""
    if usage.cpu_total_ns is None and usage.cpu_percent_peak is None:
        return NOT_MEASURED
    return (
        f"{seconds(usage.cpu_total_ns)} (user {seconds(usage.cpu_user_ns)}, system {seconds(usage.cpu_system_ns)}), "
        f"average {percent(usage.cpu_percent_average)}, peak {percent(usage.cpu_percent_peak)}"
    )


def memory(usage: RunUsage, limits: Resources) -> str:
    """Peak of the memory, its measure and the share of the limit."""
    if usage.memory_peak_bytes is None:
        return f"peak {NOT_MEASURED}" + (f"; limit {size(limits.memory_limit_bytes)}" if _limited(limits) else "")
    text = f"peak {size(usage.memory_peak_bytes)} ({MEASURES.get(usage.memory_measure, NOT_MEASURED)})"
    if limits.memory_limit_bytes is not None:
        text += f", {percent(usage.memory_limit_percent)} of the limit {size(limits.memory_limit_bytes)}"
    else:
        text += "; no limit"
    if usage.oom_kills:
        text += f"; {several(usage.oom_kills, 'process', 'processes')} killed for lack of it"
    return text


def _limited(limits: Resources) -> bool:
    return limits.memory_limit_bytes is not None


def faults(usage: RunUsage) -> str:
    """Page faults, and what a page is."""
    page = size(os.sysconf("SC_PAGE_SIZE"))
    if usage.major_faults is None and usage.minor_faults is None:
        return NOT_MEASURED
    return f"{number(usage.major_faults)} major, {number(usage.minor_faults)} minor, pages of {page}"


def switches(usage: RunUsage) -> str:
    """Context switches of both kinds."""
    if usage.voluntary_switches is None and usage.involuntary_switches is None:
        return NOT_MEASURED
    return f"{number(usage.voluntary_switches)} voluntary, {number(usage.involuntary_switches)} involuntary"


def processes(usage: RunUsage) -> str:
    """How many processes there were, and how often they were looked at."""
    seen = usage.processes_seen
    text = f"{several(seen, 'process', 'processes')} seen" if seen is not None else f"processes {NOT_MEASURED}"
    text += f" in {several(usage.readings, 'reading', 'readings')}"
    return text + (f" ({usage.readings_dropped:,} dropped)" if usage.readings_dropped else "")


def throttling(usage: RunUsage, limits: Resources) -> str:
    """Share of the CPU quota, and how often it held the command back."""
    quota = limits.cpu_quota_cores
    if quota is None and not usage.throttled_ns:
        return "no quota"
    held = (
        f"held back {seconds(usage.throttled_ns)} ({percent(usage.throttled_percent)} of periods)"
        if usage.throttled_ns is not None
        else f"throttling {NOT_MEASURED}"
    )
    if quota is None:
        return held
    return f"{percent(usage.cpu_limit_percent)} of {quota:g} {'core' if quota == 1 else 'cores'}, {held}"


def left(rows: Sequence[ProcessRow]) -> str:
    """Name the processes that outlived the command."""
    named = ", ".join(f"{row.pid} ({shown([row.name])})" for row in rows[:_LEFT_NAMED])
    return named if len(rows) <= _LEFT_NAMED else f"{named} and {len(rows) - _LEFT_NAMED} more"


def record(result: ExitResult) -> dict[str, Any]:
    """The same as one JSON object: seconds where people say seconds, everything else named as ``RunUsage`` is."""
    usage = {name: getattr(result.usage, name) for name in result.usage.__dataclass_fields__}
    wall, total = usage.pop("wall_ns"), usage.pop("cpu_total_ns")
    user, system = usage.pop("cpu_user_ns"), usage.pop("cpu_system_ns")
    first = (
        "cpu_percent_average",
        "cpu_percent_peak",
        "memory_peak_bytes",
        "memory_measure",
        "readings",
        "readings_dropped",
        "processes_seen",
    )
    return {
        "task_id": result.task_id,
        "driver": result.driver,
        "status": str(result.status),
        "exit_code": result.exit_code,
        "signal": result.signal,
        "oom_killed": result.oom_killed,
        "wall_seconds": _s(wall),
        "cpu_seconds": _s(total),
        "cpu_user_seconds": _s(user),
        "cpu_system_seconds": _s(system),
        **{name: usage.pop(name) for name in first},
        **usage,
        "error": result.error,
        "started_at_ns": result.started_at_ns,
        "ended_at_ns": result.ended_at_ns,
        "left_running": [{"pid": row.pid, "name": row.name} for row in result.left_running],
    }


def _s(value_ns: int | None) -> float | None:
    return None if value_ns is None else value_ns / 1e9
