"""Traffic of a network namespace of a task's own."""

from __future__ import annotations

import os
from typing import Final

from cameleer.drivers.cgroup import parse
from cameleer.drivers.cgroup.files import Files
from cameleer.errors import RecoverableError
from cameleer.usage import NO_NETWORK, MissingReason, NetworkUsage

_NAME: Final = "dev"


class NetworkCounters:
    """The devices in the network namespace of one process, ``lo`` left out; never the host's numbers.

    Where the process shares our namespace or that of pid 1, there is nothing to count. The file is kept open, so that
    counting goes on when the process has ended and others of the namespace run.

    :ivar missing: why there are no figures; None: there are some.
    """

    __slots__ = ("_data", "_files", "_namespace", "_pid", "_usage", "missing")

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        """Look which namespace it is in.

        :param pid: a process of the task.
        :param proc: where proc is mounted.
        """
        self.missing: MissingReason | None = None
        self._pid = f"{proc}/{pid}"
        self._files: Files | None = None
        self._data = b""
        self._usage = NO_NETWORK
        self._namespace = ""
        try:
            self._namespace = os.readlink(f"{self._pid}/ns/net")
            if self._namespace in (_namespace(f"{proc}/self"), _namespace(f"{proc}/1")):
                self.missing = "unsupported"
                return
            self._files = Files([(f"{self._pid}/net", _NAME)], seldom=True)
            # the pid may have been given to another process in between
            self.missing = self._files.missing.get(_NAME) or (None if self._is_same() else "failed")
        except PermissionError:
            self.missing = "not permitted"
        except OSError:
            self.missing = "failed"

    def read(self) -> NetworkUsage:
        """Count; with :attr:`missing` set there is nothing.

        :raises RecoverableError: the text is garbled, or cannot be read.
        """
        files = self._files
        if self.missing is not None or files is None:
            return NO_NETWORK
        source = f"{self._pid}/net/{_NAME}"
        try:
            data = files.whole(_NAME)
        except OSError as exc:
            if files.are_kept or self._is_same():
                raise RecoverableError(f"cannot read {source}: {exc.strerror}") from exc
        if not files.are_kept and not self._is_same():
            self.missing = "failed"
            return NO_NETWORK
        if data != self._data:
            sums = parse.network(data, source)
            self._data = data
            self._usage = NetworkUsage(
                rx_bytes=sums[0],
                rx_packets=sums[1],
                rx_errors=sums[2],
                rx_drops=sums[3],
                tx_bytes=sums[4],
                tx_packets=sums[5],
                tx_errors=sums[6],
                tx_drops=sums[7],
            )
        return self._usage

    def close(self) -> None:
        """Close the file; twice without error."""
        if self._files is not None:
            self._files.close()

    def _is_same(self) -> bool:
        return _namespace(self._pid) == self._namespace


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(f"{process}/ns/net")
    except OSError:
        return None
