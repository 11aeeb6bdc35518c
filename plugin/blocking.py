"""The contract of drivers without asyncio: plain functions, called in threads that the host keeps for the driver.

Streams, exec, events and networks need the asyncio form in :mod:`cameleer.driver`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from cameleer.driver import SIGINT, DriverBase, Fingerprint, NetworkOverride, Tick
from cameleer.errors import NotSupported, StatsNotImplemented

if TYPE_CHECKING:
    from cameleer.config import TaskConfig
    from cameleer.status import Exit
    from cameleer.task import TaskHandle
    from cameleer.usage import Counters


class BlockingTask(ABC):
    """One task of a blocking driver's.

    :ivar config: what was asked for.
    :ivar driver_state: what ``recover`` needs to find the task again.
    :ivar started_at_ns: Unix time, nanoseconds, where the driver knows better than "when ``start`` returned".
    """

    network: NetworkOverride | None = None
    started_at_ns: int | None = None
    default_kill_signal: ClassVar[int] = SIGINT

    def __init__(self, config: TaskConfig, driver_state: bytes = b"") -> None:
        self.config = config
        self.driver_state = driver_state

    @abstractmethod
    def poll(self) -> Exit | None:
        """Say how the task ended, or None while it runs; returns at once."""

    @abstractmethod
    def signal(self, signum: int) -> None:
        """Send a signal to the task; ``SIGKILL`` must end it."""

    def fileno(self) -> int | None:
        """A descriptor that is readable when ``poll`` has news; None: ``poll`` is asked every 100 ms."""
        return None

    def read(self, tick: Tick) -> Counters:
        """Say what the task used so far, until ``destroy``, also after the end.

        :raises UnrecoverableError: there is nothing to read any more.
        :raises RecoverableError: it may work again.
        """
        raise StatsNotImplemented(f"{type(self).__name__} offers no statistics")

    def destroy(self, force: bool = False) -> None:
        """Free all that the task holds; with ``force`` also while it runs. Twice without error."""

    def inspect(self) -> Mapping[str, str]:
        """Attributes that only the driver knows."""
        return {}


class BlockingDriver(DriverBase):
    """A driver in plain functions."""

    task_type: ClassVar[type[BlockingTask]]

    def open(self) -> None:
        """Called once, before the first use."""

    def close(self) -> None:
        """Called once, at the end. Never stops tasks."""

    def prepare(self, task: TaskConfig) -> None:
        """Make ready what tasks share; may be called again, leaves nothing to undo."""

    @abstractmethod
    def start(self, task: TaskConfig) -> BlockingTask:
        """Start a task.

        :raises RecoverableError: it may work later.
        :raises UnrecoverableError: it cannot work; nothing is left behind.
        """

    def recover(self, handle: TaskHandle) -> BlockingTask:
        """Find a task again that was started before this process.

        :raises TaskNotFound: it is gone for good.
        """
        raise NotSupported(f"the driver {self.name} cannot find tasks again after a restart")

    def attach(self, ref: str) -> BlockingTask:
        """Measure something that others run."""
        raise NotSupported(f"the driver {self.name} cannot measure what it did not start")

    def fingerprint(self) -> Fingerprint:
        """Say how the driver is; asked every 30 s."""
        return Fingerprint()
