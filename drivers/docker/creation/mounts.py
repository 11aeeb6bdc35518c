"""What a container sees of files: mounts, volumes, tmpfs, read-only root, shared memory."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cameleer.config import Mount, TaskConfig
from cameleer.errors import ConfigError

if TYPE_CHECKING:
    from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig

_PROPAGATION: Final = {"private": "rprivate", "host-to-task": "rslave", "bidirectional": "rshared"}
_VOLUME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
_VOLUME_OPTIONS: Final = (
    ("ro", "rw"),
    ("z", "Z"),
    ("private", "rprivate", "shared", "rshared", "slave", "rslave"),
    ("cached", "delegated", "consistent"),
    ("nocopy",),
)
"""Of each line one may be given."""
_TMPFS_FLAGS: Final = (
    "ro rw suid nosuid dev nodev exec noexec sync async dirsync atime noatime diratime nodiratime relatime norelatime "
    "strictatime nostrictatime"
)
_TMPFS_VALUES: Final = {
    "size": (re.compile(r"[0-9]{1,18}[kKmMgG]?|[0-9]{1,3}%"), "a number of bytes such as 64m"),
    "mode": (re.compile(r"[0-7]{3,4}"), "an octal mode such as 1777"),
    "uid": (re.compile(r"[0-9]{1,10}"), "a number"),
    "gid": (re.compile(r"[0-9]{1,10}"), "a number"),
    "nr_inodes": (re.compile(r"[0-9]{1,18}[kKmMgG]?"), "a number"),
    "nr_blocks": (re.compile(r"[0-9]{1,18}[kKmMgG]?"), "a number"),
    "mpol": (re.compile(r"[a-z0-9:,=-]+"), "a memory policy"),
}


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """Parts of the request.

    :ivar container: of its top level.
    :ivar host: of its ``HostConfig``.
    """

    container: dict[str, object]
    host: dict[str, object]


def volumes(task: TaskConfig, settings: DockerTaskConfig, driver: DockerConfig) -> Volumes:
    """Everything that is mounted.

    :raises ConfigError: a path is none, is given twice, or the driver's configuration forbids it.
    """
    taken: dict[str, str] = {}
    container: dict[str, object] = {}
    host: dict[str, object] = {}
    if settings.read_only:
        host["ReadonlyRootfs"] = True
    if settings.shm_size:
        if settings.shm_size < 0:
            raise ConfigError(f"driver_config.shm_size is {settings.shm_size}: it must be a number of bytes")
        host["ShmSize"] = settings.shm_size
    if task.mounts:
        host["Mounts"] = [
            _mount(each, f"TaskConfig.mounts[{i}]", task, driver, taken) for i, each in enumerate(task.mounts)
        ]
    binds, anonymous = [], {}
    for index, text in enumerate(settings.volumes):
        path = f"driver_config.volumes[{index}]"
        if ":" in text:
            binds.append(_bind(text, path, task, driver, taken))
        else:
            anonymous[_target(text, path, taken)] = dict[str, str]()
    if binds:
        host["Binds"] = binds
    if anonymous:
        container["Volumes"] = anonymous
    if settings.tmpfs:
        host["Tmpfs"] = {
            _target(target, "driver_config.tmpfs", taken): _tmpfs(target, options)
            for target, options in settings.tmpfs.items()
        }
    return Volumes(container=container, host=host)


def _mount(mount: Mount, path: str, task: TaskConfig, driver: DockerConfig, taken: dict[str, str]) -> dict[str, object]:
    if not posixpath.isabs(mount.source):
        raise ConfigError(f"{path}.source is {mount.source!r}: it must be a whole path of the engine's machine")
    _check_allowed(mount.source, f"{path}.source", task, driver)
    found: dict[str, object] = {
        "Type": "bind",
        "Source": mount.source,
        "Target": _target(mount.target, f"{path}.target", taken),
        "ReadOnly": mount.read_only,
    }
    if mount.propagation:
        found["BindOptions"] = {"Propagation": _PROPAGATION[mount.propagation]}
    return found


def _bind(text: str, path: str, task: TaskConfig, driver: DockerConfig, taken: dict[str, str]) -> str:
    parts = text.split(":")
    if len(parts) > 3:
        raise ConfigError(f"{path} is {text!r}: write SOURCE:TARGET[:OPTIONS] or TARGET; no path may have a colon")
    source, target = parts[0], _target(parts[1], path, taken)
    if "/" in source or source.startswith("."):
        if not posixpath.isabs(source):
            if not task.task_dir:
                raise ConfigError(f"{path} is {text!r}: {source!r} must be a whole path, as the task has no task_dir")
            source = posixpath.normpath(posixpath.join(task.task_dir, source))
            if ":" in source:
                raise ConfigError(f"{path} is {text!r}: the path of the task's folder has a colon")
        _check_allowed(source, path, task, driver)
    elif not _VOLUME.fullmatch(source):
        raise ConfigError(f"{path} is {text!r}: {source!r} is neither a path nor a volume's name")
    options = [option for option in parts[2].split(",") if option] if len(parts) == 3 else []
    _check_options(options, f"{path} is {text!r}")
    return ":".join([source, target, *([",".join(options)] if options else [])])


def _check_options(options: list[str], where: str) -> None:
    known = [option for group in _VOLUME_OPTIONS for option in group]
    for option in options:
        if option not in known:
            raise ConfigError(f"{where}: {option!r} is no option; use {', '.join(known)}")
    for group in _VOLUME_OPTIONS:
        given = [option for option in options if option in group]
        if len(given) > 1:
            raise ConfigError(f"{where}: {given[0]!r} and {given[1]!r} are given together")


def _check_allowed(source: str, path: str, task: TaskConfig, driver: DockerConfig) -> None:
    """Where host paths are forbidden, those of the task's own folders are not; links are followed."""
    if driver.volumes:
        return
    if "\0" not in source:
        real = os.path.realpath(source)
        if any(real == own or real.startswith(f"{own}/") for own in map(os.path.realpath, _own_folders(task))):
            return
    raise ConfigError(f"{path} is {source!r}: drivers.docker.volumes is false, so no path of the host may be mounted")


def _own_folders(task: TaskConfig) -> list[str]:
    return [folder for folder in (task.alloc_dir, task.task_dir) if folder]


def _target(target: str, path: str, taken: dict[str, str]) -> str:
    if not posixpath.isabs(target):
        raise ConfigError(f"{path} is {target!r}: where it is mounted must be a whole path of the container")
    clean = "/" + posixpath.normpath(target).strip("/")
    if clean == "/":
        raise ConfigError(f"{path} is {target!r}: nothing can be mounted over the container's root")
    if clean in taken:
        raise ConfigError(f"{path} is {target!r}: {taken[clean]} is mounted there already")
    taken[clean] = path
    return clean


def _tmpfs(target: str, text: str) -> str:
    path = f"driver_config.tmpfs[{target!r}]"
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if not equals:
            if name not in _TMPFS_FLAGS.split():
                raise ConfigError(f"{path} is {text!r}: {name!r} is no option; use such as size=64m, mode=1777, exec")
            continue
        if name not in _TMPFS_VALUES:
            raise ConfigError(f"{path} is {text!r}: {name!r} is no option; use one of {', '.join(_TMPFS_VALUES)}")
        pattern, rule = _TMPFS_VALUES[name]
        if not pattern.fullmatch(value):
            raise ConfigError(f"{path} is {text!r}: {name} must be {rule}")
    return text
