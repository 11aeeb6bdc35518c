"""The host's configuration: a mapping, shaped as the TOML file is, or the path of such a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cameleer.errors import ConfigError
from cameleer.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long a driver's or hook plugin's call may take, seconds.

    :ivar prepare: making ready what tasks share, such as an image.
    :ivar start: starting a task.
    :ivar stop: on top of the task's own kill timeout.
    :ivar call: every other call, a reading and a hook included.
    """

    prepare: float = 600.0
    start: float = 60.0
    stop: float = 10.0
    call: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration that was read and checked.

    :ivar drivers: the settings of each driver, by its name; checked against its ``config_schema`` when it is opened.
    :ivar hooks: names of the hook plugins to load by entry point; None: all.
    :ivar disabled: names of plugins that are never imported; None: every plugin that is not built in.
    """

    telemetry: Telemetry = field(default_factory=Telemetry)
    drivers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    hooks: frozenset[str] | None = None
    disabled: frozenset[str] | None = frozenset()

    @classmethod
    def of(cls, config: Mapping[str, Any] | str | os.PathLike[str] | None) -> Settings:
        """Read a configuration.

        :raises ConfigError: it cannot be read, a key is unknown, or a value is wrong; the message names it.
        """
        if config is None:
            return cls()
        if not isinstance(config, Mapping):
            config = load(config)
        _known_keys("the configuration", config, ("telemetry", "drivers", "deadlines", "plugins"))
        for name, section in config.items():
            if not isinstance(section, (Mapping, Telemetry)):
                raise ConfigError(f"{name} is {section!r}: it must be a table of settings")
        plugins = config.get("plugins", {})
        _known_keys("plugins", plugins, ("hooks", "disabled"))
        hooks, disabled = plugins.get("hooks"), plugins.get("disabled", ())
        drivers = config.get("drivers", {})
        for name, section in drivers.items():
            if not isinstance(section, Mapping):
                raise ConfigError(f"drivers.{name} is {section!r}: it must be a table of settings")
        return cls(
            telemetry=Telemetry.of(config.get("telemetry", {})),
            drivers=drivers,
            deadlines=_deadlines(config.get("deadlines", {})),
            hooks=None if hooks is None else _names("plugins.hooks", hooks),
            disabled=None if disabled is True else _names("plugins.disabled", disabled or ()),
        )


def load(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a TOML file.

    :raises ConfigError: it cannot be read, or is not TOML; the message has the line.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {os.fspath(path)}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the configuration {os.fspath(path)} is not TOML: {exc}") from exc


def unknown_key(section: str, key: str, known: Iterable[str]) -> ConfigError:
    """Make the error for a key that nobody knows, with the nearest one that somebody does."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(key, names, 1)
    return ConfigError(
        f"{section} has the unknown key {key!r}: "
        + (f"did you mean {near[0]!r}?" if near else f"use {', '.join(names)}")
    )


def _known_keys(section: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in values:
        if key not in known:
            raise unknown_key(section, key, known)


def _names(path: str, value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{path} is {value!r}: it must be a list of names")
    return frozenset(str(name) for name in value)


def _deadlines(section: Mapping[str, Any]) -> Deadlines:
    from cameleer.schema import duration_s

    _known_keys("deadlines", section, [each.name for each in fields(Deadlines)])
    values = {name: duration_s(value, f"deadlines.{name}") for name, value in section.items()}
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"deadlines.{name} is {section[name]!r}: it must be above 0")
    return Deadlines(**values)
