"""The two units in which /proc speaks, asked of the system once."""

from __future__ import annotations

import os

#: Clock ticks a second, the unit of all times in ``/proc/PID/stat`` (100 on every common kernel).
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Nanoseconds of one clock tick.
NS_PER_TICK = 1_000_000_000 // CLOCK_TICKS_PER_S
#: Bytes of one page of memory, the unit of ``rss`` in ``/proc/PID/stat``.
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
