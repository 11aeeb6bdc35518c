"""The contract of drivers: what starts, counts and ends tasks.

The smallest driver has a ``name``, ``start``, and a task with ``wait``, ``signal`` and ``read``; everything else has a
default. The host does the rest: time, retries, deadlines, rates, the final status, hooks and publishing. Drivers
without asyncio derive from the plain-function forms in :mod:`cameleer.blocking`.

The values here are msgspec Structs: six dataclasses would be a fortieth of what a short run costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from cameleer.errors import DriverError, NotSupported, StatsNotImplemented

if TYPE_CHECKING:
    from tenacity.wait import wait_base

    from cameleer.config import TaskConfig
    from cameleer.node import NodeInfo
    from cameleer.status import Exit
    from cameleer.task import TaskHandle
    from cameleer.usage import Counters

SIGINT = 2
SIGKILL = 9
_END_IS_SEEN_S = 1.0  # after a signal failed because the task had ended


class NoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schema without a single key: the default for drivers that have no settings."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can do. The first six follow from what it overrides, see :func:`capabilities_of`.

    :ivar honours: names of the ``TaskConfig`` and ``Resources`` fields beyond the common ones that it acts upon
        (``user``, ``memory_bytes``, …); a task that sets another is refused.
    :ivar fs_isolation: what of the host's files a task sees.
    :ivar network_isolation_modes: modes of ``NetworkIsolation`` that it can hold.
    :ivar must_create_network: the driver makes the network of an allocation itself.
    :ivar mount_configs: it honours mounts.
    :ivar disable_log_collection: it keeps the output of its tasks itself.
    :ivar dynamic_workload_users: a task may run as a user id that no account has.
    """

    stats: bool = False
    send_signals: bool = True
    exec: bool = False
    recover: bool = False
    attach: bool = False
    network: bool = False
    honours: frozenset[str] = frozenset()
    fs_isolation: Literal["none", "chroot", "image", "unveil"] = "none"
    network_isolation_modes: tuple[str, ...] = ("host",)
    must_create_network: bool = False
    mount_configs: bool = False
    disable_log_collection: bool = False
    dynamic_workload_users: bool = False


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a driver can be used here, and what it found.

    :ivar health: ``undetected``: what it drives is not installed; ``unhealthy``: it is, and does not work now.
    :ivar description: the reason, for people.
    :ivar attributes: what it found, each a value and its unit (empty for none).
    """

    health: Literal["undetected", "unhealthy", "healthy"] = "healthy"
    description: str = "Healthy"
    attributes: Mapping[str, tuple[str | int | float | bool, str]] = {}


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something a driver noticed about a task: a pull's progress, a failed health check.

    :ivar at_ns: Unix time, nanoseconds.
    """

    task_id: str
    message: str
    at_ns: int
    alloc_id: str = ""
    task_name: str = ""
    annotations: Mapping[str, str] = {}


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A network that a driver made for an allocation."""

    mode: Literal["host", "group", "task", "none"]
    path: str = ""
    labels: Mapping[str, str] = {}
    hostname: str = ""


class NetworkOverride(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver did differently from what the task's ports asked for."""

    port_map: Mapping[str, int] = {}
    address: str = ""
    auto_advertise: bool = False


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """Something of a task that nobody looks after any more: its supervisor is gone and no handle claims it.

    :ivar task_id: the task that it belonged to.
    :ivar ref: what the driver finds it by, opaque to others.
    :ivar description: what it is, for people: ``process 4711 (sleep) of task 8a1e``.
    """

    task_id: str
    ref: str
    description: str


class Tick:
    """One sweep over one driver's tasks. What tasks share (a scan of /proc) is cached by its identity.

    :ivar at_ns: when the sweep began, ``time.monotonic_ns()``.
    :ivar extended: the dear groups (IO, processes, pressure, network) are wanted too.
    :ivar per_process: rows by process are wanted.
    :ivar fresh: nothing may be handed over again: a first or last reading, or somebody asked.
    """

    __slots__ = ("at_ns", "extended", "fresh", "per_process")

    def __init__(self, at_ns: int, *, extended: bool = False, per_process: bool = False, fresh: bool = False) -> None:
        self.at_ns = at_ns
        self.extended = extended
        self.per_process = per_process
        self.fresh = fresh

    def __repr__(self) -> str:
        flags = [name for name in ("extended", "per_process", "fresh") if getattr(self, name)]
        return f"<Tick at_ns={self.at_ns} {' '.join(flags)}>"


class ExecSession(ABC):
    """A further command inside a running task; closed when its holder is cancelled."""

    @abstractmethod
    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield ``(1, bytes)`` of stdout and ``(2, bytes)`` of stderr until both end; with a terminal all is 1."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Write to the command's stdin; returns when it was taken."""

    @abstractmethod
    async def close_stdin(self) -> None:
        """Let the command see the end of its stdin."""

    @abstractmethod
    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size; nothing happens without one."""

    @abstractmethod
    async def wait(self) -> Exit:
        """Wait for the command's end."""

    @abstractmethod
    async def aclose(self) -> None:
        """Kill the command's tree, if it still runs, and free everything."""

    async def __aenter__(self) -> ExecSession:
        """Hold the session."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.aclose()


class RunningTask(ABC):
    """One task of a driver's.

    :ivar config: what was asked for.
    :ivar driver_state: what ``recover`` needs to find the task again; kept in its handle.
    :ivar network: set by a driver whose task is reached otherwise than its ports say.
    :ivar started_at_ns: Unix time, nanoseconds, where the driver knows better than "when ``start`` returned".
    :ivar default_kill_signal: first signal of a stop, where neither caller nor task names one.
    """

    network: NetworkOverride | None = None
    started_at_ns: int | None = None
    default_kill_signal: int = SIGINT

    def __init__(self, config: TaskConfig, driver_state: bytes = b"") -> None:
        self.config = config
        self.driver_state = driver_state

    @abstractmethod
    async def wait(self) -> Exit:
        """Wait for the end. Any number of callers, also after the end, until ``destroy``."""

    @abstractmethod
    async def signal(self, signum: int) -> None:
        """Send a signal to the task."""

    def read(self, tick: Tick) -> Counters:
        """Say what the task used so far: synchronous, cheap, until ``destroy``, also after the end.

        :raises UnrecoverableError: there is nothing to read any more.
        :raises RecoverableError: it may work again.
        """
        raise StatsNotImplemented(f"{type(self).__name__} offers no statistics")

    def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
        """Yield counters for as long as the task lives, for a driver that can only stream."""
        raise StatsNotImplemented(f"{type(self).__name__} offers no statistics")

    async def stop(self, timeout_s: float, signum: int) -> None:
        """End the task: a signal, ``timeout_s`` seconds of grace, SIGKILL; returns when it has ended.

        A signal that fails because the task ended in that moment is no error.
        """
        import asyncio

        waiter = asyncio.ensure_future(self.wait())
        try:
            for number, grace_s in ((signum, timeout_s), (SIGKILL, None)):
                if grace_s == 0:
                    continue
                try:
                    await self.signal(number)
                except DriverError:
                    await asyncio.wait([waiter], timeout=_END_IS_SEEN_S)
                    if not waiter.done():
                        raise
                await asyncio.wait([waiter], timeout=grace_s)
                if waiter.done():
                    waiter.result()
                    return
        finally:
            waiter.cancel()

    async def destroy(self, force: bool = False) -> None:
        """Free all that the task holds; with ``force`` also while it runs. Twice without error."""

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
        """
        raise NotSupported(f"{type(self).__name__} cannot run further commands in a task")

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the task's own terminal its size, where the driver gave it one."""
        raise NotSupported(f"{type(self).__name__} has no terminal of its own")

    async def inspect(self) -> Mapping[str, str]:
        """Attributes that only the driver knows; state and times are the host's."""
        return {}


class AttachedTask(RunningTask):
    """Something that others run: only measured, never stopped or removed. Drivers derive from it, and add ``wait``."""

    def what(self) -> str:
        """What it is, for messages."""
        return self.config.name

    async def signal(self, signum: int) -> None:
        """Refused: it is not ours.

        :raises NotSupported: always.
        """
        raise NotSupported(f"{self.what()} is somebody else's: it is only measured")

    async def stop(self, timeout_s: float, signum: int) -> None:
        """Refused: it is not ours.

        :raises NotSupported: always.
        """
        await self.signal(signum)


class DriverBase(ABC):
    """What both forms of a driver declare on the class, so that it can be asked without an instance.

    :ivar name: as users write it.
    :ivar task_type: class of its tasks; with the driver's own methods it decides the capabilities.
    :ivar config_schema: the driver's own settings.
    :ivar task_schema: what ``TaskConfig.driver_config`` may hold.
    :ivar capabilities: only what code cannot show; see :func:`capabilities_of` for the whole.
    :ivar reads_never_block: ``read`` cannot hang, so it is called in the event loop instead of a thread of its own.
    :ivar retry: how long to wait before a failed reading is tried again; None: 1, 2, 4, 5, 5… s.
    """

    name: ClassVar[str]
    task_type: ClassVar[type[Any]]
    config_schema: ClassVar[type[msgspec.Struct]] = NoSettings
    task_schema: ClassVar[type[msgspec.Struct]] = NoSettings
    capabilities: ClassVar[Capabilities] = Capabilities()
    reads_never_block: ClassVar[bool] = False
    retry: ClassVar[wait_base | None] = None

    def __init__(self, config: Any, node: NodeInfo) -> None:
        self.config = config
        self.node = node


class Driver(DriverBase):
    """A driver in asyncio form."""

    task_type: ClassVar[type[RunningTask]]

    async def open(self) -> None:
        """Called once, before the first use. Cleans nothing up: others may run beside us."""

    async def close(self) -> None:
        """Called once, at the end. Never stops tasks."""

    async def prepare(self, task: TaskConfig) -> None:
        """Make ready what tasks share, such as an image; may be called again, leaves nothing to undo."""

    @abstractmethod
    async def start(self, task: TaskConfig) -> RunningTask:
        """Start a task.

        :raises RecoverableError: it may work later.
        :raises UnrecoverableError: it cannot work; nothing is left behind.
        """

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a task again that was started before this process.

        :raises TaskNotFound: it is gone for good.
        """
        raise NotSupported(f"the driver {self.name} cannot find tasks again after a restart")

    async def attach(self, ref: str) -> RunningTask:
        """Measure something that others run; it is never stopped or removed by us.

        :raises TaskNotFound: there is no such thing.
        """
        raise NotSupported(f"the driver {self.name} cannot measure what it did not start")

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Yield the driver's health: at once, and whenever it changes."""
        yield Fingerprint()

    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield what happens to tasks; every caller gets all events."""
        nothing: tuple[TaskEvent, ...] = ()
        for event in nothing:
            yield event

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find what tasks of this node and ``host_id`` left behind.

        :param claimed: ids of tasks that a handle claims; nothing of theirs is left over.
        """
        return ()

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Remove one of them; twice without error."""

    async def create_network(self, alloc_id: str, hostname: str) -> tuple[NetworkSpec, bool]:
        """Make the network of an allocation; the second value says whether it was made now."""
        raise NotSupported(f"the driver {self.name} makes no networks")

    async def destroy_network(self, alloc_id: str, spec: NetworkSpec) -> None:
        """Remove such a network."""
        raise NotSupported(f"the driver {self.name} makes no networks")


def capabilities_of(driver: type[DriverBase]) -> Capabilities:
    """The whole capabilities of a driver: what it declares, and what its code shows by overriding a default."""
    from cameleer.blocking import BlockingDriver, BlockingTask

    blocking = issubclass(driver, BlockingDriver)
    base_driver: type[Any] = BlockingDriver if blocking else Driver
    base_task: type[Any] = BlockingTask if blocking else RunningTask
    task = driver.task_type

    def overrides(owner: type[Any], base: type[Any], name: str) -> bool:
        return getattr(owner, name, None) is not getattr(base, name, None)

    return msgspec.structs.replace(
        driver.capabilities,
        stats=overrides(task, base_task, "read") or overrides(task, base_task, "stats"),
        send_signals=driver.capabilities.send_signals,
        exec=overrides(task, base_task, "exec"),
        recover=overrides(driver, base_driver, "recover"),
        attach=overrides(driver, base_driver, "attach"),
        network=overrides(driver, base_driver, "create_network"),
    )
