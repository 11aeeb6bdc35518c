"""How a task ended: what its driver knows, the final status, and the record that is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cameleer.errors import TaskFailed
from cameleer.usage import Counters, ProcessRow, RunUsage

_SIGKILL = 9
_KILLED_CODE = 137  # 128 + SIGKILL, as an engine that gives only a code says it


class FinalStatus(StrEnum):
    """The five ways in which a task can have ended."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    KILLED = "killed"


class Cause(StrEnum):
    """Why *we* ended a task; set only when we acted before its end was seen."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    CLOSING = "closing"
    STOP = "stop"
    DESTROY = "destroy"


@dataclass(frozen=True, kw_only=True)
class Exit:
    """What a driver knows of a task's end.

    :ivar exit_code: 128+N for one killed by signal N, filled in if it is left out; None: nobody knows.
    :ivar signal: number of the signal that killed it; None also where an engine gives only a code. 0 counts as None.
    :ivar oom_killed: killed for lack of memory; None: nobody knows.
    :ivar error: what the driver or engine says went wrong.
    :ivar counters: the kernel's own totals for the whole run.
    :ivar ended_at_ns: when it ended, Unix time in nanoseconds; None: when it was seen.
    :ivar left_running: processes of the task that outlived its command.
    """

    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool | None = None
    error: str | None = None
    counters: Counters | None = None
    ended_at_ns: int | None = None
    left_running: tuple[ProcessRow, ...] = ()

    def __post_init__(self) -> None:
        if self.signal == 0:
            object.__setattr__(self, "signal", None)
        if self.signal is not None and self.exit_code is None:
            object.__setattr__(self, "exit_code", 128 + self.signal)


@dataclass(frozen=True, kw_only=True)
class ExitResult:
    """The record of a task that ended.

    :ivar status: see :func:`final_status`.
    :ivar error: None exactly when the status is success, else text.
    :ivar started_at_ns: Unix time, nanoseconds.
    :ivar ended_at_ns: Unix time, nanoseconds.
    :ivar left_running: processes of the task that outlived its command.
    """

    task_id: str
    driver: str
    status: FinalStatus
    exit_code: int | None
    signal: int | None = None
    oom_killed: bool | None = None
    error: str | None = None
    started_at_ns: int | None = None
    ended_at_ns: int | None = None
    usage: RunUsage = field(default_factory=RunUsage)
    left_running: tuple[ProcessRow, ...] = ()

    def check(self) -> ExitResult:
        """Return this result if the task succeeded.

        :raises TaskFailed: for every other status, with this result as its ``result``.
        """
        if self.status is not FinalStatus.SUCCESS:
            raise TaskFailed(self)
        return self


def final_status(
    exit_code: int | None, signal: int | None, oom_killed: bool | None, cause: Cause | None = None
) -> FinalStatus:
    """Final status of a task; the first that matches wins.

    Our own doing comes first (timeout, cancellation, stop), then exit code 0, then signs of SIGKILL; the rest is error.
    """
    if cause is Cause.TIMEOUT:
        return FinalStatus.TIMEOUT
    if cause in (Cause.CANCELLED, Cause.CLOSING):
        return FinalStatus.CANCELLED
    if cause in (Cause.STOP, Cause.DESTROY):
        return FinalStatus.KILLED
    if exit_code == 0 and not signal:
        return FinalStatus.SUCCESS
    if oom_killed or signal == _SIGKILL or exit_code == _KILLED_CODE:
        return FinalStatus.KILLED
    return FinalStatus.ERROR


def describe_end(end: Exit, status: FinalStatus, cause: Cause | None = None) -> str | None:
    """Say why a task did not succeed; None if it did."""
    if status is FinalStatus.SUCCESS:
        return None
    if end.error:
        return end.error
    if status is FinalStatus.TIMEOUT:
        return "the task ran longer than its timeout"
    if cause is not None:
        return {
            Cause.CANCELLED: "the task was cancelled by its owner",
            Cause.CLOSING: "the task was ended because its host closed",
            Cause.STOP: "the task was stopped",
            Cause.DESTROY: "the task was destroyed",
        }[cause]
    if end.oom_killed:
        return "the task ran out of memory and was killed by the kernel"
    if end.signal is not None:
        return f"the task was killed by {signal_name(end.signal)}"
    if end.exit_code is None:
        return "the task ended and nobody knows how"
    return f"the task ended with exit code {end.exit_code}"


def signal_name(signum: int) -> str:
    """``SIGTERM`` for 15; ``signal 99`` for a number without a name."""
    from signal import Signals

    try:
        return Signals(signum).name
    except ValueError:
        return f"signal {signum}"
