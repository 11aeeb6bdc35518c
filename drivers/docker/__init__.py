"""Containers as tasks, through a Docker engine; see :mod:`cameleer.drivers.docker.driver`."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cameleer.drivers.docker.conformance import DockerCommands
    from cameleer.drivers.docker.driver import Docker

__all__ = ["Docker", "DockerCommands"]


def __getattr__(name: str) -> object:
    from importlib import import_module, util

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if util.find_spec("docker") is None:  # it is imported when it is first used, which is late to say so
        raise ModuleNotFoundError("No module named 'docker'", name="docker")
    module = "driver" if name == "Docker" else "conformance"
    return getattr(import_module(f"cameleer.drivers.docker.{module}"), name)
