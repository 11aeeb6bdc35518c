"""What a container may do: capabilities, devices, security options."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from cameleer.config import Device, TaskConfig
from cameleer.errors import ConfigError

if TYPE_CHECKING:
    from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig

KEPT: Final = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
)
"""What a container keeps that asks for nothing: what Nomad leaves it.

Fn drops all capabilities and runs everything as user 1000; Nomad drops all but these, among the dropped NET_RAW, which
the engine itself would leave it. So NET_RAW and all that the engine does not give by default are what both drop.
"""

_NO_NEW: Final = "no-new-privileges"


def arguments(task: TaskConfig, settings: DockerTaskConfig, driver: DockerConfig) -> dict[str, object]:
    """Parts of the request's ``HostConfig``.

    :raises ConfigError: there is no such capability or option, or the driver's configuration forbids it.
    """
    found: dict[str, object] = {}
    options = [_NO_NEW] if settings.no_new_privileges else []
    options += [_option(text, index) for index, text in enumerate(settings.security_opt)]
    if options:
        found["SecurityOpt"] = options
    if task.devices:
        found["Devices"] = [_device(each, f"TaskConfig.devices[{index}]") for index, each in enumerate(task.devices)]
    if settings.privileged:
        if not driver.allow_privileged:
            raise ConfigError(
                "driver_config.privileged is True: drivers.docker.allow_privileged is false, so no task may be"
            )
        if settings.cap_drop:
            raise ConfigError(f"driver_config.cap_drop is {settings.cap_drop}: a privileged container has everything")
        return {**found, "Privileged": True}
    return {**found, **_capabilities(settings, driver)}


def _capabilities(settings: DockerTaskConfig, driver: DockerConfig) -> dict[str, object]:
    """Always all dropped and some added, so that the engine's own defaults change nothing."""
    dropped = {_name(text, f"driver_config.cap_drop[{index}]") for index, text in enumerate(settings.cap_drop)}
    added = {_name(text, f"driver_config.cap_add[{index}]") for index, text in enumerate(settings.cap_add)}
    allowed = {_name(text, f"drivers.docker.allow_caps[{index}]") for index, text in enumerate(driver.allow_caps)}
    if "ALL" not in allowed and (refused := added - allowed - set(KEPT.split())):
        raise ConfigError(
            f"driver_config.cap_add has {sorted(refused)}: drivers.docker.allow_caps, {driver.allow_caps}, does not"
        )
    if "ALL" in added:
        if "ALL" in dropped:
            raise ConfigError("driver_config.cap_drop and cap_add both have 'all'")
        return {"CapAdd": ["ALL"], "CapDrop": sorted(dropped)}
    kept = set() if "ALL" in dropped else set(KEPT.split()) - dropped
    return {"CapAdd": sorted(kept | added), "CapDrop": ["ALL"]}


def _name(text: str, path: str) -> str:
    """Without its prefix, which old engines do not know."""
    from cameleer.drivers.exec.capabilities import mask

    try:
        mask([text], "")
    except ConfigError as exc:
        raise ConfigError(f"{path} is {text!r}: there is no such capability") from exc
    return text.lower().removeprefix("cap_").upper()


def _option(text: str, index: int) -> str:
    path = f"driver_config.security_opt[{index}]"
    name, sign, value = text.partition("=")
    if not sign:
        name, sign, value = text.partition(":")
    if name == _NO_NEW:
        raise ConfigError(f"{path} is {text!r}: say it with driver_config.no_new_privileges")
    if name not in ("seccomp", "apparmor", "label") or not value:
        raise ConfigError(f"{path} is {text!r}: use seccomp=…, apparmor=… or label=…")
    if name == "seccomp" and value not in ("unconfined", "builtin") and not value.lstrip().startswith("{"):
        raise ConfigError(f"{path} is {text!r}: a seccomp profile is 'unconfined', 'builtin' or the profile's own JSON")
    return f"{name}={value}"


def _device(device: Device, path: str) -> dict[str, object]:
    target = device.target or device.source
    for name, value in (("source", device.source), ("target", target)):
        if not posixpath.isabs(value):
            raise ConfigError(f"{path}.{name} is {value!r}: it must be a whole path")
    return {"PathOnHost": device.source, "PathInContainer": target, "CgroupPermissions": device.permissions}
