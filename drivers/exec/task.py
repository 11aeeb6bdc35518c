"""A task of ``exec``: the host's side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cameleer.drivers.cgroup.rows import with_rows
from cameleer.drivers.supervisor.grouped import GroupedTask

if TYPE_CHECKING:
    from cameleer.driver import Tick
    from cameleer.usage import Counters


class ExecTask(GroupedTask):
    """A command in a group of its own."""

    def read(self, tick: Tick) -> Counters:
        """Count the task's group, and list its processes on request; in the event loop, as its end is read.

        :raises UnrecoverableError: the group is gone.
        """
        return with_rows(self.read_group(tick), tick, self.group.folder)
