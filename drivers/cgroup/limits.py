"""What a task may use, as values of the kernel's files of either version.

Each limit that is asked for becomes a :class:`Setting`. Nothing is skipped: a limit that the kernel cannot hold is an
error that names the field and the file.

| Resources | version 1 | version 2 |
|---|---|---|
| cpu_mhz | cpu.shares | cpu.weight |
| cpu_quota_cores | cpu.cfs_period_us, cpu.cfs_quota_us | cpu.max |
| cpuset_cpus | cpuset.cpus | cpuset.cpus |
| memory_max_bytes, else memory_bytes | memory.limit_in_bytes | memory.max |
| memory_bytes beside memory_max_bytes | memory.soft_limit_in_bytes | memory.low |
| swap_bytes | memory.memsw.limit_in_bytes (memory and swap together) | memory.swap.max |
| pids | pids.max | pids.max |
| io_weight | blkio.weight, else blkio.bfq.weight | io.weight, else io.bfq.weight |

``oom_score_adj`` belongs to the process, not to its group: who starts it sets it.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cameleer.config import Resources
from cameleer.drivers.cgroup import kernel
from cameleer.errors import ConfigError, NotSupported

LEAST_CPU_MHZ: Final = 2
LEAST_MEMORY_BYTES: Final = 6 << 20
_MOST_SHARES: Final = 262_144
_PERIOD_US: Final = 100_000
_LONG_PERIOD_US: Final = 1_000_000
_LEAST_QUOTA_US: Final = 1_000
"""The kernel's own smallest quota."""
_MOST_BYTES: Final = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One file to be written.

    :ivar field: of ``Resources``.
    :ivar asked: its value.
    :ivar controller: the file's.
    :ivar instead: file and value where the kernel has only the other scheduler's file.
    """

    field: str
    asked: object
    controller: str
    file: str
    value: str
    instead: tuple[str, str] | None = None

    @property
    def asked_for(self) -> str:
        """The field and its value, for messages."""
        return f"Resources.{self.field} {self.asked!r}"


def check(resources: Resources) -> None:
    """Refuse what no kernel would hold.

    :raises ConfigError: names the field, its value and the least or most.
    """
    _at_least("cpu_mhz", resources.cpu_mhz, LEAST_CPU_MHZ, "MHz")
    _at_least("memory_bytes", resources.memory_bytes, LEAST_MEMORY_BYTES, "bytes")
    if resources.memory_limit_bytes is not None:
        _at_least("memory_max_bytes", resources.memory_max_bytes, LEAST_MEMORY_BYTES, "bytes")
    _at_least("cpu_quota_cores", resources.cpu_quota_cores, _LEAST_QUOTA_US / _LONG_PERIOD_US, "cores")
    weight = resources.io_weight
    if weight is not None and not 10 <= weight <= 1000:
        raise ConfigError(f"Resources.io_weight is {weight}: it must be 10 to 1000")
    for name in ("memory_bytes", "memory_max_bytes", "swap_bytes"):
        value = getattr(resources, name)
        if value is not None and value > _MOST_BYTES:
            raise ConfigError(f"Resources.{name} is {value}: it must be at most {_MOST_BYTES} bytes")


def settings(resources: Resources, version: Literal[1, 2], total_mhz: float | None = None) -> list[Setting]:
    """The files to write, in the order in which they must be written.

    :param total_mhz: of the machine: where it is above 262144, the most that ``cpu.shares`` takes, shares are of it.
    :raises ConfigError: a value out of range.
    """
    check(resources)
    return [*_cpu(resources, version, total_mhz), *_memory(resources, version), *_others(resources, version)]


def shares(cpu_mhz: int, total_mhz: float | None = None) -> int:
    """``cpu.shares`` of version 1: the MHz themselves, scaled down on a machine that has more than the file takes."""
    asked = float(cpu_mhz)
    if total_mhz is not None and total_mhz > _MOST_SHARES:
        asked = cpu_mhz / total_mhz * _MOST_SHARES
    return max(LEAST_CPU_MHZ, min(_MOST_SHARES, round(asked)))


def weight(cpu_shares: int) -> int:
    """``cpu.weight`` of version 2 for shares: 1024 gives 100, and both ends meet (2 gives 1, 262144 gives 10000)."""
    if cpu_shares <= 2:
        return 1
    if cpu_shares >= _MOST_SHARES:
        return 10_000
    power = math.log2(cpu_shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def quota(cores: float) -> tuple[int, int]:
    """Quota and period, microseconds: a period of 0.1 s, of 1 s for less than a hundredth of a core."""
    period = _PERIOD_US if cores * _PERIOD_US >= _LEAST_QUOTA_US else _LONG_PERIOD_US
    return max(_LEAST_QUOTA_US, round(cores * period)), period


def io_weight(asked: int) -> int:
    """``io.weight`` of version 2 (1 to 10000) for a weight of version 1 (10 to 1000)."""
    return 1 + (asked - 10) * 9999 // 990


def cpus(text: str) -> set[int]:
    """The CPUs of a list as the kernel writes it: ``0-1,4``; empty for an empty one."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return found


def apply(
    plan: Sequence[Setting], folders: Mapping[str, str], put: Callable[[str, str, str], None] | None = None
) -> None:
    """Write settings into the files of one group.

    :param folders: folder by controller.
    :param put: writes a value: (folder, file, value).
    :raises NotSupported: the kernel lacks the controller or the file; names field, value and file.
    :raises ConfigError: the kernel refused a value.
    """
    for each in plan:
        folder = folders.get(each.controller)
        if folder is None:
            raise NotSupported(
                f"{each.asked_for} cannot be held: there is no {each.controller} controller for {each.file}"
            )
        file, value = each.file, each.value
        if not os.path.exists(f"{folder}/{file}"):
            if each.instead is None or not os.path.exists(f"{folder}/{each.instead[0]}") or not _bfq():
                raise NotSupported(f"{each.asked_for} cannot be held: this kernel has no {file} (in {folder})")
            file, value = each.instead
        try:
            (put or _put)(folder, file, value)
        except OSError as exc:
            raise ConfigError(
                f"{each.asked_for}: the kernel refused {value!r} for {folder}/{file}: {exc.strerror}"
            ) from exc


def _put(folder: str, file: str, value: str) -> None:
    kernel.write(f"{folder}/{file}", value)


def _cpu(resources: Resources, version: int, total_mhz: float | None) -> list[Setting]:
    plan = []
    mhz, cores = resources.cpu_mhz, resources.cpu_quota_cores
    if mhz is not None:
        of_cpu = shares(mhz, total_mhz)
        file, value = ("cpu.shares", of_cpu) if version == 1 else ("cpu.weight", weight(of_cpu))
        plan.append(Setting(field="cpu_mhz", asked=mhz, controller="cpu", file=file, value=str(value)))
    if cores is not None:
        most, period = quota(cores)
        files = (
            (("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", str(most)))
            if version == 1
            else (("cpu.max", f"{most} {period}"),)
        )
        plan += [
            Setting(field="cpu_quota_cores", asked=cores, controller="cpu", file=file, value=text)
            for file, text in files
        ]
    return plan


def _memory(resources: Resources, version: int) -> list[Setting]:
    plan = []
    hard, swap = resources.memory_limit_bytes, resources.swap_bytes
    soft = resources.memory_bytes if resources.memory_max_bytes is not None else None
    if soft is not None:
        file = "memory.soft_limit_in_bytes" if version == 1 else "memory.low"
        plan.append(Setting(field="memory_bytes", asked=soft, controller="memory", file=file, value=str(soft)))
    if hard is not None:
        field = "memory_bytes" if resources.memory_max_bytes is None else "memory_max_bytes"
        file = "memory.limit_in_bytes" if version == 1 else "memory.max"
        plan.append(Setting(field=field, asked=hard, controller="memory", file=file, value=str(hard)))
    if swap is None:
        return plan
    if version == 2:
        plan.append(
            Setting(field="swap_bytes", asked=swap, controller="memory", file="memory.swap.max", value=str(swap))
        )
    elif hard is None:
        raise ConfigError(
            f"Resources.swap_bytes is {swap} without a memory limit: cgroup v1 limits memory and swap together"
        )
    else:
        both = str(min(_MOST_BYTES, hard + swap))
        file = "memory.memsw.limit_in_bytes"
        plan.append(Setting(field="swap_bytes", asked=swap, controller="memory", file=file, value=both))
    return plan


def _others(resources: Resources, version: int) -> list[Setting]:
    plan = []
    if resources.cpuset_cpus is not None:
        plan.append(
            Setting(
                field="cpuset_cpus",
                asked=resources.cpuset_cpus,
                controller="cpuset",
                file="cpuset.cpus",
                value=resources.cpuset_cpus,
            )
        )
    if resources.pids is not None:
        value = str(resources.pids)
        plan.append(Setting(field="pids", asked=resources.pids, controller="pids", file="pids.max", value=value))
    asked = resources.io_weight
    if asked is not None:
        first = ("blkio.weight", str(asked)) if version == 1 else ("io.weight", f"default {io_weight(asked)}")
        instead = "blkio.bfq.weight" if version == 1 else "io.bfq.weight"
        plan.append(
            Setting(
                field="io_weight",
                asked=asked,
                controller="blkio" if version == 1 else "io",
                file=first[0],
                value=first[1],
                instead=(instead, str(asked)),
            )
        )
    return plan


def _bfq() -> bool:
    """Some disk is run by the scheduler that the weights of bfq are for; without one they are accepted and idle."""
    for path in glob.glob("/sys/block/*/queue/scheduler"):
        try:
            if "[bfq]" in kernel.read(path):
                return True
        except OSError:
            continue
    return False


def _at_least(name: str, value: float | None, least: float, unit: str) -> None:
    if value is not None and value < least:
        raise ConfigError(f"Resources.{name} is {value}: it must be at least {least} {unit}, or None for no limit")
