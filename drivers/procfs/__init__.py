"""Process trees and their counters from /proc, for drivers whose tasks are plain processes.

One :class:`ProcessTable` for all tasks of a host follows which processes there are; each task has a
:class:`TreeCounters`, or a :class:`Tree` for drivers that want other figures of it::

    table = ProcessTable()
    counters = TreeCounters(table, pid, include_root=True)
    counters.read(tick)  # as often as wanted
    counters.close()
    table.close()

The names are imported when the first of them is used, so that who wants one part pays for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cameleer.drivers.procfs.counters import TreeCounters
    from cameleer.drivers.procfs.identity import ProcessIdentity, boot_id, process_identity, start_ticks
    from cameleer.drivers.procfs.table import ProcessTable
    from cameleer.drivers.procfs.tree import Tree, TreeExtended, TreeUsage
    from cameleer.drivers.procfs.units import CLOCK_TICKS_PER_S, NS_PER_TICK, PAGE_BYTES

__all__ = [
    "CLOCK_TICKS_PER_S",
    "NS_PER_TICK",
    "PAGE_BYTES",
    "ProcessIdentity",
    "ProcessTable",
    "Tree",
    "TreeCounters",
    "TreeExtended",
    "TreeUsage",
    "boot_id",
    "process_identity",
    "start_ticks",
]

_MODULES = {
    "ProcessIdentity": "identity",
    "ProcessTable": "table",
    "Tree": "tree",
    "TreeCounters": "counters",
    "TreeExtended": "tree",
    "TreeUsage": "tree",
    "boot_id": "identity",
    "process_identity": "identity",
    "start_ticks": "identity",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_MODULES.get(name, 'units')}")
    globals()[name] = value = getattr(module, name)
    return value
