"""Nomad-style task drivers in Python, with per-task resource statistics that can be trusted.

The public names are those of :mod:`cameleer.public`. They are imported when the first of them is used, so that a part
which is imported by its own path (the command line, a driver, pytest's option) costs that part alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cameleer.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name == "public":  # importlib asks for them before it imports
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cameleer import public

    if name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(public, name)
    return value


def __dir__() -> list[str]:
    from cameleer import public

    return sorted({*globals(), *public.__all__})
