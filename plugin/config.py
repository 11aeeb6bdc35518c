"""What a task is: command, surroundings, resources and end, checked when it is written down.

The driver's own part, ``driver_config``, is checked by the host against the driver's ``task_schema`` before the start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, Literal, TypeVar

from cameleer.errors import ConfigError

UNLIMITED: Final = -1
"""For ``Resources.memory_max_bytes``: no hard limit at all."""

_ID_LENGTH: Final = 512
_SIGNALS: Final = range(1, 65)
_INFINITY: Final = float("inf")

T = TypeVar("T")


@dataclass(frozen=True)
class Stdio:
    """Where one of a task's standard streams goes to or comes from.

    Use the constructors: :meth:`discard`, :meth:`inherit`, :meth:`file`, :meth:`fifo`, :meth:`fd`.

    :ivar kind: ``discard`` is ``/dev/null``; ``inherit`` is the stream of the process that holds the host.
    :ivar path: of a ``file`` (made with mode 0600 if absent, appended to) or a ``fifo`` (must exist). Output follows no
        symbolic link, nor does a ``fifo``.
    :ivar descriptor: an open descriptor of the caller, who keeps and closes it; the task gets a copy.
    """

    kind: Literal["discard", "inherit", "file", "fifo", "fd"] = "discard"
    path: str | None = None
    descriptor: int | None = None

    def __post_init__(self) -> None:
        _choice(self, "kind", "discard", "inherit", "file", "fifo", "fd")
        _text(self, "path")
        if (self.kind in ("file", "fifo")) != (self.path is not None):
            raise ConfigError(f"Stdio of kind {self.kind!r} with path {self.path!r}: a path belongs to file and fifo")
        if (self.kind == "fd") != (self.descriptor is not None):
            raise ConfigError(f"Stdio of kind {self.kind!r} with descriptor {self.descriptor!r}: it belongs to fd")
        _check(self, "descriptor", lambda value: value >= 0, "must be an open descriptor's number")

    @classmethod
    def discard(cls) -> Stdio:
        """``/dev/null``."""
        return cls()

    @classmethod
    def inherit(cls) -> Stdio:
        """The same stream of the process that holds the host."""
        return cls("inherit")

    @classmethod
    def file(cls, path: str | os.PathLike[str]) -> Stdio:
        """A file; output is appended."""
        return cls("file", path=os.fspath(path))

    @classmethod
    def fifo(cls, path: str | os.PathLike[str]) -> Stdio:
        """A FIFO that exists."""
        return cls("fifo", path=os.fspath(path))

    @classmethod
    def fd(cls, descriptor: int) -> Stdio:
        """An open descriptor of the caller's."""
        return cls("fd", descriptor=descriptor)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A path of the host that the task sees."""

    source: str
    target: str
    read_only: bool = False
    propagation: Literal["", "private", "host-to-task", "bidirectional"] = ""

    def __post_init__(self) -> None:
        _text(self, "source")
        _text(self, "target")
        _choice(self, "propagation", "", "private", "host-to-task", "bidirectional")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device of the host that the task may use; ``permissions`` is a subset of ``rwm``."""

    source: str
    target: str
    permissions: str = "rwm"

    def __post_init__(self) -> None:
        _text(self, "source")
        _text(self, "target")
        if not isinstance(self.permissions, str) or not self.permissions or set(self.permissions) - set("rwm"):
            raise ConfigError(f"Device.permissions is {self.permissions!r}: use letters of 'rwm'")


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port of the host that leads to the task; ``container_port`` None is the same number."""

    host_port: int
    container_port: int | None = None
    label: str = ""
    host_ip: str = ""
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"

    def __post_init__(self) -> None:
        for name in ("host_port", "container_port"):
            _check(self, name, lambda value: 0 <= value <= 65535, "must be a port, 0 to 65535")
        _choice(self, "protocol", "tcp", "udp", "sctp")


@dataclass(frozen=True, kw_only=True)
class Dns:
    """Name servers, search domains and options of the task's resolver."""

    servers: Sequence[str] = ()
    searches: Sequence[str] = ()
    options: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class NetworkIsolation:
    """Which network the task runs in; ``path`` is a network namespace to join in mode ``group``."""

    mode: Literal["host", "group", "task", "none"] = "host"
    path: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _choice(self, "mode", "host", "group", "task", "none")
        _text(self, "path")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a task may use. None is "not asked", so no limit is set.

    :ivar cpu_mhz: share of the processors asked for, in MHz; a weight, not a limit.
    :ivar cpu_quota_cores: hard limit of CPU time, in cores: 0.5 is half of one.
    :ivar cpuset_cpus: CPUs it may run on, as the kernel lists them: ``0-1,4``.
    :ivar memory_bytes: memory limit; soft if ``memory_max_bytes`` is given too.
    :ivar memory_max_bytes: hard memory limit, or :data:`UNLIMITED`; None: no second limit.
    :ivar swap_bytes: swap on top of memory.
    :ivar pids: processes and threads.
    :ivar io_weight: share of the disks, 10 to 1000.
    :ivar oom_score_adj: −1000 to 1000; higher is killed first.
    """

    cpu_mhz: int | None = None
    cpu_quota_cores: float | None = None
    cpuset_cpus: str | None = None
    memory_bytes: int | None = None
    memory_max_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    io_weight: int | None = None
    oom_score_adj: int | None = None

    def __post_init__(self) -> None:
        for name in ("cpu_mhz", "memory_bytes", "pids"):
            _check(self, name, lambda value: value > 0, "must be a whole number above 0, or None for no limit")
        _check(self, "cpu_quota_cores", lambda value: value > 0, "must be above 0, or None for no limit", float)
        if self.cpuset_cpus is not None and not _is_cpu_list(self.cpuset_cpus):
            raise ConfigError(f"Resources.cpuset_cpus is {self.cpuset_cpus!r}: list CPUs as in '0-1,4'")
        _check(self, "memory_max_bytes", lambda value: value > 0 or value == UNLIMITED, "must be above 0 or UNLIMITED")
        _check(self, "swap_bytes", lambda value: value >= 0, "must not be negative")
        _check(self, "io_weight", lambda value: 10 <= value <= 1000, "must be 10 to 1000")
        _check(self, "oom_score_adj", lambda value: -1000 <= value <= 1000, "must be -1000 to 1000")
        maximum = self.memory_max_bytes
        if maximum is not None and maximum != UNLIMITED and self.memory_bytes and maximum < self.memory_bytes:
            raise ConfigError(
                f"Resources.memory_max_bytes is {maximum}: it must not be below memory_bytes, {self.memory_bytes}"
            )

    @property
    def memory_limit_bytes(self) -> int | None:
        """The hard memory limit; None without one."""
        if self.memory_max_bytes is None:
            return self.memory_bytes
        return None if self.memory_max_bytes == UNLIMITED else self.memory_max_bytes


def _is_cpu_list(text: object) -> bool:
    if not isinstance(text, str):
        return False
    ends = [part.split("-") for part in text.split(",")]
    return all(
        len(pair) <= 2 and all(each.isascii() and each.isdigit() for each in pair) and int(pair[0]) <= int(pair[-1])
        for pair in ends
    )


def _check(owner: object, name: str, good: Callable[[Any], bool], rule: str, kind: type[int | float] = int) -> None:
    """Check a number; None is "not asked". A whole number will do where a ``float`` is meant, a truth value never."""
    value = getattr(owner, name)
    if value is None:
        return
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not -_INFINITY < value < _INFINITY or not good(value):
        raise ConfigError(f"{type(owner).__name__}.{name} is {value!r}: it {rule}")


def _choice(owner: object, name: str, *choices: str) -> None:
    value = getattr(owner, name)
    if value not in choices:
        use = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{type(owner).__name__}.{name} is {value!r}: use one of {use}")


def _text(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise ConfigError(f"{type(owner).__name__}.{name} is {value!r}: it must be text without NUL")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Everything a driver needs to start a task. Checked when it is made: every error names the field and its value.

    Identity

    :ivar id: unique among the host's tasks; made up if empty.
    :ivar name: short name; the command's own if empty.
    :ivar meta: free text of the orchestrator's.

    What

    :ivar command: program to run, looked up in the ``PATH`` of ``env``; empty: the image's own.
    :ivar args: its arguments; never read by a shell.
    :ivar env: the complete environment; nothing is inherited unless the caller puts it here.
    :ivar cwd: working directory; None: the driver's default.
    :ivar user: user to run as; None: the host's own.
    :ivar terminal: ``none``: a session of its own; ``inherit``: the caller's session and process group, as a command
        in a shell; ``pty``: a session whose terminal is ``stdin``; a container's is its own, and ``stdin`` and
        ``stdout`` are connected with it.

    Surroundings

    :ivar cgroup_path: a group that the orchestrator made: joined and measured, never removed.

    End

    :ivar timeout_s: seconds after the start at which the host kills it; None: never.
    :ivar kill_signal: first signal of a stop; None: the driver's default.
    :ivar kill_timeout_s: seconds between that signal and SIGKILL.
    :ivar leave_rest: leave processes alone that outlive the command.

    Driver

    :ivar driver_config: the driver's own settings for this task, see its ``task_schema``.
    """

    id: str = ""
    name: str = ""
    job_id: str = ""
    job_name: str = ""
    group: str = ""
    namespace: str = ""
    alloc_id: str = ""
    node_id: str = ""
    node_name: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)

    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    user: str | None = None
    image: str | None = None
    stdin: Stdio = field(default_factory=Stdio)
    stdout: Stdio = field(default_factory=Stdio)
    stderr: Stdio = field(default_factory=Stdio)
    terminal: Literal["none", "inherit", "pty"] = "none"

    alloc_dir: str | None = None
    task_dir: str | None = None
    mounts: Sequence[Mount] = ()
    devices: Sequence[Device] = ()
    device_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    ports: Sequence[Port] = ()
    dns: Dns | None = None
    network_isolation: NetworkIsolation | None = None
    cgroup_path: str | None = None

    resources: Resources = Resources()

    timeout_s: float | None = None
    kill_signal: int | None = None
    kill_timeout_s: float = 5.0
    leave_rest: bool = False

    driver_config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._check_kinds()
        self._fill_in()
        self._check_identity()
        self._check_words()
        _choice(self, "terminal", "none", "inherit", "pty")
        _check(self, "timeout_s", lambda value: value > 0, "must be above 0 seconds, or None for no timeout", float)
        _check(self, "kill_timeout_s", lambda value: value >= 0, "must be 0 seconds or more", float)
        _check(self, "kill_signal", lambda value: value in _SIGNALS, "must be a signal number, 1 to 64")

    def _check_kinds(self) -> None:
        for names, kind, rule in (
            (("meta", "env", "device_env", "driver_config"), Mapping, "a map"),
            (("stdin", "stdout", "stderr"), Stdio, "a Stdio"),
            (("resources",), Resources, "a Resources"),
            (("dns",), (Dns, NoneType), "a Dns"),
            (("network_isolation",), (NetworkIsolation, NoneType), "a NetworkIsolation"),
            (("leave_rest",), bool, "true or false"),
            (("kill_timeout_s",), (int, float), "0 seconds or more"),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind):
                    shown = type(value).__name__ if name in ("env", "device_env", "driver_config") else repr(value)
                    raise ConfigError(f"TaskConfig.{name} is {shown}: it must be {rule}")

    def _fill_in(self) -> None:
        for name, kind in (("args", str), ("mounts", Mount), ("devices", Device), ("ports", Port)):
            value = getattr(self, name)
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
                raise ConfigError(f"TaskConfig.{name} is {value!r}: it must be a list")
            items = tuple(value)
            for position, each in enumerate(items):
                if not isinstance(each, kind):
                    raise ConfigError(f"TaskConfig.{name}[{position}] is {each!r}: it must be a {kind.__name__}")
            object.__setattr__(self, name, items)
        for name in ("meta", "env", "device_env", "driver_config"):
            object.__setattr__(self, name, dict(getattr(self, name)))  # the caller's own may change later
        if not self.id:
            object.__setattr__(self, "id", os.urandom(8).hex())
        if not self.name and isinstance(self.command, str):
            name = "".join(each if each.isprintable() else "?" for each in os.path.basename(self.command))
            object.__setattr__(self, "name", name[:_ID_LENGTH] or "task")

    def _check_identity(self) -> None:
        for name in (
            "id", "name", "job_id", "job_name", "group", "namespace", "alloc_id", "node_id", "node_name"
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _ID_LENGTH or not value.isprintable():
                raise ConfigError(
                    f"TaskConfig.{name} is {value!r}: it must be printable text of at most {_ID_LENGTH} characters"
                )

    def _check_words(self) -> None:
        for name in ("command", "cwd", "user", "image", "cgroup_path", "alloc_dir", "task_dir"):
            _text(self, name)
        for position, arg in enumerate(self.args):
            if "\0" in arg:
                raise ConfigError(f"TaskConfig.args[{position}] is {arg!r}: it must be text without NUL")
        for field_name in ("env", "device_env"):
            for key, value in getattr(self, field_name).items():
                if not isinstance(key, str) or not key or "=" in key or "\0" in key:
                    raise ConfigError(
                        f"TaskConfig.{field_name} has the name {key!r}: it must be text without '=' and NUL"
                    )
                if not isinstance(value, str) or "\0" in value:  # the value may be a secret: not shown
                    raise ConfigError(f"TaskConfig.{field_name}[{key!r}] is not text without NUL (value not shown)")
        for key, value in self.meta.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ConfigError(f"TaskConfig.meta[{key!r}] is {value!r}: names and values must be text")

    @property
    def whole_env(self) -> Mapping[str, str]:
        """What the task's environment is: what devices bring, and ``env``, which counts where both say something."""
        return {**self.device_env, **self.env}

    def settings(self, schema: type[T]) -> T:
        """``driver_config`` as the driver's own type.

        :raises ConfigError: a value does not fit; names its path, the value and, for an unknown key, the nearest one.
        """
        from cameleer.schema import decode

        return decode(schema, self.driver_config, "driver_config")
