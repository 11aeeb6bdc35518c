"""What the host knows of the machine it runs on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """The machine, as far as readings and drivers need it; an orchestrator may give its own.

    :ivar total_mhz: sum of all cores' speeds, MHz; None: unknown, then ``ticks_mhz`` is too.
    :ivar cores: logical cores.
    :ivar page_size_bytes: size of a page of memory.
    :ivar clock_ticks_hz: unit of the times in /proc: ticks per second.
    :ivar node_id: the orchestrator's id of this machine.
    :ivar node_name: its name; the host name by default.
    :ivar host_id: tells the tasks of one host from another's; kept in the state folder, random without one.
    :ivar state_dir: where drivers keep what must outlive the host; a private temporary folder without one.
    """

    total_mhz: float | None = None
    cores: int = 1
    page_size_bytes: int = 4096
    clock_ticks_hz: int = 100
    node_id: str = ""
    node_name: str = ""
    host_id: str = ""
    state_dir: Path | None = None

    @functools.cached_property
    def mhz_per_percent(self) -> float | None:
        """MHz that one percent of one core stands for: ``total_mhz / cores / 100``; None if unknown."""
        return self.total_mhz / self.cores / 100 if self.total_mhz else None
