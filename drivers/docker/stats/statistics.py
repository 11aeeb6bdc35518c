"""The engine's statistics of a container as counters: pure functions on its JSON, as Linux (control groups of both
versions) and Windows give it. No percentage is computed here, so how many processors the engine names does not matter.

Each value goes where :mod:`cameleer.drivers.cgroup.fields` has it, so that a container's readings are the same from its
groups and from its engine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from cameleer.drivers.cgroup.fields import group
from cameleer.drivers.docker.stats.clock import is_never
from cameleer.drivers.docker.stats.machine import UNKNOWN, Machine
from cameleer.errors import RecoverableError
from cameleer.usage import (
    NO_CPU,
    NO_IO,
    NO_MEMORY,
    NO_NETWORK,
    NO_PROCESSES,
    Counters,
    CpuUsage,
    IoUsage,
    MemoryUsage,
    MissingReason,
    NetworkUsage,
    ProcessUsage,
)

_WINDOWS_TICK_NS: Final = 100
_NO_LIMIT: Final = 1 << 62
"""Version 1 says "no limit" by the largest multiple of a page below 2⁶³, version 2 by 2⁶⁴ - 1."""
_MAY_BE_NONE: Final = frozenset({"memory.limit_bytes", "processes.limit"})
"""Known to be absent: there is no limit."""

Shape = Literal["v1", "v2", "windows", "unknown"]
Count = Annotated[int, msgspec.Meta(ge=0)]


class _CpuTimes(msgspec.Struct, frozen=True, gc=False):
    total_usage: Count | None = None
    usage_in_kernelmode: Count | None = None
    usage_in_usermode: Count | None = None


class _Throttling(msgspec.Struct, frozen=True, gc=False):
    periods: Count | None = None
    throttled_periods: Count | None = None
    throttled_time: Count | None = None


class _Cpu(msgspec.Struct, frozen=True, gc=False):
    cpu_usage: _CpuTimes | None = None
    throttling_data: _Throttling | None = None


class _MemoryStat(msgspec.Struct, frozen=True, gc=False):
    """Keys of ``memory.stat``: of version 1 those with the groups inside; then those of version 2."""

    total_rss: Count | None = None
    total_cache: Count | None = None
    total_mapped_file: Count | None = None
    total_unevictable: Count | None = None
    total_swap: Count | None = None
    total_inactive_file: Count | None = None
    total_pgfault: Count | None = None
    total_pgmajfault: Count | None = None
    hierarchical_memory_limit: Count | None = None
    anon: Count | None = None
    file: Count | None = None
    file_mapped: Count | None = None
    unevictable: Count | None = None
    swap: Count | None = None
    inactive_file: Count | None = None
    pgfault: Count | None = None
    pgmajfault: Count | None = None
    kernel: Count | None = None
    sock: Count | None = None


class _Memory(msgspec.Struct, frozen=True, gc=False):
    usage: Count | None = None
    max_usage: Count | None = None
    limit: Count | None = None
    stats: _MemoryStat | None = None
    commitbytes: Count | None = None
    commitpeakbytes: Count | None = None
    privateworkingset: Count | None = None


class _Operation(msgspec.Struct, frozen=True, gc=False):
    op: str = ""
    value: Count = 0


class _Blkio(msgspec.Struct, frozen=True, gc=False):
    io_service_bytes_recursive: list[_Operation] | None = None
    io_serviced_recursive: list[_Operation] | None = None


class _Storage(msgspec.Struct, frozen=True, gc=False):
    read_count_normalized: Count | None = None
    read_size_bytes: Count | None = None
    write_count_normalized: Count | None = None
    write_size_bytes: Count | None = None


class _Network(msgspec.Struct, frozen=True, gc=False):
    rx_bytes: Count = 0
    rx_packets: Count = 0
    rx_errors: Count = 0
    rx_dropped: Count = 0
    tx_bytes: Count = 0
    tx_packets: Count = 0
    tx_errors: Count = 0
    tx_dropped: Count = 0


class _Pids(msgspec.Struct, frozen=True, gc=False):
    current: Count | None = None
    limit: Count | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What is used of one answer to ``GET /containers/ID/stats``.

    :ivar read: when the engine read it, by its own clock; the year 1 in the answer about a stopped container.
    """

    read: str = ""
    num_procs: Count | None = None
    os_type: str | None = None
    cpu_stats: _Cpu | None = None
    memory_stats: _Memory | None = None
    blkio_stats: _Blkio | None = None
    storage_stats: _Storage | None = None
    networks: dict[str, _Network] | None = None
    pids_stats: _Pids | None = None

    @property
    def is_empty(self) -> bool:
        """It is about a container that did not run at that moment, and counts nothing."""
        return is_never(self.read)


_decoder: Final = msgspec.json.Decoder(Reply)


def decode(data: bytes | str) -> Reply:
    """Parse an answer.

    :raises RecoverableError: it is garbled, or cut short.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise _garbled(exc) from exc


def convert(found: object) -> Reply:
    """Take an answer that was parsed already.

    :raises RecoverableError: it is something else.
    """
    try:
        return msgspec.convert(found, Reply)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise _garbled(exc) from exc


def _garbled(exc: Exception) -> RecoverableError:
    return RecoverableError(f"cannot make sense of the engine's statistics: {exc}; trying again may help")


def shape(reply: Reply) -> Shape:
    """Whose shape an answer has.

    The keys of the memory decide, not a peak of 0: a container whose memory is not accounted for is of neither version.
    """
    memory = reply.memory_stats
    if reply.os_type == "windows" or reply.num_procs or (memory is not None and memory.commitbytes is not None):
        return "windows"
    stat = None if memory is None else memory.stats
    if stat is None:
        return "unknown"
    if stat.anon is not None or stat.file is not None:
        return "v2"
    if stat.total_rss is not None or stat.total_cache is not None:
        return "v1"
    return "unknown"


def counters(reply: Reply, *, at_ns: int, taken_at_ns: int, machine: Machine = UNKNOWN) -> Counters | None:
    """Turn an answer into counters; None: it is that about a container that does not run.

    :param at_ns: when the engine read it, by our monotonic clock.
    :param taken_at_ns: the same as Unix time.
    :param machine: what is known of the engine's machine.
    """
    if reply.is_empty:
        return None
    kind = shape(reply)
    if kind == "windows":
        cpu, memory, io, processes = (
            _cpu(reply, _WINDOWS_TICK_NS),
            _windows_memory(reply),
            _storage(reply),
            NO_PROCESSES,
        )
    else:
        cpu, memory = _cpu(reply, 1), _memory(reply, kind, machine.memory_bytes)
        io, processes = _blkio(reply, kind, machine.counts_all_io), _pids(reply)
    network = _networks(reply)
    return Counters(
        at_ns=at_ns,
        taken_at_ns=taken_at_ns,
        missing=_missing(kind, {"cpu": cpu, "memory": memory, "io": io, "network": network, "processes": processes}),
        cpu=cpu,
        memory=memory,
        io=io,
        network=network,
        processes=processes,
    )


def _cpu(reply: Reply, unit_ns: int) -> CpuUsage:
    found = reply.cpu_stats
    times = None if found is None else found.cpu_usage
    if found is None or times is None or times.total_usage is None:
        return NO_CPU
    memory, pids = reply.memory_stats, reply.pids_stats
    if not times.total_usage and (memory is None or memory == _Memory()) and (pids is None or not pids.current):
        return NO_CPU  # it runs and nothing is accounted for: an engine without control groups
    user, system = times.usage_in_usermode, times.usage_in_kernelmode
    throttling = None if unit_ns != 1 else found.throttling_data
    return CpuUsage(
        total_ns=times.total_usage * unit_ns,
        user_ns=None if user is None else user * unit_ns,
        system_ns=None if system is None else system * unit_ns,
        periods=None if throttling is None else throttling.periods,
        throttled_periods=None if throttling is None else throttling.throttled_periods,
        throttled_ns=None if throttling is None else throttling.throttled_time,
    )


def _memory(reply: Reply, kind: Shape, host_memory_bytes: int | None) -> MemoryUsage:
    found = reply.memory_stats
    if found is None or found.usage is None:
        return NO_MEMORY
    stat = found.stats or _MemoryStat()
    if kind == "v1":
        rss, cache, mapped, unevictable = (
            stat.total_rss,
            stat.total_cache,
            stat.total_mapped_file,
            stat.total_unevictable,
        )
        swap, inactive, faults, major = (
            stat.total_swap,
            stat.total_inactive_file,
            stat.total_pgfault,
            stat.total_pgmajfault,
        )
    else:
        rss, cache, mapped, unevictable = stat.anon, stat.file, stat.file_mapped, stat.unevictable
        swap, inactive, faults, major = stat.swap, stat.inactive_file, stat.pgfault, stat.pgmajfault
    usage = found.usage
    return MemoryUsage(
        rss_bytes=rss,
        cache_bytes=cache,
        swap_bytes=swap,
        mapped_file_bytes=mapped,
        usage_bytes=usage,
        usage_with_swap_bytes=None if swap is None else usage + swap,
        working_set_bytes=None if inactive is None else max(usage - inactive, 0),
        peak_bytes=found.max_usage or None,  # version 2: 0, or left out
        kernel_bytes=stat.kernel,
        unevictable_bytes=unevictable,
        socket_bytes=stat.sock,
        limit_bytes=_limit(found, stat, host_memory_bytes),
        minor_faults=None if faults is None or major is None else max(faults - major, 0),
        major_faults=major,
        measure="cgroup",
    )


def _limit(found: _Memory, stat: _MemoryStat, host_memory_bytes: int | None) -> int | None:
    limit = found.limit
    if not limit or limit >= _NO_LIMIT or (stat.hierarchical_memory_limit or 0) >= _NO_LIMIT:
        return None
    return None if host_memory_bytes and limit >= host_memory_bytes else limit


def _windows_memory(reply: Reply) -> MemoryUsage:
    """The job object's memory: what it committed, and the working set that nobody shares."""
    found = reply.memory_stats
    if found is None or (found.commitbytes is None and found.privateworkingset is None):
        return NO_MEMORY
    return MemoryUsage(
        rss_bytes=found.privateworkingset,
        usage_bytes=found.commitbytes,
        working_set_bytes=found.privateworkingset,
        peak_bytes=found.commitpeakbytes or None,
        measure="cgroup",
    )


def _blkio(reply: Reply, kind: Shape, counts_all: bool) -> IoUsage:
    """Where no device is listed nothing was done, or nothing is counted: the machine decides.

    Version 2 lists no operations.
    """
    found = reply.blkio_stats
    if found is None:
        return NO_IO
    moved, operations = found.io_service_bytes_recursive, found.io_serviced_recursive
    nothing = 0 if counts_all else None
    no_operations = None if kind == "v2" else nothing
    if not moved and not operations and nothing is None:
        return NO_IO
    return IoUsage(
        read_bytes=_sum(moved, "read", nothing),
        write_bytes=_sum(moved, "write", nothing),
        read_ops=_sum(operations, "read", no_operations),
        write_ops=_sum(operations, "write", no_operations),
    )


def _sum(entries: list[_Operation] | None, operation: str, nothing: int | None) -> int | None:
    """Over all devices; ``Read`` on version 1, ``read`` on version 2; ``Total``, ``Sync`` … count the same again."""
    return sum(each.value for each in entries if each.op.lower() == operation) if entries else nothing


def _storage(reply: Reply) -> IoUsage:
    found = reply.storage_stats
    if found is None or found == _Storage():
        return NO_IO
    return IoUsage(
        read_bytes=found.read_size_bytes,
        write_bytes=found.write_size_bytes,
        read_ops=found.read_count_normalized,
        write_ops=found.write_count_normalized,
    )


def _networks(reply: Reply) -> NetworkUsage:
    """All devices together; there are none on the host's network, and without one."""
    found = [each for name, each in (reply.networks or {}).items() if name != "lo"]
    if not found:
        return NO_NETWORK
    return NetworkUsage(
        rx_bytes=sum(each.rx_bytes for each in found),
        rx_packets=sum(each.rx_packets for each in found),
        rx_errors=sum(each.rx_errors for each in found),
        rx_drops=sum(each.rx_dropped for each in found),
        tx_bytes=sum(each.tx_bytes for each in found),
        tx_packets=sum(each.tx_packets for each in found),
        tx_errors=sum(each.tx_errors for each in found),
        tx_drops=sum(each.tx_dropped for each in found),
    )


def _pids(reply: Reply) -> ProcessUsage:
    """The kernel's count of pids is one of threads; how many processes they make up the engine does not say."""
    found = reply.pids_stats
    if found is None or not found.current:
        return NO_PROCESSES
    limit = found.limit
    return ProcessUsage(threads=found.current, limit=None if not limit or limit >= _NO_LIMIT else limit)


_ABSENT: Final = (NO_CPU, NO_MEMORY, NO_IO, NO_NETWORK, NO_PROCESSES)
_REASONS: Final[Mapping[str, MissingReason]] = {
    "cpu": "disabled",
    "memory": "disabled",
    "io": "disabled",
    "network": "unsupported",
    "processes": "disabled",
}


def _missing(kind: Shape, groups: Mapping[str, msgspec.Struct]) -> Mapping[str, MissingReason]:
    absent: list[str] = []
    for name, values in groups.items():
        if any(values is each for each in _ABSENT):
            absent.append(name)
        else:
            absent += [each for each, field in _fields(kind, name) if getattr(values, field) is None]
    return _explained(kind, tuple(absent))


@functools.cache
def _fields(kind: Shape, name: str) -> Iterable[tuple[str, str]]:
    """The fields that a group of this version has when it is read directly: full name and last part."""
    if kind == "windows":
        return ()
    known = group(2 if kind == "v2" else 1, name) - _MAY_BE_NONE
    return tuple((each, each.partition(".")[2]) for each in sorted(known))


@functools.cache
def _explained(kind: Shape, absent: tuple[str, ...]) -> Mapping[str, MissingReason]:
    """One constant for all answers that lack the same."""
    reasons: dict[str, MissingReason] = {"pressure": "unsupported"}
    for name in absent:
        reasons[name] = "unsupported" if kind == "windows" else _REASONS.get(name, "unsupported")
    return MappingProxyType(reasons)
