"""A task as the engine's ``POST /containers/create``.

All of it is decided here, before the engine is asked: a pure function of the task and the settings. What a container
cannot hold is an error that names the field and its value, never left out in silence.

The environment is the task's own and the image's, which belongs to the image as its command does; the engine adds
``HOSTNAME``, ``HOME`` and, for a terminal, ``TERM``.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cameleer.config import Resources, TaskConfig
from cameleer.drivers.cgroup import limits
from cameleer.drivers.docker.creation import mounts, networking, privileges
from cameleer.errors import ConfigError, NotSupported

if TYPE_CHECKING:
    from cameleer.drivers.docker.engine import EngineInfo
    from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig
    from cameleer.node import NodeInfo

LABEL: Final = "cameleer."
"""What our labels begin with."""

_READABLE_LOGS: Final = ("", "json-file", "local", "journald")
_MOST: Final = (1 << 63) - 1
_MOST_SECONDS: Final = (1 << 31) - 1
_NAME_LENGTH: Final = 40
_DIGEST_DIGITS: Final = 20
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SYSCTL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_ULIMITS: Final = "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
_WARNED_OF: Final = (
    ("support memory limit", ("memory_bytes", "memory_max_bytes")),
    ("support memory soft limit", ("memory_bytes",)),
    ("support swap limit", ("swap_bytes",)),
    ("support pids limit", ("pids",)),
    ("support cpu shares", ("cpu_mhz",)),
    ("support cpu cfs", ("cpu_quota_cores",)),
    ("support cpuset", ("cpuset_cpus",)),
    ("support block i/o weight", ("io_weight",)),
)


@dataclass(frozen=True, kw_only=True)
class Creation:
    """What the engine is asked for.

    :ivar name: of the container.
    :ivar body: of the request.
    """

    name: str
    body: dict[str, object]


def arguments(
    task: TaskConfig,
    settings: DockerTaskConfig,
    driver: DockerConfig,
    *,
    image: str,
    node: NodeInfo,
    cgroup_parent: str | None = None,
    info: EngineInfo | None = None,
) -> Creation:
    """Say what the engine is to create.

    :param settings: the task's ``driver_config``.
    :param image: its id, so that a tag that moved meanwhile changes nothing.
    :param cgroup_parent: group around the container's; None: the engine's own.
    :param info: the engine, where it is known: its default log driver and its runtimes are looked at too.
    :raises ConfigError: a container cannot be made so; names the field and its value.
    """
    if task.leave_rest:
        raise ConfigError("TaskConfig.leave_rest is True: nothing in a container outlives its first process")
    network = networking.network(task, settings)
    volumes = mounts.volumes(task, settings, driver)
    host: dict[str, object] = {
        "AutoRemove": False,  # its end is still to be asked for
        "RestartPolicy": {"Name": "no"},
        **_resources(task.resources, driver, node),
        **privileges.arguments(task, settings, driver),
        **volumes.host,
        **network.host,
        **_namespaces(settings),
        **_logs(task, settings, info),
        **_limits_of_processes(settings),
    }
    if cgroup_parent is not None:
        host["CgroupParent"] = cgroup_parent
    if settings.runtime:
        host["Runtime"] = _runtime(settings.runtime, info)
    body = {
        "Image": image,
        **_process(task, settings),
        **_streams(task),
        **volumes.container,
        **network.container,
        "Labels": _labels(task, settings, node),
        "HostConfig": host,
    }
    _check_text(body, "")
    return Creation(name=container_name(task, node), body=body)


def container_name(task: TaskConfig, node: NodeInfo) -> str:
    """The container's name: the task's, as far as the engine takes it, and a digest of host and task id.

    Two tasks never share one, be it of two hosts on one engine; ids may hold anything.
    """
    readable = _UNSAFE.sub("_", task.name).lstrip("_.-")[:_NAME_LENGTH] or "task"
    identity = f"{node.host_id}\0{task.id}".encode("utf-8", "surrogatepass")
    return f"{readable}-{sha256(identity).hexdigest()[:_DIGEST_DIGITS]}"


def check_warnings(task: TaskConfig, warnings: Sequence[str]) -> None:
    """Look at what the engine says of a container that it created.

    :raises NotSupported: it left out a limit that the task asks for.
    """
    for warning in warnings:
        for words, names in _WARNED_OF:
            for name in names:
                value = getattr(task.resources, name)
                if value is not None and words in warning.lower():
                    raise NotSupported(f"Resources.{name} {value!r} cannot be held: the engine says: {warning}")


def _process(task: TaskConfig, settings: DockerTaskConfig) -> dict[str, object]:
    found: dict[str, object] = {"Env": [f"{name}={value}" for name, value in task.whole_env.items()]}
    if settings.entrypoint:
        found["Entrypoint"] = list(settings.entrypoint)
    command = [*([task.command] if task.command else []), *task.args]
    if command:
        found["Cmd"] = command
    if task.user is not None:
        found["User"] = task.user
    if task.cwd is not None:
        if not posixpath.isabs(task.cwd):
            raise ConfigError(f"TaskConfig.cwd is {task.cwd!r}: it must be a whole path, of the container")
        found["WorkingDir"] = task.cwd
    if task.kill_signal is not None:
        found["StopSignal"] = str(task.kill_signal)
    found["StopTimeout"] = math.ceil(min(task.kill_timeout_s, _MOST_SECONDS))
    return found


def _streams(task: TaskConfig) -> dict[str, object]:
    if task.terminal == "inherit":
        raise ConfigError("TaskConfig.terminal is 'inherit': a container is a session of its own; use 'pty' or 'none'")
    fed = task.stdin.kind != "discard"
    return {
        "Tty": task.terminal == "pty",
        "OpenStdin": fed,
        "StdinOnce": fed,
        "AttachStdin": fed,
        "AttachStdout": True,
        "AttachStderr": True,
    }


def _resources(asked: Resources, driver: DockerConfig, node: NodeInfo) -> dict[str, object]:
    """Limits.

    A memory limit without ``swap_bytes`` is one of memory and swap together, as Nomad and Fn have it: the engine's
    default would be as much swap again. ``memory_bytes`` is the soft limit where there is a hard one too.
    """
    limits.check(asked)
    found: dict[str, object] = {}
    mhz = asked.cpu_mhz
    if mhz is None and driver.default_cpu_mhz:
        mhz = driver.default_cpu_mhz
        if mhz < limits.LEAST_CPU_MHZ:
            raise ConfigError(
                f"drivers.docker.default_cpu_mhz is {mhz}: it must be at least {limits.LEAST_CPU_MHZ} MHz, "
                "or 0 for the engine's default"
            )
    if mhz is not None:
        found["CpuShares"] = limits.shares(mhz, node.total_mhz)
    if asked.cpu_quota_cores is not None:
        _at_most("cpu_quota_cores", asked.cpu_quota_cores, 1_000_000)
        found["CpuQuota"], found["CpuPeriod"] = limits.quota(asked.cpu_quota_cores)
    if asked.cpuset_cpus is not None:
        found["CpusetCpus"] = asked.cpuset_cpus
    found |= _memory(asked)
    if asked.pids is not None:
        _at_most("pids", asked.pids, _MOST)
        found["PidsLimit"] = asked.pids
    if asked.io_weight is not None:
        found["BlkioWeight"] = asked.io_weight
    if asked.oom_score_adj is not None:
        found["OomScoreAdj"] = asked.oom_score_adj
    return found


def _memory(asked: Resources) -> dict[str, object]:
    found: dict[str, object] = {}
    hard, swap = asked.memory_limit_bytes, asked.swap_bytes
    if hard is not None:
        found["Memory"] = hard
        found["MemorySwap"] = min(_MOST, hard + (swap or 0))
    elif swap is not None:
        raise ConfigError(
            f"Resources.swap_bytes is {swap} without a memory limit: the engine limits memory and swap together"
        )
    if asked.memory_max_bytes is not None and asked.memory_bytes is not None:
        found["MemoryReservation"] = asked.memory_bytes
    return found


def _at_most(name: str, value: float, most: int) -> None:
    if value > most:
        raise ConfigError(f"Resources.{name} is {value}: it must be at most {most}, or None for no limit")


def _limits_of_processes(settings: DockerTaskConfig) -> dict[str, object]:
    found: dict[str, object] = {}
    if settings.ulimits:
        found["Ulimits"] = [_ulimit(name, text) for name, text in settings.ulimits.items()]
    if settings.init:
        found["Init"] = True
    if settings.sysctls:
        for name in settings.sysctls:
            if not _SYSCTL.fullmatch(name):
                raise ConfigError(f"driver_config.sysctls has the key {name!r}: use names like 'net.core.somaxconn'")
        found["Sysctls"] = dict(settings.sysctls)
    if settings.storage_opt:
        found["StorageOpt"] = dict(settings.storage_opt)
    return found


def _ulimit(name: str, text: str) -> dict[str, object]:
    path = f"driver_config.ulimits.{name}"
    if name not in _ULIMITS.split():
        raise ConfigError(f"{path} is no limit of processes: use one of {', '.join(_ULIMITS.split())}")
    first, colon, second = text.partition(":")
    soft = _limit(first)
    hard = _limit(second) if colon else soft
    if soft is None or hard is None:
        raise ConfigError(f"{path} is {text!r}: write SOFT or SOFT:HARD, each a number or 'unlimited'")
    if hard != -1 and not 0 <= soft <= hard:
        raise ConfigError(f"{path} is {text!r}: the soft limit must not be above the hard one")
    return {"Name": name, "Soft": soft, "Hard": hard}


def _limit(text: str) -> int | None:
    if text in ("unlimited", "-1"):
        return -1
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) > _MOST:
        return None
    return int(text)


def _namespaces(settings: DockerTaskConfig) -> dict[str, object]:
    found: dict[str, object] = {}
    for field, key, words in (
        ("pid_mode", "PidMode", ("host",)),
        ("ipc_mode", "IpcMode", ("none", "private", "shareable", "host")),
    ):
        value = getattr(settings, field)
        if not value:
            continue
        kind, _, name = value.partition(":")
        if value not in words and not (kind == "container" and _WORD.fullmatch(name)):
            use = ", ".join(repr(word) for word in words)
            raise ConfigError(f"driver_config.{field} is {value!r}: use {use} or 'container:NAME'")
        found[key] = value
    return found


def _runtime(name: str, info: EngineInfo | None) -> str:
    if info is not None and info.runtimes and name not in info.runtimes:
        known = ", ".join(info.runtimes)
        raise ConfigError(f"driver_config.runtime is {name!r}: the engine has {known}")
    return name


def _logs(task: TaskConfig, settings: DockerTaskConfig, info: EngineInfo | None) -> dict[str, object]:
    """The log driver; one that cannot be read back would lose output once the host was away."""
    name = settings.log_driver
    if task.stdout.kind != "discard" or task.stderr.kind != "discard":
        why = "output could not be read back from it after the host was away; use json-file, local or journald"
        if name not in _READABLE_LOGS:
            raise ConfigError(f"driver_config.log_driver is {name!r}: {why}, or discard stdout and stderr")
        if not name and info is not None and info.default_log_driver not in _READABLE_LOGS:
            raise ConfigError(
                f"driver_config.log_driver is not set, and the engine's own is {info.default_log_driver!r}: {why}"
            )
    if not name and not settings.log_options:
        return {}
    return {"LogConfig": {"Type": name, "Config": dict(settings.log_options)}}


def _labels(task: TaskConfig, settings: DockerTaskConfig, node: NodeInfo) -> dict[str, str]:
    for key in settings.labels:
        if key.startswith(LABEL) or not key:
            raise ConfigError(f"driver_config.labels has the key {key!r}: use one that does not begin with {LABEL!r}")
    ours = {  # also what is empty: the image may have labels of these names
        "task_id": task.id,
        "task_name": task.name,
        "job_id": task.job_id,
        "job": task.job_name,
        "group": task.group,
        "alloc_id": task.alloc_id,
        "namespace": task.namespace,
        "node_id": node.node_id,
        "host_id": node.host_id,
        **({"keep": "true"} if settings.keep else {}),
    }
    return {**settings.labels, **{f"{LABEL}{name}": value for name, value in ours.items()}}


def _check_text(value: object, path: str) -> None:
    """Refuse text that JSON cannot carry, before it arrives as another text; the value may be a secret."""
    if isinstance(value, str):
        if "\0" in value:
            raise ConfigError(f"the container's {path} has a NUL (value not shown)")
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ConfigError(f"the container's {path} is not text of UTF-8 (value not shown)") from exc
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_text(key, f"{path} names")
            _check_text(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_text(each, f"{path}[{index}]")
