"""A task as its owner and the hooks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from cameleer.config import TaskConfig
from cameleer.node import NodeInfo
from cameleer.status import Cause, ExitResult

if TYPE_CHECKING:
    pass


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
