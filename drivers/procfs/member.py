"""One process of a tree: what was read of it last, and how to read it again."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cameleer.drivers.procfs.identity import GONE, translate
from cameleer.drivers.procfs.parse import (
    CMAJFLT,
    CMINFLT,
    CSTIME,
    CUTIME,
    MAJFLT,
    MINFLT,
    RSS,
    START,
    STAT_BYTES,
    STAT_SPLITS,
    STIME,
    THREADS,
    UTIME,
    Status,
    display_name,
    garbled,
    parse_stat,
    parse_status,
    stat_fields,
)
from cameleer.drivers.procfs.units import NS_PER_TICK, PAGE_BYTES
from cameleer.usage import ProcessRow

if TYPE_CHECKING:
    from cameleer.drivers.procfs.files import ProcFiles

_FILE_BYTES = 16384


class Member:
    """One process, told from a later one with its pid by its kept descriptor and its start time.

    :ivar pid: the process.
    :ivar start: its start, clock ticks after boot, as the kernel writes it.
    :ivar stat_path: its line.
    :ivar fd: kept descriptor of that line; -1 when it is opened for each read.
    :ivar data: the line as last read.
    :ivar user: CPU time in user mode, clock ticks, with that of waited-for children; counter.
    :ivar system: the same in the kernel.
    :ivar minor: page faults without IO, with those of waited-for children; counter.
    :ivar major: the same with IO.
    :ivar own_user: CPU time without that of children, clock ticks; likewise ``own_system``, ``own_minor``,
        ``own_major``.
    :ivar threads: threads now.
    :ivar rss_pages: resident memory, pages.
    :ivar voluntary: context switches of all threads as far as they were seen; None: never read.
    :ivar involuntary: likewise.
    """

    __slots__ = (
        "_files",
        "_folder",
        "data",
        "fd",
        "involuntary",
        "major",
        "minor",
        "own_major",
        "own_minor",
        "own_system",
        "own_user",
        "pid",
        "rss_pages",
        "start",
        "stat_path",
        "system",
        "threads",
        "user",
        "voluntary",
    )

    def __init__(self, files: ProcFiles, pid: int, start: bytes = b"") -> None:
        self._files = files
        self._folder = f"{files.root}/{pid}"
        self.pid = pid
        self.start = start
        self.stat_path = f"{self._folder}/stat"
        self.fd = -1
        self.data = b""
        self.user = self.system = self.minor = self.major = 0
        self.own_user = self.own_system = self.own_minor = self.own_major = 0
        self.threads = self.rss_pages = 0
        self.voluntary: int | None = None
        self.involuntary: int | None = None

    def read(self) -> bool:
        """Read its line; false when the process is gone.

        :raises RecoverableError: the line is garbled, or descriptors are used up.
        :raises UnrecoverableError: the line may not be read.
        """
        try:
            if self.fd < 0:
                self.fd = self._files.keep(self.stat_path)
            data = os.pread(self.fd, STAT_BYTES, 0) if self.fd >= 0 else self._files.read(self.stat_path, STAT_BYTES)
        except OSError as exc:
            if exc.errno in GONE:
                return False
            raise translate(exc, self.stat_path) from exc
        # a process that slept all the time has the same line: comparing is cheaper than parsing
        return data == self.data or self.load(data)

    def load(self, data: bytes) -> bool:
        """Take its line; false when it is another process's. The first line decides which process is meant.

        :param data: the first ``STAT_BYTES`` of it.
        :raises RecoverableError: the line is garbled.
        """
        fields = stat_fields(data)
        if len(fields) <= STAT_SPLITS:
            raise garbled(self.stat_path, data)
        if fields[START] != self.start:
            if self.start:
                return False
            self.start = fields[START]
        try:
            user, system = int(fields[UTIME]), int(fields[STIME])
            minor, major = int(fields[MINFLT]), int(fields[MAJFLT])
            self.user, self.system = user + int(fields[CUTIME]), system + int(fields[CSTIME])
            self.minor, self.major = minor + int(fields[CMINFLT]), major + int(fields[CMAJFLT])
            self.threads, self.rss_pages = int(fields[THREADS]), int(fields[RSS])
        except ValueError:
            raise garbled(self.stat_path, data) from None
        self.own_user, self.own_system, self.own_minor, self.own_major = user, system, minor, major
        self.data = data
        return True

    def file(self, name: str) -> bytes | None:
        """Read another file of the process's folder; empty when it tells nothing, as of a zombie, None: not there.

        Whose file it was is known only afterwards: where :meth:`read` then says that the process is gone, the pid may
        have had another owner already.

        :param name: its path in that folder.
        :raises PermissionError: it may not be read.
        :raises RecoverableError: descriptors are used up.
        """
        path = f"{self._folder}/{name}"
        try:
            return self._files.read(path, _FILE_BYTES)
        except PermissionError:
            raise
        except OSError as exc:
            if exc.errno in GONE:
                return b"" if exc.errno == errno.ESRCH else None
            raise translate(exc, path) from exc

    def status(self) -> Status | None:
        """Read its ``status`` and take the context switches of all its threads; None when it may not be read.

        :raises RecoverableError: the text is garbled, or descriptors are used up.
        """
        try:
            data = self.file("status")
        except PermissionError:
            return None
        if not data:
            return None
        status = parse_status(data, f"{self._folder}/status")
        voluntary, involuntary = status.voluntary_switches, status.involuntary_switches
        if voluntary is None or involuntary is None:
            return status
        if self.threads > 1:  # the file of a process speaks of its first thread alone
            voluntary, involuntary = self._thread_switches()
        self.voluntary = max(self.voluntary or 0, voluntary)
        self.involuntary = max(self.involuntary or 0, involuntary)
        return status

    def _thread_switches(self) -> tuple[int, int]:
        voluntary = involuntary = 0
        try:
            tids = self._files.inodes(f"{self._folder}/task")
        except OSError as exc:
            if exc.errno in GONE:
                return 0, 0
            raise translate(exc, f"{self._folder}/task") from exc
        for tid in tids:
            name = f"task/{tid}/status"
            data = self.file(name)
            if data:
                status = parse_status(data, f"{self._folder}/{name}")
                voluntary += status.voluntary_switches or 0
                involuntary += status.involuntary_switches or 0
        return voluntary, involuntary

    def row(self) -> ProcessRow:
        """What its line says, as it was read last."""
        return row(self.data, self.stat_path)

    def close(self) -> None:
        """Close its kept descriptor; twice without error."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._files.release(fd)


def row(data: bytes, source: str) -> ProcessRow:
    """What a line of ``/proc/PID/stat`` says.

    :param data: the first ``STAT_BYTES`` of it.
    :param source: its path, for the error.
    :raises RecoverableError: the line is cut short or garbled.
    """
    stat = parse_stat(data, source)
    return ProcessRow(
        pid=stat.pid,
        name=display_name(stat.name),
        ppid=stat.ppid,
        state=stat.state,
        start_ticks=stat.start_ticks,
        user_ns=stat.user_ticks * NS_PER_TICK,
        system_ns=stat.system_ticks * NS_PER_TICK,
        rss_bytes=stat.rss_pages * PAGE_BYTES,
        threads=stat.threads,
    )
