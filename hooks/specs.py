"""What hook plugins can implement, and the markers for it.

An implementation takes only the arguments it uses. Plain functions run in one consumer thread, ``async`` ones on the
event loop. Every plugin is called, newest first; one that raises is logged with its name and the rest still run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from cameleer.host import Host
    from cameleer.status import ExitResult
    from cameleer.task import Task, TaskInfo
    from cameleer.usage import TaskResourceUsage

hookspec = pluggy.HookspecMarker("cameleer")
hookimpl = pluggy.HookimplMarker("cameleer")


@dataclass(frozen=True, kw_only=True)
class PoststartRequest:
    """A task has started, or was found again by ``Host.recover()``.

    :ivar task: the running task.
    :ivar recovered: it was running before this host was.
    """

    task: Task
    recovered: bool = False


@dataclass(frozen=True, kw_only=True)
class ExitedRequest:
    """A task has ended.

    :ivar task: the task, whose readings have ended.
    :ivar result: exit code or signal, final status, what the run used.
    """

    task: Task
    result: ExitResult


@hookspec
def poststart(request: PoststartRequest) -> Awaitable[None] | None:
    """Called once per task after its driver has started it and before ``Host.start()`` returns; again after a recovery.

    :param request: ``task`` and whether it was recovered.
    """


@hookspec
def exited(request: ExitedRequest) -> Awaitable[None] | None:
    """Called once per task, after its last reading and before ``wait()`` returns.

    Never before ``poststart`` for the same task has ended or was abandoned. After a kill of the host and a recovery it
    may come twice: key on the task id.

    :param request: ``task`` (its readings have ended) and ``result`` (exit code or signal, final status, usage).
    """


@hookspec
def shutdown() -> Awaitable[None] | None:
    """Called once when the host closes, after the last ``exited`` and before the drivers close."""


@hookspec
def update_stats(readings: Sequence[tuple[TaskInfo, TaskResourceUsage]]) -> Awaitable[None] | None:
    """Called once per sweep with the published readings, behind a bounded mailbox.

    A plugin that is slow gets the newest reading of each task and loses the others; they are counted per plugin.

    :param readings: pairs of task and reading, in no particular order; never empty.
    """


@hookspec
def http_routes(host: Host) -> Iterable[Any]:
    """Called once when an HTTP front door is built: routes that this plugin adds to it."""
    return ()


@hookspec
def cli_commands() -> Iterable[Any]:
    """Called once when the command line is read: sub-commands that this plugin adds.

    Each is a ``(name, help, configure, run)``: ``configure(parser)`` adds its options to an ``argparse`` parser and
    ``run(options) -> int`` does the work and returns the exit status.
    """
    return ()
