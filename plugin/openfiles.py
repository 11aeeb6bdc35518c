"""How many files a process of ours may have open: raised by our own programs, never in an embedder's process.

What is measured keeps its files open, some of them for each task. A task gets what the caller had.
"""

from __future__ import annotations

import resource

_callers: list[tuple[int, int]] = []


def raise_limit() -> None:
    """Let this process have as many files open as it may at all; twice without harm.

    Only for programs that are ours as a whole.
    """
    if _callers:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _callers.append((soft, hard))


def callers_limit(which: int) -> tuple[int, int]:
    """A resource limit, soft and hard, as this process was started with, whatever we have raised."""
    if which == resource.RLIMIT_NOFILE and _callers:
        return _callers[0]
    return resource.getrlimit(which)
