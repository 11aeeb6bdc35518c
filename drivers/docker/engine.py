"""One engine: its address, the ways to talk to it, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cameleer.drivers.docker.client.endpoint import Endpoint, find
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.client.sdk import Sdk
from cameleer.drivers.docker.events import Events
from cameleer.drivers.docker.stats.remote import Sampler
from cameleer.errors import RecoverableError

if TYPE_CHECKING:
    from cameleer.drivers.docker.settings import DockerConfig

_BESIDE: Final = 4
"""Connections for other requests while all of the statistics wait for the engine's next second."""

_NEXT_SECOND_S: Final = 5.0
"""A request of statistics is answered at the engine's next second, which is late on a machine that is busy."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself.

    :ivar windows: its containers are Windows's.
    """

    version: str
    api_version: str
    cgroup_driver: Literal["cgroupfs", "systemd", "none"]
    cgroup_version: int
    storage: str
    runtimes: tuple[str, ...]
    architecture: str
    default_log_driver: str
    windows: bool

    def attributes(self) -> dict[str, tuple[str | int | float | bool, str]]:
        """For the fingerprint."""
        return {
            "driver.docker.version": (self.version, ""),
            "driver.docker.api_version": (self.api_version, ""),
            "driver.docker.cgroup_driver": (self.cgroup_driver, ""),
            "driver.docker.cgroup_version": (self.cgroup_version, ""),
            "driver.docker.storage_driver": (self.storage, ""),
            "driver.docker.runtimes": (",".join(self.runtimes), ""),
            "driver.docker.architecture": (self.architecture, ""),
            "driver.docker.log_driver": (self.default_log_driver, ""),
        }


class Engine:
    """An engine, and the ways to it: the SDK for short calls, a client of our own for what is long or hot."""

    def __init__(self, config: DockerConfig, changed: Callable[[], object]) -> None:
        """Connect to nothing yet.

        :param changed: called when the connection was made or lost.
        :raises ConfigError: its address is wrong.
        """
        from cameleer.schema import duration_s

        self.timeout_s = duration_s(config.call_timeout, "call_timeout")
        self.endpoint: Endpoint = find(config)
        self.client = Client(self.endpoint, connections=max(config.stats_requests, 1) + _BESIDE)
        self.sdk = Sdk(self.endpoint, timeout_s=self.timeout_s, version=lambda: self.client.api_version)
        self.events = Events(self.client, changed, timeout_s=self.timeout_s)
        self.sampler = Sampler(
            self.client,
            limit=config.stats_requests,
            mode=config.stats_mode,
            timeout_s=max(self.timeout_s, _NEXT_SECOND_S),
        )

    async def info(self) -> EngineInfo:
        """Ask it what it is.

        :raises EngineGone: it does not answer.
        """
        response = await self.client.request("GET", "/info", timeout_s=self.timeout_s, what="ask the engine what it is")
        found = response.json()
        if not isinstance(found, dict):
            raise RecoverableError("the engine's answer about itself is no object")
        return _info(found, self.client.api_version)

    async def close(self) -> None:
        """Close all connections."""
        await self.events.close()
        await self.client.close()
        self.sdk.close()


def _info(found: Mapping[str, Any], api_version: str) -> EngineInfo:
    driver = str(found.get("CgroupDriver") or "none")
    version = str(found.get("CgroupVersion") or "1")
    runtimes = found.get("Runtimes")
    return EngineInfo(
        version=str(found.get("ServerVersion") or ""),
        api_version=api_version,
        cgroup_driver="cgroupfs" if driver == "cgroupfs" else "systemd" if driver == "systemd" else "none",
        cgroup_version=2 if version == "2" else 1,
        storage=str(found.get("Driver") or ""),
        runtimes=tuple(sorted(runtimes)) if isinstance(runtimes, dict) else (),
        architecture=str(found.get("Architecture") or ""),
        default_log_driver=str(found.get("LoggingDriver") or ""),
        windows=found.get("OSType") == "windows",
    )
