"""How much is read from the engine while its reader stands still.

At the end of a container, or of a command in it, the engine (20.10) waits 2 s for a slow reader and throws away what is
then still in the pipe. So, once the process has ended, everything is read at once: it is little, and where others write
on, :data:`REST` bytes of it are kept. Where the process cannot be watched (a remote engine), a reader that stands still
does not stop it but slows it to 512 KiB/s, up to :data:`MOST` bytes kept here.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from cameleer.log import fields, log

CHUNK: Final = 65536
"""Bytes of one read."""
ENOUGH: Final = 4 * CHUNK
"""Bytes that may wait for the reader before the writer is held up."""
MOST: Final = 64 << 20
"""Bytes that may wait for the reader of a process whose end cannot be watched."""
REST: Final = 16 << 20
"""Bytes that may wait for the reader when the process has ended; of one alone, pipe and engine hold 2 MiB at most."""
_TRICKLE: Final = 4 * CHUNK
_TRICKLE_S: Final = 0.5


class Intake:
    """Bytes that were read and not taken yet, and when more may be read.

    :param what: for a warning: ``task 8a1e``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._size = 0
        self._limit = ENOUGH
        self._moved = asyncio.Event()
        self._watch = -1
        self._watched = False
        self._ended = False
        self._warned = False

    def watch(self, pid: int | None) -> None:
        """Watch the writing process; the kernel tells its end before the engine does.

        :param pid: on this machine; 0: it has ended; None: it cannot be watched.
        """
        if pid is None or self._watched:
            return
        try:
            if pid == 0:
                raise ProcessLookupError
            self._watch = os.pidfd_open(pid)
        except ProcessLookupError:
            self.writer_ended()
            return
        except OSError:
            return
        self._watched = True
        asyncio.get_running_loop().add_reader(self._watch, self._process_ended)

    def _process_ended(self) -> None:
        self.close()
        self.writer_ended()

    def writer_ended(self) -> None:
        """Let in what is left."""
        self._ended = True
        self._moved.set()

    def came(self, size: int) -> None:
        """So many bytes were read."""
        self._size += size

    def taken(self, size: int) -> None:
        """So many bytes were taken."""
        self._size -= size
        self._moved.set()

    async def room(self) -> None:
        """Wait until more may be read."""
        if self._size <= ENOUGH:
            self._limit = ENOUGH
        while self._size > (max(REST, self._limit) if self._ended else self._limit):
            self._moved.clear()
            if self._ended or self._watched or self._size > MOST:
                self._warn()
                await self._moved.wait()
                continue
            try:
                async with asyncio.timeout(_TRICKLE_S):
                    await self._moved.wait()
            except TimeoutError:
                self._limit = self._size + _TRICKLE

    def _warn(self) -> None:
        if self._warned or (self._watched and not self._ended):
            return
        self._warned = True
        log.warning(
            "nobody reads the output of %s: it is held up, and if it ends now, the end of its output is lost",
            self._what,
            extra=fields(driver="docker"),
        )

    def close(self) -> None:
        """Watch no more; twice without error."""
        watch, self._watch = self._watch, -1
        if watch >= 0:
            asyncio.get_running_loop().remove_reader(watch)
            os.close(watch)
