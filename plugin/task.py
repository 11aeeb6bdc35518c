"""A task as its owner and the hooks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from cameleer.config import TaskConfig
from cameleer.node import NodeInfo
from cameleer.status import Cause, ExitResult

if TYPE_CHECKING:
    from cameleer.driver import ExecSession, NetworkOverride
    from cameleer.life import Life
    from cameleer.readings import Readings
    from cameleer.usage import TaskResourceUsage


class TaskState(StrEnum):
    """Where a task is in its life; ``unknown`` is a handle whose driver cannot say now."""

    PENDING = "pending"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class TaskHandle:
    """What finds a task again after a restart of the host; complete even with an empty driver configuration.

    :ivar version: of this format.
    :ivar cause: why we ended it, if we did before its end was seen.
    :ivar driver_state: the driver's own, opaque to the host.
    """

    version: int = 1
    driver: str
    config: TaskConfig
    state: TaskState = TaskState.PENDING
    started_at_ns: int | None = None
    cause: Cause | None = None
    driver_state: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskInfo:
    """What a task is and where it stands; one immutable value, replaced when the state changes.

    :ivar config: what was asked for.
    :ivar driver: the driver's name.
    :ivar node: the machine it runs on.
    :ivar started_at_ns: Unix time, nanoseconds.
    :ivar ended_at_ns: Unix time, nanoseconds.
    :ivar attached: we measure it and nothing else; somebody else runs it.
    """

    config: TaskConfig
    driver: str
    state: TaskState
    node: NodeInfo
    started_at_ns: int | None = None
    ended_at_ns: int | None = None
    attached: bool = False
    result: ExitResult | None = None

    @property
    def id(self) -> str:
        """The task's id."""
        return self.config.id

    @property
    def name(self) -> str:
        """The task's short name."""
        return self.config.name

    @property
    def job_name(self) -> str:
        """The job's name."""
        return self.config.job_name


class Task:
    """A task as its owner sees it; made by ``Host.start``, ``recover`` and ``attach``."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def __repr__(self) -> str:
        info = self._life.info
        return f"<Task {info.id} {info.name!r} of {info.driver}: {info.state}>"

    @property
    def id(self) -> str:
        """The task's id."""
        return self._life.id

    @property
    def info(self) -> TaskInfo:
        """What it is and where it stands now."""
        return self._life.info

    @property
    def handle(self) -> TaskHandle:
        """What finds it again after a restart: keep it, and hand it to ``Host.recover``."""
        return self._life.handle

    @property
    def network(self) -> NetworkOverride | None:
        """How the task is reached, where that differs from what its ports ask for."""
        return self._life.running.network if self._life.running is not None else None

    @property
    def latest(self) -> TaskResourceUsage | None:
        """The last reading anybody took; None before the first."""
        return self._life.latest

    def readings(self, interval_s: float | None = None, *, per_process: bool = False) -> Readings:
        """Measure the task while somebody looks, also where publishing is off.

        The first reading comes at once, the last one at the task's end. The latest wins: a slow reader loses readings,
        which are counted. It needs no closing: the measuring ends when the iterator is dropped.

        :param interval_s: seconds between two readings; None: ``telemetry.collection_interval``.
        :param per_process: with a row for each process.
        :raises UnrecoverableError: the task has ended, or its driver offers no statistics.
        """
        return self._life.host.collector.readings(self._life, interval_s, per_process)

    async def sample(self, window_s: float = 0.25, *, per_process: bool = False) -> TaskResourceUsage:
        """Measure once, with rates over a window; callers within one window share it.

        :param window_s: seconds.
        :raises UnrecoverableError: the task has ended, or its driver offers no statistics.
        :raises RecoverableError: the driver could not read it now.
        """
        return await self._life.host.collector.sample(self._life, window_s, per_process)

    async def wait(self) -> ExitResult:
        """Wait for the end, after all ``exited`` hooks. Any number of callers; a cancelled one only stops waiting."""
        return await self._life.wait()

    async def stop(self, timeout_s: float | None = None, signum: int | None = None) -> None:
        """End the task: a signal, time to react, SIGKILL. Stopping an ended task succeeds.

        :param timeout_s: seconds before SIGKILL; None: the task's ``kill_timeout_s``; 0 kills at once.
        :param signum: first signal; None: the task's ``kill_signal``, else the driver's default.
        :raises NotSupported: somebody else runs it.
        :raises DeadlineExceeded: the driver did not end it in time.
        """
        await self._life.stop(timeout_s, signum)

    async def signal(self, signum: int) -> None:
        """Send a signal.

        :raises NotSupported: somebody else runs it.
        :raises UnrecoverableError: it has ended.
        """
        await self._life.signal(signum)

    async def exec(
        self,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecSession:
        """Run another command inside the task.

        :param size: rows and columns of its terminal.
        :param env: added to the task's own.
        :raises NotSupported: the driver cannot.
        """
        session = await self._life.ask("exec", lambda running: running.exec(command, tty=tty, size=size, env=env))
        return cast("ExecSession", session)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the task's terminal its size, where its driver gave it one of its own (``terminal="pty"``, an image).

        :raises NotSupported: its terminal is the caller's, or it has none.
        """
        await self._life.ask("resize", lambda running: running.resize(rows, columns))

    async def inspect(self) -> Mapping[str, str]:
        """Attributes that only the driver knows."""
        return cast("Mapping[str, str]", await self._life.ask("inspect", lambda running: running.inspect()))

    async def destroy(self, *, force: bool = False) -> None:
        """Free everything of the task, what is left of its processes included; twice without error.

        :param force: also while it runs.
        :raises NotSupported: somebody else runs it.
        :raises UnrecoverableError: it still runs.
        """
        await self._life.destroy(force=force)
