"""The conformance suite for drivers: ``class TestMine(DriverSuite): driver = Mine`` in a driver's own tests.

The names come lazily: this package is on the path of pytest's option, which must import nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cameleer.testing.adapter import Commands as Commands
    from cameleer.testing.adapter import ShellCommands as ShellCommands
    from cameleer.testing.suite import DriverSuite as DriverSuite

_MODULES = {"DriverSuite": "suite", "Commands": "adapter", "ShellCommands": "adapter"}
_WITH_CHECKS = ("life", "ends", "surroundings", "readings", "recovery", "extras", "leaks")

__all__ = ["Commands", "DriverSuite", "ShellCommands"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "DriverSuite":
        import pytest

        pytest.register_assert_rewrite(*(f"{__name__}.{each}" for each in _WITH_CHECKS))
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
