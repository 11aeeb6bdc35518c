"""Which file and key of a group gives which field of a reading: one table, which the readers, tests and docs follow.

The readers take the keys that they look for, and their order, from here. ``python -m cameleer.drivers.cgroup.fields``
prints the page of the documentation.
"""

from __future__ import annotations

import functools
from typing import Final, Literal

import msgspec

Version = Literal[1, 2]
Tier = Literal["core", "core with a CPU quota, else extended", "core on a host with swap, else extended", "extended"]

CORE: Final = "core"
QUOTA: Final = "core with a CPU quota, else extended"
SWAP: Final = "core on a host with swap, else extended"
EXTENDED: Final = "extended"


class Unit(msgspec.Struct, frozen=True):
    """What the kernel counts in.

    :ivar name: as the documentation has it.
    :ivar factor: what one is in nanoseconds, bytes or pieces.
    """

    name: str
    factor: int = 1


BYTES: Final = Unit("bytes")
COUNT: Final = Unit("count")
NANOSECONDS: Final = Unit("ns")
MICROSECONDS: Final = Unit("µs", 1_000)
TICKS: Final = Unit("ticks of 10 ms", 10_000_000)


class At(msgspec.Struct, frozen=True):
    """Where a field comes from, on one version.

    :ivar tier: when the file is read.
    :ivar file: its name; the controller is what stands before the first dot.
    :ivar key: in a file of several values; one with devices is summed over them.
    :ivar unit: what the kernel counts in.
    :ivar sign: ``+`` or ``-``: the field is this and another value together; never below 0.
    :ivar other: file and key of that value.
    :ivar older: name of the file on kernels that lack it.
    :ivar note: what else is to be said.
    """

    tier: Tier
    file: str
    key: str = ""
    unit: Unit = BYTES
    sign: Literal["", "+", "-"] = ""
    other: tuple[str, str] = ("", "")
    older: str = ""
    note: str = ""

    @property
    def controller(self) -> str:
        """Whose file it is; empty: every folder has it."""
        found = self.file.partition(".")[0]
        return found if found in ("cpu", "cpuacct", "memory", "pids", "blkio", "io") else ""


class Field(msgspec.Struct, frozen=True):
    """One row: a field of ``cameleer.usage`` and its sources; None: this version does not say."""

    name: str
    v1: At | None
    v2: At | None

    def at(self, version: Version) -> At | None:
        """Its source on one version."""
        return self.v1 if version == 1 else self.v2


_NO_LIMIT_V1 = "9223372036854771712 (any from 2⁶² on) is None"
_NO_LIMIT_V2 = "`max` is None"
_WITH_INSIDE = "lines, with those of the groups inside"
_BLKIO_BYTES = ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes")
_BLKIO_OPS = ("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced")
_BLKIO_NOTE = "None where no device is listed and the kernel (from 6.10) counts only groups with an IO limit"
_NET = "/proc/PID/net/dev"
_NET_NOTE = "all devices but `lo`; only in a network namespace of the task's own"


def _stat(key: str, v2_key: str) -> tuple[At, At]:
    return At(CORE, "memory.stat", key), At(CORE, "memory.stat", v2_key)


def _network(column: str) -> tuple[At, At]:
    unit = BYTES if column.endswith("bytes") else COUNT
    at = At(EXTENDED, _NET, column, unit, note=_NET_NOTE)
    return at, at


def _pressure(resource: str, kind: str) -> tuple[None, At]:
    return None, At(EXTENDED, f"{resource}.pressure", f"{kind} total", MICROSECONDS)


FIELDS: Final = (
    Field(
        "cpu.total_ns",
        At(CORE, "cpuacct.usage", unit=NANOSECONDS),
        At(CORE, "cpu.stat", "usage_usec", MICROSECONDS),
    ),
    Field(
        "cpu.user_ns",
        At(CORE, "cpuacct.stat", "user", TICKS),
        At(CORE, "cpu.stat", "user_usec", MICROSECONDS),
    ),
    Field(
        "cpu.system_ns",
        At(CORE, "cpuacct.stat", "system", TICKS),
        At(CORE, "cpu.stat", "system_usec", MICROSECONDS),
    ),
    Field(
        "cpu.periods",
        At(QUOTA, "cpu.stat", "nr_periods", COUNT),
        At(CORE, "cpu.stat", "nr_periods", COUNT),
    ),
    Field(
        "cpu.throttled_periods",
        At(QUOTA, "cpu.stat", "nr_throttled", COUNT),
        At(CORE, "cpu.stat", "nr_throttled", COUNT),
    ),
    Field(
        "cpu.throttled_ns",
        At(QUOTA, "cpu.stat", "throttled_time", NANOSECONDS),
        At(CORE, "cpu.stat", "throttled_usec", MICROSECONDS),
    ),
    Field("memory.rss_bytes", *_stat("total_rss", "anon")),
    Field("memory.cache_bytes", *_stat("total_cache", "file")),
    Field("memory.mapped_file_bytes", *_stat("total_mapped_file", "file_mapped")),
    Field("memory.unevictable_bytes", *_stat("total_unevictable", "unevictable")),
    Field(
        "memory.swap_bytes",
        At(CORE, "memory.stat", "total_swap"),
        At(SWAP, "memory.swap.current"),
    ),
    Field(
        "memory.usage_bytes",
        At(CORE, "memory.usage_in_bytes"),
        At(CORE, "memory.current"),
    ),
    Field(
        "memory.usage_with_swap_bytes",
        At(CORE, "memory.usage_in_bytes", sign="+", other=("memory.stat", "total_swap")),
        At(CORE, "memory.current", sign="+", other=("memory.swap.current", "")),
    ),
    Field(
        "memory.working_set_bytes",
        At(CORE, "memory.usage_in_bytes", sign="-", other=("memory.stat", "total_inactive_file")),
        At(CORE, "memory.current", sign="-", other=("memory.stat", "inactive_file")),
    ),
    Field(
        "memory.peak_bytes",
        At(CORE, "memory.max_usage_in_bytes"),
        At(CORE, "memory.peak", note="from Linux 5.19"),
    ),
    Field(
        "memory.minor_faults",
        At(CORE, "memory.stat", "total_pgfault", COUNT, sign="-", other=("memory.stat", "total_pgmajfault")),
        At(CORE, "memory.stat", "pgfault", COUNT, sign="-", other=("memory.stat", "pgmajfault")),
    ),
    Field(
        "memory.major_faults",
        At(CORE, "memory.stat", "total_pgmajfault", COUNT),
        At(CORE, "memory.stat", "pgmajfault", COUNT),
    ),
    Field(
        "memory.kernel_bytes",
        At(EXTENDED, "memory.kmem.usage_in_bytes"),
        At(CORE, "memory.stat", "kernel", note="from Linux 5.18"),
    ),
    Field("memory.kernel_peak_bytes", At(EXTENDED, "memory.kmem.max_usage_in_bytes"), None),
    Field(
        "memory.socket_bytes",
        At(EXTENDED, "memory.kmem.tcp.usage_in_bytes", note="TCP alone"),
        At(CORE, "memory.stat", "sock"),
    ),
    Field(
        "memory.limit_bytes",
        At(EXTENDED, "memory.limit_in_bytes", note=_NO_LIMIT_V1),
        At(EXTENDED, "memory.max", note=_NO_LIMIT_V2),
    ),
    Field(
        "memory.soft_limit_bytes",
        At(EXTENDED, "memory.soft_limit_in_bytes", note=_NO_LIMIT_V1),
        At(EXTENDED, "memory.low", note="0 is None"),
    ),
    Field(
        "memory.oom_kills",
        At(EXTENDED, "memory.oom_control", "oom_kill", COUNT, note="with those of the groups inside; from Linux 4.13"),
        At(EXTENDED, "memory.events", "oom_kill", COUNT, note="counts the groups inside"),
    ),
    Field(
        "io.read_bytes",
        At(EXTENDED, _BLKIO_BYTES[0], "Read", older=_BLKIO_BYTES[1], note=_BLKIO_NOTE),
        At(EXTENDED, "io.stat", "rbytes"),
    ),
    Field(
        "io.write_bytes",
        At(EXTENDED, _BLKIO_BYTES[0], "Write", older=_BLKIO_BYTES[1], note=_BLKIO_NOTE),
        At(EXTENDED, "io.stat", "wbytes"),
    ),
    Field(
        "io.read_ops",
        At(EXTENDED, _BLKIO_OPS[0], "Read", COUNT, older=_BLKIO_OPS[1], note=_BLKIO_NOTE),
        At(EXTENDED, "io.stat", "rios", COUNT),
    ),
    Field(
        "io.write_ops",
        At(EXTENDED, _BLKIO_OPS[0], "Write", COUNT, older=_BLKIO_OPS[1], note=_BLKIO_NOTE),
        At(EXTENDED, "io.stat", "wios", COUNT),
    ),
    Field(
        "processes.processes",
        At(EXTENDED, "cgroup.procs", unit=COUNT, note=_WITH_INSIDE),
        At(EXTENDED, "cgroup.procs", unit=COUNT, note=_WITH_INSIDE),
    ),
    Field(
        "processes.threads",
        At(EXTENDED, "pids.current", unit=COUNT),
        At(EXTENDED, "pids.current", unit=COUNT),
    ),
    Field(
        "processes.limit",
        At(EXTENDED, "pids.max", unit=COUNT, note=_NO_LIMIT_V2),
        At(EXTENDED, "pids.max", unit=COUNT, note=_NO_LIMIT_V2),
    ),
    Field("pressure.cpu_some_ns", *_pressure("cpu", "some")),
    Field("pressure.cpu_full_ns", *_pressure("cpu", "full")),
    Field("pressure.memory_some_ns", *_pressure("memory", "some")),
    Field("pressure.memory_full_ns", *_pressure("memory", "full")),
    Field("pressure.io_some_ns", *_pressure("io", "some")),
    Field("pressure.io_full_ns", *_pressure("io", "full")),
    Field("network.rx_bytes", *_network("Receive bytes")),
    Field("network.rx_packets", *_network("Receive packets")),
    Field("network.rx_errors", *_network("Receive errs")),
    Field("network.rx_drops", *_network("Receive drop")),
    Field("network.tx_bytes", *_network("Transmit bytes")),
    Field("network.tx_packets", *_network("Transmit packets")),
    Field("network.tx_errors", *_network("Transmit errs")),
    Field("network.tx_drops", *_network("Transmit drop")),
)
"""All fields that a group gives, in the order of ``cameleer.usage``."""


def source(version: Version, name: str) -> At:
    """Where a field comes from.

    :raises KeyError: this version does not say.
    """
    for field in FIELDS:
        at = field.at(version)
        if field.name == name and at is not None:
            return at
    raise KeyError(name)


@functools.cache
def files(version: Version, core: bool) -> tuple[tuple[str, str], ...]:
    """The files of the group that the core tier reads, or the others; each with the name it has on older kernels."""
    found: dict[str, str] = {}
    for field in FIELDS:
        at = field.at(version)
        if at is not None and (at.tier != EXTENDED) == core and at.file != _NET:
            found[at.file] = at.older
            if at.other[0]:
                found.setdefault(at.other[0], "")
    return tuple(found.items())


def keys(version: Version, file: str) -> tuple[bytes, ...]:
    """The keys that are looked for in a file, in the table's order."""
    found: dict[str, None] = {}
    for field in FIELDS:
        at = field.at(version)
        if at is not None:
            for name, key in ((at.file, at.key), at.other):
                if name == file and key:
                    found[key] = None
    return tuple(key.encode() for key in found)


@functools.cache
def given_by(version: Version, file: str) -> tuple[str, ...]:
    """The fields that cannot be had without a file."""
    return tuple(
        field.name for field in FIELDS if (at := field.at(version)) is not None and file in (at.file, at.other[0])
    )


@functools.cache
def group(version: Version, name: str) -> frozenset[str]:
    """All fields of one group of a reading that have a source."""
    return frozenset(each.name for each in FIELDS if each.name.startswith(f"{name}.") and each.at(version) is not None)


def markdown() -> str:
    """The page of the documentation."""
    lines = [
        "# Where the figures of a control group come from",
        "",
        "<!-- written by: python -m cameleer.drivers.cgroup.fields -->",
        "",
        "Which file and key of a group gives which field of a reading, on both versions of control groups. The readers",
        "take their keys from this table (`cameleer.drivers.cgroup.fields`). What each figure answers is on the page",
        "[Figures](figures.md).",
        "",
        "| Field | Tier | Version 1 | Tier | Version 2 |",
        "|---|---|---|---|---|",
    ]
    for field in FIELDS:
        cells = [f"`{field.name}`", *_cells(field.v1), *_cells(field.v2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" + _RULES


def _cells(at: At | None) -> tuple[str, str]:
    if at is None:
        return "", "–"
    text = _shown(at.file, at.key)
    if at.sign:
        text += f" {'−' if at.sign == '-' else '+'} {_shown(*at.other)}"
    if at.unit.factor != 1:
        text += f", {at.unit.name}"
    if at.older:
        text += f"; on older kernels `{at.older}`"
    if at.note:
        text += f"; {at.note}"
    return at.tier, text


def _shown(file: str, key: str) -> str:
    return f"`{file}` `{key}`" if key else f"`{file}`"


_RULES = """
Values are nanoseconds and bytes in the reading, whatever the kernel counts in. Version 1 reads the hierarchical
`total_*` keys, so groups that a task makes inside its own are counted; version 2 always counts them. A difference is
never below 0. `memory.measure` is `cgroup`.

**Tiers.** The core is read at each tick; the rest every `extended_interval` (5 s), at the first and last reading and on
demand, and is else handed over again with its time in `extended_at_ns`. Of the memory group the fields that are
extended above are as old as `extended_at_ns`; the others as `memory_at_ns`.

**A task that does nothing.** Once the CPU counter has stood still for 3 s (`idle_after_s`), only its file is read, and
everything else is handed out again under its true age, `memory_at_ns` and `extended_at_ns`; all is read anew every 30 s
(`refresh_s`), at once when the counter moves, and when a fresh reading is asked for. Why 3 s: the kernel adds up small
changes of memory (some dozens of pages) only every 2 s, so `memory.stat` lags by so much while the other files stand
still. What can change without CPU time of the task's own (packets received, written pages that reach the disk later)
shows up to 30 s late there.

**What is missing.** A file that the kernel lacks gives None; `missing` has the group, or the single field where the
rest of its group is there: `unsupported` (this kernel has no such file), `disabled` (the controller is not enabled for
the group, or pressure figures are switched off), `not permitted`. A group removed while it is read raises
`TaskNotFound`; a text that is cut short or garbled raises `RecoverableError`, which names the file.

**OOM kills on version 1** are counted by the kernel for each group alone. Groups that the task made inside its own are
looked through in the extended tier, at most so often that it costs 2 % of a core; kills in a group that came and went
between two looks are lost.

**Descriptors.** The files stay open: up to 6 for the core of a task, some 10 for the rest. The readers hold at most
three quarters of the limit of the process (`ulimit -n`), and those of the extended tier only below half of that. Files
beyond are opened for each reading, which costs 3 to 5 times as much; of the core tier a warning in the log says so
once. The programs of cameleer raise their own limit as far as they may (what they run gets the caller's); a program
that embeds a host keeps its own.
"""

if __name__ == "__main__":
    print(markdown(), end="")
