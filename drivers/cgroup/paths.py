"""Where one task's group is, on either version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class GroupPaths(msgspec.Struct, frozen=True, kw_only=True):
    """The folders of one group.

    :ivar version: of the interface in them.
    :ivar folders: version 1: absolute folder by controller (``cpu``, ``cpuacct``, ``cpuset``, ``memory``, ``pids``,
        ``blkio``, ``freezer``), as far as they are mounted; version 2: one entry, ``unified``.
    """

    version: Literal[1, 2]
    folders: Mapping[str, str]
