"""Confined processes, each in a control group of its own; see :mod:`cameleer.drivers.exec.driver`."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cameleer.drivers.exec.conformance import ExecCommands
    from cameleer.drivers.exec.driver import Exec

__all__ = ["Exec", "ExecCommands"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "driver" if name == "Exec" else "conformance"
    return getattr(import_module(f"cameleer.drivers.exec.{module}"), name)
