"""What the kernel writes in ``/proc/PID/…``, as values: pure functions on bytes.

Only fields that somebody uses are parsed. A text that is cut short or garbled raises ``RecoverableError``, which names
the file and shows how it begins; it is never taken for zero. Nothing here opens a file.
"""

from __future__ import annotations

import msgspec

from cameleer.errors import RecoverableError

#: Enough of ``/proc/PID/stat`` for every field up to ``rss``, and little enough for a small bytes object of CPython.
STAT_BYTES = 478

# Positions after the name's closing parenthesis; proc(5) counts the state as field 3.
STATE, PPID, MINFLT, CMINFLT, MAJFLT, CMAJFLT = 0, 1, 7, 8, 9, 10
UTIME, STIME, CUTIME, CSTIME, THREADS, START, RSS = 11, 12, 13, 14, 17, 19, 21
STAT_SPLITS = RSS + 1

_EXCERPT_BYTES = 80


class Stat(msgspec.Struct, frozen=True, gc=False):
    """The fields of ``/proc/PID/stat`` that are used, in the kernel's units (proc(5)).

    :ivar pid: the process.
    :ivar name: the command's name as the kernel wrote it, at most 15 bytes of a program's own choice: any byte may
        occur, a newline and ``)`` too (kernels before 4.18 wrote ``\\n`` for a newline). See :func:`display_name`.
    :ivar state: one letter: R, S, D, T, t, Z, X, I.
    :ivar ppid: the parent now; 0 for none.
    :ivar minor_faults: page faults without IO, of the process and all its threads, ended ones too.
    :ivar child_minor_faults: the same of its children that ended and were waited for.
    :ivar major_faults: page faults with IO.
    :ivar child_major_faults: the same of its waited-for children.
    :ivar user_ticks: CPU time in user mode, clock ticks.
    :ivar system_ticks: CPU time in the kernel, clock ticks.
    :ivar child_user_ticks: CPU time in user mode of its waited-for children, and of theirs, clock ticks.
    :ivar child_system_ticks: the same in the kernel.
    :ivar threads: number of threads.
    :ivar start_ticks: clock ticks from boot to the start; with the pid and the boot it names a process for good.
    :ivar rss_pages: resident memory, pages; on kernels from 6.2 short by up to some dozens of pages a CPU.
    """

    pid: int
    name: bytes
    state: str
    ppid: int
    minor_faults: int
    child_minor_faults: int
    major_faults: int
    child_major_faults: int
    user_ticks: int
    system_ticks: int
    child_user_ticks: int
    child_system_ticks: int
    threads: int
    start_ticks: int
    rss_pages: int


class Status(msgspec.Struct, frozen=True, gc=False):
    """The fields of ``/proc/PID/status`` (or ``/proc/PID/task/TID/status``) that are used.

    :ivar peak_rss_bytes: VmHWM, the most memory that was ever resident; None for a zombie or a kernel thread.
    :ivar swap_bytes: VmSwap; None as above, and on kernels without swap.
    :ivar voluntary_switches: context switches of this *thread* (the file of a process speaks of its first thread
        alone) because it waited; None where the kernel does not say.
    :ivar involuntary_switches: the same because its time was up.
    """

    peak_rss_bytes: int | None
    swap_bytes: int | None
    voluntary_switches: int | None
    involuntary_switches: int | None


class Io(msgspec.Struct, frozen=True, gc=False):
    """``/proc/PID/io``: of all threads, ended ones too, **and of every child that was waited for**.

    :ivar read_bytes: bytes fetched from storage.
    :ivar write_bytes: bytes sent to storage, or to the page cache on their way there.
    :ivar read_ops: system calls of the read family, whatever they read from (``syscr``).
    :ivar write_ops: system calls of the write family (``syscw``).
    """

    read_bytes: int
    write_bytes: int
    read_ops: int
    write_ops: int


class SmapsRollup(msgspec.Struct, frozen=True, gc=False):
    """The fields of ``/proc/PID/smaps_rollup`` that are used.

    :ivar rss_bytes: resident memory, exact.
    :ivar pss_bytes: resident memory, each page divided by the number of processes that have it mapped.
    :ivar swap_pss_bytes: swapped memory divided likewise; None where the kernel does not say.
    """

    rss_bytes: int
    pss_bytes: int
    swap_pss_bytes: int | None


def garbled(source: str, data: bytes) -> RecoverableError:
    """Make the error for a text that is not what the kernel writes there.

    :param source: the file's path.
    :param data: what was read.
    """
    shown = data[:_EXCERPT_BYTES]
    more = f"… ({len(data)} bytes)" if len(data) > _EXCERPT_BYTES else ""
    return RecoverableError(f"cannot make sense of {source}: {shown!r}{more}; trying again may help")


def stat_fields(data: bytes) -> list[bytes]:
    """Split a line of ``/proc/PID/stat`` behind the name, which may itself hold spaces and parentheses.

    :param data: the line, at least up to ``rss``.
    :returns: the fields from the state on, at the positions that this module names; the last element is the rest.
        Fewer than ``STAT_SPLITS + 1`` elements mean that the line was cut short.
    """
    return data[data.rfind(b")") + 1 :].split(None, STAT_SPLITS)


def parse_stat(data: bytes, source: str = "/proc/PID/stat") -> Stat:
    """Parse ``/proc/PID/stat``; the first ``STAT_BYTES`` are enough.

    :param data: what was read.
    :param source: the file's path, for the error.
    :raises RecoverableError: the line is cut short or garbled.
    """
    opening = data.find(b" (")
    closing = data.rfind(b")")
    fields = data[closing + 1 :].split(None, STAT_SPLITS)
    if opening < 1 or closing < opening or len(fields) <= STAT_SPLITS or len(fields[STATE]) != 1:
        raise garbled(source, data)
    try:
        numbers = [int(field) for field in fields[PPID:STAT_SPLITS]]
        numbers.insert(0, int(data[:opening]))
        state = fields[STATE].decode("ascii")
    except ValueError:
        raise garbled(source, data) from None
    stat = Stat(
        numbers[0],
        data[opening + 2 : closing],
        state,
        numbers[PPID],
        numbers[MINFLT],
        numbers[CMINFLT],
        numbers[MAJFLT],
        numbers[CMAJFLT],
        numbers[UTIME],
        numbers[STIME],
        numbers[CUTIME],
        numbers[CSTIME],
        numbers[THREADS],
        numbers[START],
        numbers[RSS],
    )
    if min(stat.pid, stat.ppid, *numbers[MINFLT : CSTIME + 1], stat.threads, stat.start_ticks, stat.rss_pages) < 0:
        raise garbled(source, data)
    return stat


def display_name(name: bytes) -> str:
    """Turn the name in ``/proc/PID/stat`` into text that can be printed and encoded anywhere.

    Bytes that are not UTF-8, and characters that would act upon a terminal, become ``\\xNN``.

    :param name: :attr:`Stat.name`.
    """
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in char.encode()) for char in text)


def _whole(data: bytes, source: str) -> None:
    if not data.endswith(b"\n"):
        raise garbled(source, data)


def _number(data: bytes, key: bytes, source: str) -> int | None:
    """Find ``\\nKEY:`` and return the number behind it; None when there is no such line."""
    at = data.find(key)
    if at < 0:
        return None
    at += len(key)
    words = data[at : data.find(b"\n", at)].split(None, 1)
    # isdigit, because int() takes signs and underscores, which the kernel never writes here
    if not words or not words[0].isdigit():
        raise garbled(source, data[at - len(key) + 1 :])
    return int(words[0])


def _kib(data: bytes, key: bytes, source: str) -> int | None:
    number = _number(data, key, source)
    return None if number is None else number * 1024


def parse_status(data: bytes, source: str = "/proc/PID/status") -> Status:
    """Parse ``/proc/PID/status``.

    :param data: the whole text.
    :param source: the file's path, for the error.
    :raises RecoverableError: the text is cut short, or a line that is there holds no number.
    """
    _whole(data, source)
    return Status(
        _kib(data, b"\nVmHWM:", source),
        _kib(data, b"\nVmSwap:", source),
        _number(data, b"\nvoluntary_ctxt_switches:", source),
        _number(data, b"\nnonvoluntary_ctxt_switches:", source),
    )


def parse_io(data: bytes, source: str = "/proc/PID/io") -> Io:
    """Parse ``/proc/PID/io``.

    :param data: the whole text.
    :param source: the file's path, for the error.
    :raises RecoverableError: the text is cut short or garbled.
    """
    _whole(data, source)
    read_ops = _number(data, b"\nsyscr:", source)
    write_ops = _number(data, b"\nsyscw:", source)
    read_bytes = _number(data, b"\nread_bytes:", source)
    write_bytes = _number(data, b"\nwrite_bytes:", source)
    if read_ops is None or write_ops is None or read_bytes is None or write_bytes is None:
        raise garbled(source, data)
    return Io(read_bytes, write_bytes, read_ops, write_ops)


def parse_smaps_rollup(data: bytes, source: str = "/proc/PID/smaps_rollup") -> SmapsRollup:
    """Parse ``/proc/PID/smaps_rollup``.

    :param data: the whole text.
    :param source: the file's path, for the error.
    :raises RecoverableError: the text is cut short or garbled.
    """
    _whole(data, source)
    rss_bytes = _kib(data, b"\nRss:", source)
    pss_bytes = _kib(data, b"\nPss:", source)
    if rss_bytes is None or pss_bytes is None:
        raise garbled(source, data)
    return SmapsRollup(rss_bytes, pss_bytes, _kib(data, b"\nSwapPss:", source))


def parse_last_pid(data: bytes, source: str = "/proc/loadavg") -> int:
    """Parse the last field of ``/proc/loadavg``: the pid (or thread id) that was given out last.

    :param data: the whole text.
    :param source: the file's path, for the error.
    :raises RecoverableError: the text is cut short or garbled.
    """
    _whole(data, source)
    words = data.split()
    if len(words) != 5 or not words[4].isdigit():
        raise garbled(source, data)
    return int(words[4])
