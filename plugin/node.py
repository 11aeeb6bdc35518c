"""What the host knows of the machine it runs on."""

from __future__ import annotations

import functools
import os
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
    :ivar recoverable: handles are kept, so a later host finds its tasks again; otherwise a driver lets its tasks end
        when this process dies.
    """

    total_mhz: float | None = None
    cores: int = 1
    page_size_bytes: int = 4096
    clock_ticks_hz: int = 100
    node_id: str = ""
    node_name: str = ""
    host_id: str = ""
    state_dir: Path | None = None
    recoverable: bool = False

    @functools.cached_property
    def mhz_per_percent(self) -> float | None:
        """MHz that one percent of one core stands for: ``total_mhz / cores / 100``; None if unknown."""
        return self.total_mhz / self.cores / 100 if self.total_mhz else None


def detect(
    *,
    node_id: str = "",
    node_name: str = "",
    host_id: str = "",
    state_dir: Path | None = None,
    recoverable: bool = False,
) -> NodeInfo:
    """Look at this machine.

    :param node_name: empty: the host name.
    :param host_id: empty: made up.
    """
    return NodeInfo(
        total_mhz=total_mhz(),
        cores=os.cpu_count() or 1,
        page_size_bytes=os.sysconf("SC_PAGE_SIZE"),
        clock_ticks_hz=os.sysconf("SC_CLK_TCK"),
        node_id=node_id,
        node_name=node_name or os.uname().nodename,
        host_id=host_id or os.urandom(8).hex(),
        state_dir=state_dir,
        recoverable=recoverable,
    )


def total_mhz(sys_cpu: str = "/sys/devices/system/cpu", cpuinfo: str = "/proc/cpuinfo") -> float | None:
    """Sum of the speeds of all cores that are online, MHz; None where a core's speed is not known.

    Of each core its base frequency, else the highest one, else (in a virtual machine) what /proc/cpuinfo says of the
    first core now.
    """
    total = 0.0
    guess: float | None = None
    for cpu in _online(sys_cpu):
        mhz = _base_mhz(f"{sys_cpu}/cpu{cpu}")
        if mhz is None:
            guess = guess or _first_cpu_mhz(cpuinfo)
            mhz = guess
        if mhz is None:
            return None
        total += mhz
    return total or None


def _base_mhz(cpu: str) -> float | None:
    khz = _number(f"{cpu}/cpufreq/base_frequency")
    if khz is None:
        nominal_mhz = _number(f"{cpu}/acpi_cppc/nominal_freq")
        if nominal_mhz:
            return float(nominal_mhz)
        khz = _number(f"{cpu}/cpufreq/cpuinfo_max_freq")
    return float(khz // 1000) if khz else None


def _online(sys_cpu: str) -> list[int]:
    """Numbers of the CPUs that are online; the kernel writes them as ``0-3,8``."""
    cpus: list[int] = []
    try:
        for part in _start_of(f"{sys_cpu}/online").strip().split(","):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return list(range(os.cpu_count() or 1))
    return cpus


def _first_cpu_mhz(cpuinfo: str) -> float | None:
    try:
        for line in _start_of(cpuinfo).splitlines():
            if line.startswith("cpu MHz"):
                return float(line.partition(":")[2])
    except (OSError, ValueError):
        pass
    return None


def _number(path: str) -> int | None:
    try:
        return int(_start_of(path))
    except (OSError, ValueError):
        return None


def _start_of(path: str) -> str:
    """The first 4 KB: the rest of /proc/cpuinfo would cost a look at every core."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096).decode("ascii", "replace")
    finally:
        os.close(descriptor)
