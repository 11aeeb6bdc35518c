"""How much of a container's output was delivered, noted so that it survives a kill at any moment.

One record of 64 bytes, written by one call, which the kernel does whole or not at all.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final

_RECORD: Final = Struct("<8s3Q2QQIB3x")
_MAGIC: Final = b"camelog1"


@dataclass
class Position:
    """Where the delivery of a container's output is.

    :ivar since_ns: what was written before this time is delivered, or lost; 0: the container's start. Unix time, as the
        next two, nanoseconds.
    :ivar first_ns: when the first byte came; 0: none came yet.
    :ivar last_ns: when the last byte came.
    :ivar counts: bytes delivered of stdout and of stderr since ``since_ns``.
    :ivar size: of the target file before ``length`` bytes are written to it.
    :ivar length: bytes of the write that is being made to a regular file; 0: none is.
    :ivar stream: 1 or 2, the stream of that write.
    """

    since_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0])
    size: int = 0
    length: int = 0
    stream: int = 0
    _fd: int = -1

    @classmethod
    def open(cls, path: Path | None) -> Position:
        """Read a record, or begin one; without a path nothing is kept.

        :raises OSError: it cannot be opened.
        """
        if path is None:
            return cls()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        kept = os.pread(fd, _RECORD.size, 0)
        if len(kept) < _RECORD.size or not kept.startswith(_MAGIC):
            made = cls(_fd=fd)
            made._write()
            return made
        _, since, first, last, out, err, size, length, stream = _RECORD.unpack(kept)
        return cls(since, first, last, [out, err], size, length, stream, fd)

    @property
    def kept(self) -> bool:
        """Whether it is noted on disk."""
        return self._fd >= 0

    def about_to_write(self, stream: int, size: int, length: int) -> None:
        """Note that ``length`` bytes are going to be appended to a file of ``size`` bytes."""
        if self._fd >= 0:
            self.stream, self.size, self.length = stream, size, length
            self._write()

    def delivered(self, stream: int, count: int) -> None:
        """Note that so many bytes reached their target."""
        now_ns = time.time_ns()
        self.first_ns = self.first_ns or now_ns
        self.last_ns = now_ns
        self.counts[stream - 1] += count
        self.length = 0
        if self._fd >= 0:
            self._write()

    def begin_again(self, since_ns: int) -> None:
        """Count from another time on."""
        self.since_ns, self.first_ns, self.counts, self.length = since_ns, 0, [0, 0], 0
        if self._fd >= 0:
            self._write()

    def _write(self) -> None:
        record = _RECORD.pack(
            _MAGIC,
            self.since_ns,
            self.first_ns,
            self.last_ns,
            *self.counts,
            self.size,
            self.length,
            self.stream,
        )
        with suppress(OSError):  # no space for its first block: then nothing is noted
            os.pwrite(self._fd, record, 0)

    def close(self) -> None:
        """Close the record, which stays; twice without error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
