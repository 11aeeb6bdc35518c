"""The host's beat: wake-ups that many streams share.

A sleep after the work drifts, and a timer for each stream costs about 50 µs a wake-up. Here all streams of one interval
share a few timers, at most 250 streams each, on a grid that does not drift.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from weakref import WeakKeyDictionary

from cameleer.driver import Tick

SLICE_SIZE = 250
"""Tasks that share one wake-up. It costs 95 µs, so fewer would cost more, and more would hold the loop longer."""


def phase_of_slice(index: int) -> float:
    """Where in the interval a slice falls, as a fraction: 0, ½, ¼, ¾, ⅛, … so that a new one moves no other."""
    phase, step = 0.0, 0.5
    while index:
        index, bit = divmod(index, 2)
        phase += step * bit
        step /= 2
    return phase


def next_due(now: float, interval_s: float, phase: float) -> float:
    """Return the next moment after ``now`` on the grid of this interval and phase, in the loop's time, seconds."""
    offset = interval_s * phase
    due = ((now - offset) // interval_s + 1) * interval_s + offset
    return due if due > now + interval_s * 1e-6 else due + interval_s  # a grid point may round to itself


class _Slice:
    """Streams that are woken together."""

    def __init__(self, interval_s: float, phase: float) -> None:
        self.interval_s = interval_s
        self.phase = phase
        self.members = 0
        self.waiting: list[asyncio.Future[Tick]] = []
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Tick]:
        future = loop.create_future()
        self.waiting.append(future)
        if self._timer is None:
            due = next_due(loop.time(), self.interval_s, self.phase)
            self._timer = loop.call_at(due, self._fire)
        return future

    def _fire(self) -> None:
        self._timer = None
        waiting, self.waiting = self.waiting, []
        tick = Tick(time.monotonic_ns(), extended=True)
        for future in waiting:
            if not future.done():
                future.set_result(tick)

    def leave(self) -> None:
        self.members -= 1
        if not self.members and self._timer is not None:
            self._timer.cancel()
            self._timer = None


_slices: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, list[_Slice]]] = WeakKeyDictionary()


def _join(loop: asyncio.AbstractEventLoop, interval_s: float) -> _Slice:
    slices = _slices.setdefault(loop, {}).setdefault(interval_s, [])
    for candidate in slices:
        if candidate.members < SLICE_SIZE:
            break
    else:
        candidate = _Slice(interval_s, phase_of_slice(len(slices)))
        slices.append(candidate)
    candidate.members += 1
    return candidate


async def ticks(interval_s: float) -> AsyncGenerator[Tick, None]:
    """Yield a tick now and then one per interval, at the host's beat.

    Intervals that pass while the receiver works are skipped, not made up for.

    :param interval_s: seconds, above 0.
    :raises ValueError: the interval is not above 0.
    """
    if not interval_s > 0:
        raise ValueError(f"interval_s is {interval_s!r}: it must be above 0 seconds")
    loop = asyncio.get_running_loop()
    place = _join(loop, interval_s)
    try:
        yield Tick(time.monotonic_ns(), extended=True, fresh=True)
        while True:
            yield await place.wait(loop)
    finally:
        place.leave()
