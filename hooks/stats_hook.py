"""Publish the usage of every task for as long as it runs.

The life cycle of Nomad's hook of this name; the host does the measuring, the retries and the publishing, and none of it
while ``telemetry.publish_allocation_metrics`` is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cameleer.hooks.specs import hookimpl
from cameleer.log import fields, log

if TYPE_CHECKING:
    from cameleer.hooks.specs import ExitedRequest, PoststartRequest
    from cameleer.host import Host
    from cameleer.task import Task


class StatsHook:
    """Asks the host to publish a task's readings from ``poststart`` to ``exited`` or ``shutdown``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._published: dict[str, Task] = {}

    @hookimpl
    async def poststart(self, request: PoststartRequest) -> None:
        """Begin; a second time for the same task begins anew."""
        task = request.task
        if task.id in self._published:
            log.debug("task %s is published already: beginning anew", task.id, extra=fields(task_id=task.id))
        self._published[task.id] = task
        self._host.publish(task)

    @hookimpl
    async def exited(self, request: ExitedRequest) -> None:
        """End; nothing happens for a task that is not published."""
        if self._published.pop(request.task.id, None) is not None:
            self._host.unpublish(request.task)

    @hookimpl
    async def shutdown(self) -> None:
        """End for all; an ``exited`` that still comes finds nothing to do."""
        while self._published:
            _, task = self._published.popitem()
            self._host.unpublish(task)
