"""Groups that a task made inside its own: what the kernel does not add up by itself."""

from __future__ import annotations

import os
import time
from typing import Final

from cameleer.drivers.cgroup import kernel, parse

_NONE_INSIDE: Final = 2
"""Links of a folder without folders."""
_THRIFT: Final = 50
"""They are looked through only after so many times of what it cost: that is at most 2 % of a core."""


class Inside:
    """Processes and OOM kills in the groups inside one.

    :ivar processes: in those groups, when they were last looked through.
    :ivar oom_kills: in those groups, removed ones included; version 1, where the kernel counts each group alone.
    """

    __slots__ = ("_counts_kills", "_due_ns", "_folder", "_gone", "_kills", "oom_kills", "processes")

    def __init__(self, folder: str, *, counts_kills: bool) -> None:
        """Look at nothing yet.

        :param folder: of the group; on version 1 that of its memory controller, where it has one.
        :param counts_kills: version 1.
        """
        self._folder = folder
        self._counts_kills = counts_kills
        self._due_ns = 0
        self._kills: dict[str, int] = {}
        self._gone = 0
        self.processes = 0
        self.oom_kills = 0

    def look(self, at_ns: int) -> None:
        """Look through them, if there are any and it is time.

        :raises OSError: the group itself is gone.
        :raises RecoverableError: a text is garbled.
        """
        if at_ns < self._due_ns:
            return
        if os.stat(self._folder).st_nlink == _NONE_INSIDE and not self._kills:
            self.processes = 0
            return
        began_ns = time.monotonic_ns()
        groups = kernel.nested(self._folder)
        self.processes = sum(len(kernel.members(each)) for each in groups)
        if self._counts_kills:
            self._count_kills(groups)
        self._due_ns = at_ns + _THRIFT * (time.monotonic_ns() - began_ns)

    def _count_kills(self, groups: list[str]) -> None:
        """Add up; what a group counted stays when it is removed, or another of its name is made."""
        before, self._kills = self._kills, {}
        for each in groups:
            source = f"{each}/memory.oom_control"
            try:
                count = parse.oom_kills(kernel.read(source).encode(), source)
            except OSError as exc:
                if exc.errno in kernel.GONE:
                    continue
                raise
            if count is None:
                continue
            self._kills[each] = count
            if count < before.get(each, 0):
                self._gone += before[each]
        self._gone += sum(count for each, count in before.items() if each not in self._kills)
        self.oom_kills = self._gone + sum(self._kills.values())
