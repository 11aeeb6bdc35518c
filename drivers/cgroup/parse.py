"""What the kernel writes in the files of a group, as values: pure functions on bytes. Nothing here opens a file.

A text that is cut short or garbled raises ``RecoverableError``, which names the file and shows how it begins; it is
never taken for zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from cameleer.errors import RecoverableError

ABSENT: Final = -1
"""What :meth:`Layout.values` has for a key that this kernel does not write."""
_NO_LIMIT: Final = 1 << 62
"""Version 1 writes the largest multiple of a page below 2⁶³ for "no limit"."""
_NEWLINE: Final = 10
_EXCERPT_BYTES: Final = 80
_LONGEST_NUMBER: Final = 20
_MARGIN_BYTES: Final = 256
_numbers: Final = msgspec.json.Decoder(list[int]).decode  # int() of each costs twice as much
_NETWORK_COLUMNS: Final = (0, 1, 2, 3, 8, 9, 10, 11)


def garbled(source: str, data: bytes) -> RecoverableError:
    """Make the error for a text that is not what the kernel writes there.

    :param source: the file's path.
    :param data: what was read.
    """
    shown = data[:_EXCERPT_BYTES]
    more = f"… ({len(data)} bytes)" if len(data) > _EXCERPT_BYTES else ""
    return RecoverableError(f"cannot make sense of {source}: {shown!r}{more}; trying again may help")


class Layout:
    """Where the wanted keys are in a text of ``key value`` lines, as one kernel writes it.

    The order of the lines does not change while a kernel runs, so positions are worked out once; that each key still
    stands beside its value is checked every time.

    :ivar size: how much to read so that the whole text is in it, whatever its numbers.
    """

    __slots__ = ("_from_end", "_gaps", "_keys", "_keys_at", "_splits", "_values_at", "present", "size")

    def __init__(self, wanted: tuple[bytes, ...], names: tuple[bytes, ...]) -> None:
        """Work it out.

        :param wanted: the keys in the order of :meth:`values`.
        :param names: all keys in the order of the text, two or more of the wanted ones among them.
        """
        words = 2 * len(names)
        places = {key: names.index(key) for key in wanted if key in names}
        first_word, after = 2 * min(places.values()), 2 * max(places.values()) + 2
        self._from_end = words - first_word < after
        self._splits = words - first_word if self._from_end else after
        # what is not split off at the front stands there as one element
        shift = (1 if first_word else 0) - first_word if self._from_end else 0
        self.present = frozenset(places)
        self._gaps = tuple(index for index, key in enumerate(wanted) if key not in places)
        self._keys = tuple(places)
        self._keys_at = itemgetter(*(2 * place + shift for place in places.values()))
        self._values_at = itemgetter(*(2 * place + shift + 1 for place in places.values()))
        self.size = sum(len(name) + 2 + _LONGEST_NUMBER for name in names) + _MARGIN_BYTES

    def values(self, data: bytes, rest: tuple[bytes, ...] = ()) -> list[int] | None:
        """The values of the wanted keys, ``ABSENT`` where this kernel has none; None: another layout, or garbled.

        :param rest: texts of one number each, to be parsed in the same go.
        """
        words = data.rsplit(None, self._splits) if self._from_end else data.split(None, self._splits)
        try:
            if self._keys_at(words) != self._keys or data[-1] != _NEWLINE:
                return None
            found = _numbers(b"[%b]" % b",".join(self._values_at(words) + rest))
        except (IndexError, msgspec.DecodeError):
            return None
        for index in self._gaps:
            found.insert(index, ABSENT)
        return found


_layouts: dict[tuple[tuple[bytes, ...], tuple[bytes, ...]], Layout] = {}  # all groups of a machine share a few


def learn(wanted: tuple[bytes, ...], optional: frozenset[bytes], data: bytes, source: str) -> Layout:
    """Work out where keys are.

    :param wanted: at least two keys.
    :param optional: those of them that some kernels do not write.
    :param data: a whole text.
    :param source: the file's path, for the error.
    :raises RecoverableError: the text is cut short or garbled, or lacks a key.
    """
    names = tuple(pairs(data, source))
    if not set(wanted) - optional <= set(names):
        raise garbled(source, data)
    layout = _layouts.get((wanted, names))
    if layout is None:
        layout = _layouts[wanted, names] = Layout(wanted, names)
    return layout


def read_keys(
    layout: Layout | None, wanted: tuple[bytes, ...], optional: frozenset[bytes], data: bytes, source: str
) -> tuple[Layout, list[int]]:
    """The values of a text whose layout is not known, or another than before.

    :raises RecoverableError: the text is cut short or garbled, or lacks a key, also one that was there before.
    """
    found = learn(wanted, optional if layout is None else optional - layout.present, data, source)
    values = found.values(data)
    if values is None:
        raise garbled(source, data)
    return found, values


class Operations(NamedTuple):
    """A count of reads and one of writes: operations, or bytes."""

    read: int
    write: int


class IoStat(NamedTuple):
    """The sums of ``io.stat`` over all devices."""

    read_bytes: int
    write_bytes: int
    read_ops: int
    write_ops: int


class Pressure(NamedTuple):
    """The totals of a file of pressure, nanoseconds; ``full_ns`` is None where the kernel has none."""

    some_ns: int
    full_ns: int | None


def number(data: bytes, source: str) -> int:
    """Parse a file of one number.

    :raises RecoverableError: it is none, or cut short.
    """
    if not data.endswith(b"\n") or not data[:-1].isdigit():
        raise garbled(source, data)
    return int(data)


def limit(data: bytes, source: str) -> int | None:
    """Parse a file that holds a limit; None: no limit (``max``, or version 1's largest number).

    :raises RecoverableError: it is neither, or cut short.
    """
    if data == b"max\n":
        return None
    value = number(data, source)
    return None if value >= _NO_LIMIT else value


def has_quota(data: bytes, source: str) -> bool:
    """Parse ``cpu.cfs_quota_us`` of version 1.

    :raises RecoverableError: it is no number, or cut short.
    """
    return data != b"-1\n" and number(data, source) > 0


def pairs(data: bytes, source: str) -> Mapping[bytes, int]:
    """Parse a text of ``key value`` lines.

    :raises RecoverableError: it is empty, cut short, or a line is something else.
    """
    if not data.endswith(b"\n"):
        raise garbled(source, data)
    found: dict[bytes, int] = {}
    for line in data[:-1].split(b"\n"):
        words = line.split()
        if len(words) != 2 or not words[1].isdigit():
            raise garbled(source, data)
        found[words[0]] = int(words[1])
    return found


def oom_kills(data: bytes, source: str) -> int | None:
    """Parse ``memory.oom_control`` or ``memory.events``; None: this kernel does not count them.

    :raises RecoverableError: the text is cut short or garbled.
    """
    return pairs(data, source).get(b"oom_kill")


def processes(data: bytes, source: str) -> int:
    """Count the lines of ``cgroup.procs``.

    :raises RecoverableError: the text is cut short or garbled.
    """
    if data and (not data.endswith(b"\n") or not data.replace(b"\n", b"").isdigit()):
        raise garbled(source, data)
    return data.count(b"\n")


def blkio(data: bytes, source: str) -> Operations | None:
    """Add up the devices of a file such as ``blkio.throttle.io_serviced``; None: it lists no device.

    :raises RecoverableError: the text is cut short or garbled.
    """
    if not data.endswith(b"\n"):
        raise garbled(source, data)
    sums: dict[bytes, int] = {}
    for line in data[:-1].split(b"\n"):
        words = line.split()  # "8:0 Read 4096", or "Total 4096" at the end
        if len(words) not in (2, 3) or not words[-1].isdigit() or (len(words) == 2 and words[0] != b"Total"):
            raise garbled(source, data)
        if len(words) == 3:
            sums[words[1]] = sums.get(words[1], 0) + int(words[2])
    return Operations(sums.get(b"Read", 0), sums.get(b"Write", 0)) if sums else None


def io_stat(data: bytes, source: str) -> IoStat:
    """Add up the devices of ``io.stat``; empty before the first operation.

    :raises RecoverableError: the text is cut short or garbled.
    """
    if data and not data.endswith(b"\n"):
        raise garbled(source, data)
    sums = {b"rbytes": 0, b"wbytes": 0, b"rios": 0, b"wios": 0}
    for line in data.splitlines():
        for word in line.split()[1:]:  # some kernels write a device alone, or more keys
            key, _, value = word.partition(b"=")
            if key in sums:
                if not value.isdigit():
                    raise garbled(source, data)
                sums[key] += int(value)
    return IoStat(*sums.values())


def pressure(data: bytes, source: str) -> Pressure:
    """Parse a file of pressure: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0`` and the same of ``full``.

    :raises RecoverableError: the text is cut short or garbled.
    """
    totals: dict[bytes, int] = {}
    if data.endswith(b"\n"):
        for line in data[:-1].split(b"\n"):
            kind, _, rest = line.partition(b" ")
            value = rest.rpartition(b"total=")[2]
            if not value.isdigit():
                break
            totals[kind] = int(value) * 1000
        else:
            if b"some" in totals:
                return Pressure(totals[b"some"], totals.get(b"full"))
    raise garbled(source, data)


def network(data: bytes, source: str) -> tuple[int, ...]:
    """Add up the devices of ``/proc/PID/net/dev``, all but ``lo``: bytes, packets, errors, drops received; then sent.

    :raises RecoverableError: the text is cut short or garbled.
    """
    sums = [0] * len(_NETWORK_COLUMNS)
    lines = data.splitlines()
    if len(lines) < 2 or not data.endswith(b"\n"):
        raise garbled(source, data)
    for line in lines[2:]:
        name, colon, rest = line.rpartition(b":")  # a name may hold a colon; the numbers do not
        words = rest.split()
        if not colon or len(words) < 16 or not all(map(bytes.isdigit, words)):
            raise garbled(source, data)
        if name.strip() != b"lo":
            for index, column in enumerate(_NETWORK_COLUMNS):
                sums[index] += int(words[column])
    return tuple(sums)
