"""Reading files of /proc within a budget of descriptors."""

from __future__ import annotations

import errno
import os
import resource
import threading

_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_SHORTAGE = (errno.EMFILE, errno.ENFILE)


class ProcFiles:
    """The files below one mount of proc; reading works on when descriptors are used up.

    At most half of the process's soft limit is held open. A spare descriptor is held too: when none is left it is given
    up for the moment of one read.

    :ivar root: where proc is mounted.
    :ivar kept: descriptors held open for :meth:`keep`.
    """

    def __init__(self, root: str = "/proc") -> None:
        self.root = root
        self.kept = 0
        self._budget = 0
        self._lock = threading.Lock()
        self._spare = -1
        self._closed = False

    def keep(self, path: str) -> int:
        """Open a file to be read again and again; -1 when it should rather be opened for each read.

        :raises OSError: it cannot be opened, for another reason than a shortage of descriptors.
        """
        with self._lock:
            if self.kept >= self._budget:
                self._budget = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
                if self.kept >= self._budget:
                    return -1
            self.kept += 1
        try:
            fd = os.open(path, _FLAGS)
        except OSError as exc:
            with self._lock:
                self.kept -= 1
            if exc.errno in _SHORTAGE:
                return -1
            raise
        if self._spare < 0:
            self._restore()
        return fd

    def release(self, fd: int) -> None:
        """Close what :meth:`keep` opened."""
        os.close(fd)
        with self._lock:
            self.kept -= 1

    def read(self, path: str, size: int) -> bytes:
        """Open a file, read its first bytes, and close it.

        :raises OSError: it cannot be opened or read.
        """
        lent = False
        try:
            fd = os.open(path, _FLAGS)
        except OSError as exc:
            lent = exc.errno in _SHORTAGE and self._lend()
            if not lent:
                raise
            try:
                fd = os.open(path, _FLAGS)
            except OSError:
                self._restore()
                raise
        try:
            return os.read(fd, size)
        finally:
            os.close(fd)
            if lent:
                self._restore()

    def inodes(self, path: str) -> dict[str, int]:
        """Names and inode numbers of the entries of a folder.

        :raises OSError: it cannot be read.
        """
        try:
            with os.scandir(path) as entries:
                return {entry.name: entry.inode() for entry in entries}
        except OSError as exc:
            if exc.errno not in _SHORTAGE or not self._lend():
                raise
        try:
            with os.scandir(path) as entries:
                return {entry.name: entry.inode() for entry in entries}
        finally:
            self._restore()

    def close(self) -> None:
        """Give up the spare descriptor; twice without error."""
        self._closed = True
        self._lend()

    def _lend(self) -> bool:
        with self._lock:
            spare, self._spare = self._spare, -1
        if spare < 0:
            return False
        os.close(spare)
        return True

    def _restore(self) -> None:
        with self._lock:
            if self._spare >= 0 or self._closed:
                return
            try:
                self._spare = os.open("/dev/null", _FLAGS)
            except OSError:
                self._spare = -1
