"""The engine's format for two streams on one connection: eight bytes that say which and how much, then the data."""

from __future__ import annotations

from typing import Final

from cameleer.errors import RecoverableError
from cameleer.log import log

_HEADER: Final = 8
_ENGINE_ERROR: Final = 3
_LARGEST: Final = 1 << 24


class Frames:
    """Takes streams apart, however the bytes arrive.

    :param whole: hand over frames whole; else what there is of them, at once.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._head = b""
        self._stream = 0
        self._left = 0

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """Take the next bytes; what is in them of stdout (1) and stderr (2).

        :raises RecoverableError: they make no sense.
        """
        data = self._head + chunk if self._head else chunk
        found: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while at < end:
            if not self._left:
                if end - at < _HEADER:
                    break
                try:
                    self._begin(data[at : at + _HEADER])
                except RecoverableError:
                    self._left = 0
                    if not found:
                        raise
                    break  # what came before it first; it is met again
                if self._whole and end - at - _HEADER < self._left:
                    self._left = 0  # until the rest is there
                    break
                at += _HEADER
            size = min(self._left, end - at)
            self._left -= size
            self._hand_over(found, data[at : at + size])
            at += size
        self._head = data[at:]
        return found

    @property
    def is_inside(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._left or self._head)

    def _begin(self, header: bytes) -> None:
        self._stream, self._left = header[0], int.from_bytes(header[4:], "big")
        if self._stream > _ENGINE_ERROR or header[1:4] != b"\0\0\0" or self._left > _LARGEST:
            raise RecoverableError(f"the engine's output makes no sense: {header!r} is no header of a frame")

    def _hand_over(self, found: list[tuple[int, bytes]], data: bytes) -> None:
        if self._stream == _ENGINE_ERROR:
            log.warning("the engine says, instead of output: %s", data.decode(errors="replace").strip())
        elif data or self._whole:
            found.append((self._stream or 1, data))


def merged(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """What follows on each other of one stream as one piece: a write each costs more than the bytes do."""
    if len(pieces) < 2:
        return pieces
    runs: list[tuple[int, list[bytes]]] = []
    for stream, data in pieces:
        if not runs or runs[-1][0] != stream:
            runs.append((stream, []))
        runs[-1][1].append(data)
    return [(stream, b"".join(parts)) for stream, parts in runs]
