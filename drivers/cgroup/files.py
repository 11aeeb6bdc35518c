"""The files of a group, kept open for as long as it is measured.

Opening a file costs twelve times a read of one that is open. Where the process may not open so many, a file is opened
for each read instead.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterable
from typing import Final

from cameleer.log import log
from cameleer.usage import MissingReason

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_FOLDER_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
SHORTAGE: Final = (errno.EMFILE, errno.ENFILE)
_FIRST_BYTES: Final = 4096
_LARGEST_BYTES: Final = 1 << 24


class Budget:
    """How many descriptors all readers of this process hold.

    :ivar kept: held now.
    :ivar share: the most, as a part of the process's limit.
    :ivar spare_share: files that are read seldom are kept only below this part.
    """

    def __init__(self) -> None:
        self.kept = 0
        self.share = 0.75
        self.spare_share = 0.375
        self._said = False
        self._lock = threading.Lock()

    def take(self, count: int, *, seldom: bool = False) -> bool:
        """Ask for so many; False: there are not enough. Said once in the log, but not of files that are read seldom."""
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * (self.spare_share if seldom else self.share)
        with self._lock:
            if self.kept + count <= allowed:
                self.kept += count
                return True
        return False if seldom else self.refused()

    def give_back(self, count: int) -> None:
        """These are closed."""
        with self._lock:
            self.kept -= count

    def refused(self) -> bool:
        """Say once that there are not enough; False."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            log.warning(
                "the files of more groups cannot be kept open: the limit of open files is %d (ulimit -n), and %d are "
                "held for groups; further groups are measured by opening their files for each reading, which costs "
                "several times as much",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                self.kept,
            )
        return False


BUDGET: Final = Budget()


class Files:
    """Some files of one group.

    What :attr:`pread` takes for a file is its descriptor, or, where it is opened for each read, its position here.

    :ivar handles: by name; a file that is not there has none.
    :ivar pread: as ``os.pread``: file, bytes, offset.
    :ivar missing: why a file has no handle.
    :ivar are_kept: they are open; else each is opened for each read.
    """

    __slots__ = ("_budget", "_paths", "are_kept", "handles", "missing", "pread")

    def __init__(self, wanted: Iterable[tuple[str, str]], *, seldom: bool = False, budget: Budget = BUDGET) -> None:
        """Open them.

        :param wanted: folder and name of each.
        :param seldom: they are read seldom, so that others come first when descriptors are short.
        :raises OSError: a folder is not there.
        """
        self.handles: dict[str, int] = {}
        self.missing: dict[str, MissingReason] = {}
        self.pread: Callable[[int, int, int], bytes] = os.pread
        self.are_kept = True
        self._paths: list[str] = []
        self._budget = budget
        files = list(wanted)
        if budget.take(len(files), seldom=seldom):
            try:
                self._open(files)
            except OSError as exc:
                self._close()
                budget.give_back(len(files))
                if exc.errno not in SHORTAGE:
                    raise
                budget.refused()
            else:
                budget.give_back(len(files) - len(self.handles))
                return
        self.are_kept = False
        self.pread = self._open_and_read
        self._find(files)

    def whole(self, name: str) -> bytes:
        """The whole text of one.

        :raises OSError: as ``pread(2)``.
        :raises KeyError: it is not there.
        """
        handle = self.handles[name]
        data = self.pread(handle, _FIRST_BYTES, 0)
        if len(data) < _FIRST_BYTES // 2:
            return data
        # the kernel hands out a list by the page, so a short read is not the end
        while len(data) < _LARGEST_BYTES and (more := self.pread(handle, _FIRST_BYTES, len(data))):
            data += more
        return data

    def drop(self, name: str, reason: MissingReason) -> None:
        """Do without one that cannot be read after all."""
        self.missing[name] = reason
        handle = self.handles.pop(name)
        if self.are_kept:
            os.close(handle)
            self._budget.give_back(1)

    def close(self) -> None:
        """Close them; twice without error."""
        if self.are_kept:
            self._budget.give_back(len(self.handles))
            self._close()
        self.handles.clear()
        self._paths.clear()

    def _open(self, files: list[tuple[str, str]]) -> None:
        folder, folder_fd = "", -1
        try:
            for where, name in files:
                if where != folder:
                    if folder_fd >= 0:
                        os.close(folder_fd)
                        folder_fd = -1
                    folder_fd, folder = os.open(where, _FOLDER_FLAGS), where
                try:
                    self.handles[name] = os.open(name, _FLAGS, dir_fd=folder_fd)
                except OSError as exc:
                    if exc.errno in SHORTAGE:
                        raise
                    self.missing[name] = _reason(exc)
        finally:
            if folder_fd >= 0:
                os.close(folder_fd)

    def _close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()

    def _find(self, files: list[tuple[str, str]]) -> None:
        self.missing.clear()
        for where, name in files:
            path = f"{where}/{name}"
            if os.access(path, os.R_OK):
                self.handles[name] = len(self._paths)
                self._paths.append(path)
            else:
                os.stat(where)
                self.missing[name] = "not permitted" if os.path.exists(path) else "unsupported"

    def _open_and_read(self, handle: int, size: int, offset: int) -> bytes:
        if not 0 <= handle < len(self._paths):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fd = os.open(self._paths[handle], _FLAGS)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)


def _reason(error: OSError) -> MissingReason:
    if error.errno == errno.ENOENT:
        return "unsupported"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "not permitted"
    return "disabled" if error.errno == errno.EOPNOTSUPP else "failed"
