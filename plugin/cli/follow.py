"""How often a run is measured: often at first, so that a short one has a true summary, then seldom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cameleer.errors import DriverError

if TYPE_CHECKING:
    from cameleer.task import Task
    from cameleer.usage import TaskResourceUsage

_STAGES = ((0.0, 0.05, 0.1), (0.2, 0.2, 60.0), (61.0, 1.0, float("inf")))
"""From when, how often and until when, in seconds after the first reading: at 0, 50, 100, 200 ms, then every 0.2 s,
and every second after a minute."""

_SLACK_S = 0.02


async def follow(
    task: Task, interval_s: float | None, ended: asyncio.Future[Any], use: Callable[[TaskResourceUsage], None]
) -> None:
    """Hand every reading of a task to ``use`` until it ends, the last one included.

    :param interval_s: between two readings; None: as above.
    :param ended: done when the task has ended.
    """
    last_ns = 0

    def take(reading: TaskResourceUsage) -> None:
        nonlocal last_ns
        if reading.at_ns > last_ns:
            last_ns = reading.at_ns
            use(reading)

    try:
        if interval_s is not None:
            async for reading in task.readings(interval_s):
                take(reading)
        else:
            await _in_stages(task, ended, take)
    except DriverError:  # it ended before there was anything to read, or cannot be read: the host has logged it
        pass
    if task.latest is not None:
        take(task.latest)


async def _in_stages(task: Task, ended: asyncio.Future[Any], take: Callable[[TaskResourceUsage], None]) -> None:
    first_ns: int | None = None
    age_s = 0.0
    for from_s, interval_s, until_s in _STAGES:
        if from_s > age_s:
            await asyncio.wait([ended], timeout=from_s - age_s)
            if ended.done():
                return
        async for reading in task.readings(interval_s):
            take(reading)
            first_ns = reading.at_ns if first_ns is None else first_ns
            age_s = (reading.at_ns - first_ns) / 1e9
            if age_s >= until_s - _SLACK_S:
                break
        else:
            return
