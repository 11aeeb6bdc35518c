"""Which network a container is in, its ports, its names and its name servers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cameleer.config import Port, TaskConfig
from cameleer.errors import ConfigError

if TYPE_CHECKING:
    from cameleer.drivers.docker.settings import DockerTaskConfig

SANDBOX: Final = "docker_sandbox_container_id"
"""Label of a ``NetworkIsolation``: the container whose network the group shares."""

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HOSTNAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_HOSTNAME_LENGTH: Final = 64


@dataclass(frozen=True, kw_only=True)
class Network:
    """Parts of the request.

    :ivar container: of its top level.
    :ivar host: of its ``HostConfig``.
    """

    container: dict[str, object]
    host: dict[str, object]


def network(task: TaskConfig, settings: DockerTaskConfig) -> Network:
    """Everything about the network.

    :raises ConfigError: a value is wrong, or the network's mode does not allow it.
    """
    mode = _mode(task, settings)
    container: dict[str, object] = {}
    host: dict[str, object] = {"NetworkMode": mode} if mode else {}
    if settings.hostname:
        if len(settings.hostname) > _HOSTNAME_LENGTH or not _HOSTNAME.fullmatch(settings.hostname):
            raise ConfigError(f"driver_config.hostname is {settings.hostname!r}: it must be a name of a machine")
        container["Hostname"] = settings.hostname
    if task.dns is not None:
        host |= {
            "Dns": [_address(each, f"TaskConfig.dns.servers[{i}]") for i, each in enumerate(task.dns.servers)],
            "DnsSearch": _texts(task.dns.searches, "TaskConfig.dns.searches"),
            "DnsOptions": _texts(task.dns.options, "TaskConfig.dns.options"),
        }
    if settings.extra_hosts:
        host["ExtraHosts"] = [_extra_host(text, index) for index, text in enumerate(settings.extra_hosts)]
    if mode.startswith("container:"):
        _check_joined(mode, task, settings)
    if task.ports:
        ports = _ports(task.ports, mode)
        if ports:
            container["ExposedPorts"] = {key: dict[str, str]() for key in ports}
            host["PortBindings"] = ports
    return Network(container=container, host=host)


def _mode(task: TaskConfig, settings: DockerTaskConfig) -> str:
    """The engine's word for it; empty: its default."""
    if settings.network_mode:
        kind, colon, name = settings.network_mode.partition(":")
        if not _WORD.fullmatch(name if colon else kind) or (colon and kind != "container"):
            raise ConfigError(
                f"driver_config.network_mode is {settings.network_mode!r}: use bridge, host, none, container:NAME or "
                "a network's name"
            )
        return settings.network_mode
    wanted = task.network_isolation
    if wanted is None or wanted.mode == "task":
        return ""
    if wanted.mode != "group":
        return wanted.mode
    sandbox = wanted.labels.get(SANDBOX, "")
    if isinstance(sandbox, str) and _WORD.fullmatch(sandbox):
        return f"container:{sandbox}"
    raise ConfigError(
        f"TaskConfig.network_isolation is {wanted!r}: a container can share the network of another container alone, "
        f"whose id the label {SANDBOX!r} would name, and cannot join a path"
    )


def _check_joined(mode: str, task: TaskConfig, settings: DockerTaskConfig) -> None:
    for name, value in (
        ("driver_config.hostname", settings.hostname),
        ("TaskConfig.dns", task.dns),
        ("driver_config.extra_hosts", settings.extra_hosts),
    ):
        if value:
            raise ConfigError(f"{name} is {value!r}: in the network {mode!r} that is the other container's")


def _ports(asked: Sequence[Port], mode: str) -> dict[str, list[dict[str, str]]]:
    """``80/tcp`` to where it can be reached; on the host's network a port is where it is."""
    found: dict[str, list[dict[str, str]]] = {}
    taken = set()
    for index, port in enumerate(asked):
        path = f"TaskConfig.ports[{index}]"
        inner = port.host_port if port.container_port is None else port.container_port
        if inner == 0:
            raise ConfigError(f"{path}.container_port is {port.container_port}: it must be 1 to 65535")
        if mode == "host" and inner == port.host_port:
            continue
        if mode in ("host", "none") or mode.startswith("container:"):
            raise ConfigError(
                f"{path} leads {port.host_port} to {inner}: no port can be led elsewhere in the network {mode!r}"
            )
        address = _address(port.host_ip, f"{path}.host_ip") if port.host_ip else ""
        place = (address, port.host_port, port.protocol)
        if port.host_port and place in taken:
            raise ConfigError(f"{path}.host_port is {port.host_port}: it is led elsewhere already")
        taken.add(place)
        outer = str(port.host_port) if port.host_port else ""  # empty: the engine chooses
        found.setdefault(f"{inner}/{port.protocol}", []).append({"HostIp": address, "HostPort": outer})
    return found


def _address(text: object, path: str) -> str:
    try:
        return str(ipaddress.ip_address(text if isinstance(text, str) else ""))
    except ValueError as exc:
        raise ConfigError(f"{path} is {text!r}: it must be an IP address") from exc


def _texts(values: Sequence[str], path: str) -> list[str]:
    for index, each in enumerate(values):
        if not isinstance(each, str):
            raise ConfigError(f"{path}[{index}] is {each!r}: it must be text")
    return list(values)


def _extra_host(text: str, index: int) -> str:
    path = f"driver_config.extra_hosts[{index}]"
    name, _, address = text.partition(":")
    if not name or any(each.isspace() for each in text):
        raise ConfigError(f"{path} is {text!r}: write NAME:ADDRESS")
    if address != "host-gateway":
        _address(address.removeprefix("[").removesuffix("]"), path)
    return text
