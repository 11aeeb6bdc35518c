"""``cameleer run``: run a command as ``time`` does, and say truly what it used."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from cameleer.cli.console import say, show_log, write
from cameleer.cli.noview import NoView
from cameleer.cli.options import (
    PLUGIN_GROUP,
    Command,
    Group,
    Option,
    UsageError,
    names,
    parser_of,
    plain,
    split,
)
from cameleer.cli.units import parse_duration, parse_size
from cameleer.errors import (
    CommandNotExecutable,
    CommandNotFound,
    ConfigError,
    DriverError,
    PluginError,
)
from cameleer.status import ExitResult, FinalStatus
from cameleer.task import Task

if TYPE_CHECKING:
    from argparse import Namespace
    from contextlib import AbstractContextManager

    from cameleer.cli.output import Readings
    from cameleer.cli.terminal import Terminal
    from cameleer.config import TaskConfig
    from cameleer.host import Host
    from cameleer.opened import OpenDriver
    from cameleer.usage import TaskResourceUsage

TIMED_OUT, FAILED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{text!r} is no number above 0")
    return value


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"{text!r} is no whole number above 0")
    return int(text)


def _size(text: str) -> int:
    value = parse_size(text)
    if value <= 0:
        raise ConfigError(f"{text!r}: the limit must be above 0")
    return value


def _time(text: str) -> float:
    value = parse_duration(text)
    if value <= 0:
        raise ConfigError(f"{text!r}: it must be above 0")
    return value


def _interval(text: str) -> float:
    value = parse_duration(text)
    if not 0.01 <= value <= 86400:
        raise ConfigError(f"{text!r}: an interval is 10 ms to 24 h")
    return value


def _volume(text: str) -> object:
    from cameleer.cli.containers import volume

    return volume(text)


def _port(text: str) -> object:
    from cameleer.cli.containers import port

    return port(text)


def _policy(text: str) -> str:
    from cameleer.cli.containers import PULL_POLICIES

    if text not in PULL_POLICIES:
        raise ConfigError(f"{text!r}: use {', '.join(PULL_POLICIES)}")
    return text


INTERVAL = Option("--interval", "SECONDS", "time between two readings (0.5, 200ms, 2m)", _interval)
STATS_OUT = Option(
    "--stats-out", "FILE", "write one JSON object per reading; - is stdout, fd:N a descriptor", complete="file"
)
JSON_OUT = Option(
    "--json", "FILE", "write the summary as one JSON object; - is stdout, fd:N a descriptor", complete="file"
)
CONFIG = Option(
    "--config",
    "FILE",
    "TOML configuration of the host; also loads the hook plugins that are installed",
    complete="file",
)
PLUGIN = Option(
    "--plugin",
    "FILE|MODULE",
    "load drivers and hook plugins from a Python file or module",
    repeat=True,
    complete="file",
)
QUIET = Option("--quiet", "", "no summary, and no live view by itself")

COMMAND = Command(
    name="run",
    help="run a command, show what it used",
    synopsis="[OPTION]… [--] COMMAND [ARG]…\n       cameleer run --image IMAGE [OPTION]… [--] [COMMAND [ARG]…]",
    description="""\
Run a command and show what it used: CPU, memory, IO, page faults, context switches, of the whole tree of processes.
The first word that is no option begins the command; all that follows is its own.

It behaves as `time` does: the command gets the environment, the folder, stdin, stdout and stderr of the caller,
untouched, and on a terminal the caller's process group, so Ctrl-C, Ctrl-Z, pagers and password prompts work as without
cameleer. The summary goes to stderr. SIGTERM is passed on to the command, a second one kills it.""",
    epilog="""\
sizes are bytes, or k, m, g with or without B or iB, powers of 1024: 512m, 1.5GiB.
Without --interval it is measured after 0, 50, 100 and 200 ms, then every 0.2 s, after a minute every second.

exit status:
  that of the command; 128+N where signal N killed it
  124  it ran into --timeout          125  cameleer itself failed        2  wrong usage
  126  it cannot be executed          127  it was not found

examples:
  cameleer run make -j4
  cameleer run --timeout 10m --json usage.json -- ./job --fast
  cameleer run --live python3 train.py
  cameleer run sort <in >out
  cameleer run --stats-out readings.jsonl --interval 0.1 ./job | less
  cameleer run --image debian:12 -v .:/work --cwd /work --memory 1g make

see also: cameleer watch --help, cameleer drivers --help""",
    groups=(
        Group(
            "the command",
            (
                Option(
                    "--driver",
                    "NAME",
                    "how it is run: raw_exec (default; exec where a limit is asked), or another of `cameleer drivers`",
                    complete="driver",
                ),
                Option("--user", "NAME", "run it as this user", complete="user"),
                Option("--cwd", "DIR", "run it in this folder", complete="directory"),
                Option("--env", "K=V", "set a variable of its environment; K alone takes the caller's", repeat=True),
                Option("--clean-env", "", "pass on nothing of the caller's environment but what --env names"),
                Option(
                    "--set", "KEY=VALUE", "a setting of the driver's for this task; KEY may be a path: a.b", repeat=True
                ),
                Option(
                    "--timeout", "SECONDS", "end it after this time (90, 500ms, 2m): SIGTERM, 5 s later SIGKILL", _time
                ),
                Option("--kill-rest", "", "end what it leaves running; else that is named and left alone"),
            ),
        ),
        Group(
            "containers",
            (
                Option(
                    "--image",
                    "IMAGE",
                    "run it in a container of this image, which is removed at the end; implies --driver docker; "
                    "without a command it runs the image's own",
                ),
                Option(
                    "--volume",
                    "SRC:DST[:ro]",
                    "show it the folder or file SRC as DST; a SRC without a slash is a named volume",
                    _volume,
                    repeat=True,
                    complete="file",
                    short="-v",
                ),
                Option(
                    "--publish",
                    "[IP:]HOST:CONTAINER[/udp]",
                    "lead a port of this machine to it, from this machine alone unless another IP is given: 0.0.0.0 is "
                    "from everywhere",
                    _port,
                    repeat=True,
                    short="-p",
                ),
                Option("--network", "MODE", "its network: none, host, bridge, container:NAME, or a network's name"),
                Option("--pull", "POLICY", "when the image is pulled: missing (default), always, never", _policy),
                Option("--keep", "", "leave the container at the end, and say its name"),
            ),
        ),
        Group(
            "limits",
            (
                Option("--memory", "SIZE", "memory it may use (512m, 2g)", _size),
                Option("--cpu-mhz", "MHZ", "share of the processors when they are short, in MHz", _whole),
                Option("--cpus", "CORES", "CPU time it may use, in cores: 0.5 is half of one", _positive),
                Option("--pids", "N", "processes and threads it may have", _whole),
            ),
        ),
        Group(
            "measuring",
            (
                INTERVAL,
                Option("--live", "", "show a live view; by itself it comes where the output goes to files only"),
                QUIET,
                STATS_OUT,
                JSON_OUT,
            ),
        ),
        Group("configuration and plugins", (CONFIG, PLUGIN, *PLUGIN_GROUP.options)),
    ),
    takes_command=True,
)

_LIMITS = {"--memory": "memory_bytes", "--cpu-mhz": "cpu_mhz", "--cpus": "cpu_quota_cores", "--pids": "pids"}
_HONOURED = {
    **_LIMITS,
    "--user": "user",
    "--image": "image",
    "--volume": "mounts",
    "--publish": "ports",
    "--network": "driver_config.network_mode",
    "--pull": "driver_config.pull_policy",
    "--keep": "driver_config.keep",
}
_FOR_EVER = "87600h"
_OF_CONTAINERS = frozenset({"--image", "--publish", "--network", "--pull", "--keep"})


def main(argv: Sequence[str]) -> int:
    """Run ``cameleer run``."""
    own, command = split(COMMAND, argv)
    options = parser_of(COMMAND).parse_args(plain(own))
    if not (command or options.image) or (command and not command[0]):
        raise UsageError("cameleer run needs a command; see cameleer run --help")
    import asyncio

    return asyncio.run(_start(options, command))


async def _start(options: Namespace, command: list[str]) -> int:
    show_log()
    return await _Run(options, command).run()


class _Run:
    """One run: what is open meanwhile, and the steps from the start to the summary."""

    def __init__(self, options: Namespace, command: list[str]) -> None:
        from cameleer.cli.signals import Signals
        from cameleer.cli.terminal import Terminal

        self.options = options
        self.command = command
        self.title = command or [options.image]
        self.terminal = Terminal.controlling()
        self.signals = Signals(ours=self.terminal is None)
        self.live: NoView = NoView()
        self.readings: Readings | None = None

    async def run(self) -> int:
        """Run the command and return our exit status."""
        options = self.options
        json_fd: int | None = None
        if options.json or options.stats_out:
            from cameleer.cli.output import Readings, open_output

            json_fd = open_output(options.json, "--json") if options.json else None
            self.readings = Readings(options.stats_out) if options.stats_out else None
        try:
            with self.signals:
                result, code = await self._measure()
        finally:
            await self.live.close()
            if self.readings is not None:
                self.readings.close()
            if self.terminal is not None:
                _restore(self.terminal)
        if json_fd is not None:
            write_json(json_fd, options.json, result)
        return code

    def _view(self, *, container: bool) -> NoView:
        """The live view; what draws is imported only where something may be drawn."""
        terminal, options = self.terminal, self.options
        if container and terminal is not None and not options.live:
            from cameleer.cli.through import Through, leads_to

            if leads_to(terminal):
                return Through(terminal)
        if not options.live and (terminal is None or options.quiet or terminal.is_at(1) or terminal.is_at(2)):
            return NoView()
        from cameleer.cli.live import choose

        return choose(terminal, asked=options.live, quiet=options.quiet, container=container)

    async def _measure(self) -> tuple[ExitResult, int]:
        """Start the command, follow it, sum it up; the result and our exit status."""
        from cameleer.host import Host

        options = self.options
        name = options.driver or _default_driver(options)
        async with Host(_settings(options), plugins=loaded_plugins(options.plugin)) as host:
            started = await self._start(host, name)
            if not isinstance(started, Task):
                return started
            result = await self._follow(started)
            await self.live.close()
            if not options.quiet:
                from cameleer.cli.summary import lines

                write("\n".join(lines(result, self.title, started.info.config.resources)) + "\n")
            if options.keep:
                from cameleer.cli.containers import tell_kept

                await tell_kept(started)
            await _end(started)
        return result, _status(result)

    async def _start(self, host: Host, name: str) -> Task | tuple[ExitResult, int]:
        """Start the task; without one, the record of that and our exit status."""
        import asyncio

        starter = asyncio.current_task()
        assert starter is not None
        self.signals.starting(starter)
        task_id = os.urandom(8).hex()
        try:
            driver = await _driver(host, name, by_image=self.options.driver is None)
            if name == "exec" and self.options.driver is None:
                await _check_healthy(driver, self.options)
            container = _has_images(driver)
            self.live = self._view(container=container)
            config = self._config(task_id, driver)
            task = await (self._start_container(host, driver, config) if container else host.start(config, name))
        except (ConfigError, PluginError):
            raise
        except DriverError as exc:
            say(str(exc) or type(exc).__name__)
            code = (
                NOT_FOUND
                if isinstance(exc, CommandNotFound)
                else NOT_EXECUTABLE
                if isinstance(exc, CommandNotExecutable)
                else FAILED
            )
            return _not_started(task_id, name, code, exc), code
        except asyncio.CancelledError:
            if self.signals.ended_by is None:
                raise
            starter.uncancel()
            code = 128 + self.signals.ended_by
            return _not_started(task_id, name, code, InterruptedError("interrupted before the command ran")), code
        self.signals.started(task, self.live)
        if not gc.isenabled():  # see main: all is imported now
            gc.freeze()
            gc.enable()
        return task

    async def _start_container(self, host: Host, driver: OpenDriver, config: TaskConfig) -> Task:
        """Start it, and show meanwhile how far the pull of its image is."""
        from cameleer.cli.containers import Progress

        self.signals.for_container()
        self.live.starting()
        async with Progress(driver, config.id):
            return await host.start(config, driver.name)

    def _config(self, task_id: str, driver: OpenDriver) -> TaskConfig:
        from cameleer.config import Stdio

        terminal, container = self.terminal, _has_images(driver)
        streams: dict[str, Any] = {name: Stdio.inherit() for name in ("stdin", "stdout", "stderr")}
        streams["terminal"] = "none" if terminal is None or container else "inherit"
        if container and terminal is not None and terminal.is_at(0) and not terminal.foreground:
            streams["stdin"] = Stdio.discard()  # a job in the background that reads the terminal is stopped
        streams.update(self.live.task_fields())
        return _task(task_id, self.options, self.command, driver, streams)

    async def _follow(self, task: Task) -> ExitResult:
        import asyncio

        from cameleer.cli.follow import follow

        ended = asyncio.ensure_future(task.wait())
        view, readings = self.live.begin(task, self.title), self.readings

        def use(reading: TaskResourceUsage) -> None:
            if view is not None:
                view.add(reading)
            if readings is not None:
                readings.add(task.id, reading)

        with self._ended_without_reader(task):
            await follow(task, self.options.interval, ended, use)
            return await ended

    def _ended_without_reader(self, task: Task) -> AbstractContextManager[None]:
        """A command hears by SIGPIPE that nobody reads its output any more; a container would write on for ever."""
        if not self.options.image:
            return nullcontext()
        from cameleer.cli.containers import ended_without_reader

        return ended_without_reader(task)


async def _end(task: Task) -> None:
    """Free the task; what it left running stays or goes as its config says."""
    try:
        await task.destroy()
    except DriverError as exc:
        say(f"cannot clean up after the command: {exc}")


def _status(result: ExitResult) -> int:
    if result.status == "timeout":
        return TIMED_OUT
    if result.exit_code is None:
        return FAILED
    return result.exit_code & 0xFF


def _not_started(task_id: str, driver: str, code: int, exc: Exception) -> ExitResult:
    """The record of a command that never ran, for ``--json``."""
    return ExitResult(
        task_id=task_id, driver=driver, status=FinalStatus.ERROR, exit_code=code, error=str(exc) or repr(exc)
    )


def write_json(fd: int, target: str, result: ExitResult) -> None:
    """Write the summary as one JSON object on a line of its own; one that cannot be written is told."""
    from cameleer.cli.output import as_json
    from cameleer.cli.summary import record

    data = as_json(record(result)) + b"\n"
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as exc:
        say(f"--json {target}: {exc.strerror}")


def _restore(terminal: Terminal) -> None:
    """Give the terminal back as it was, unless a pager at the other end of a pipe has it now."""
    from cameleer.cli.terminal import is_pipe

    if not is_pipe(1) and not is_pipe(2):
        terminal.restore()
    terminal.close()


# what the options ask for


def _settings(options: Namespace) -> Mapping[str, Any]:
    """The host's configuration: embedded defaults, or the file of ``--config`` with what the options add."""
    settings: dict[str, Any] = {}
    plugins: dict[str, Any] = {"hooks": []}
    if options.config:
        from cameleer.settings import load

        settings = dict(load(options.config))
        plugins = dict(settings.get("plugins", {}))
    disabled = names(options.no_plugins)
    if disabled is True:
        plugins["disabled"] = True
    elif disabled and plugins.get("disabled") is not True:
        plugins["disabled"] = [*plugins.get("disabled", ()), *disabled]
    drivers = dict(settings.get("drivers", {}))
    drivers["raw_exec"] = {"memory": "pss", "leave_group": True, **drivers.get("raw_exec", {})}
    drivers["exec"] = {"leave_group": True, **drivers.get("exec", {})}
    # who asks is who could ask the engine itself; a reader that lives gets everything, as it does of a process
    of_docker = {"allow_caps": ["all"], "allow_privileged": True, "output_patience": _FOR_EVER}
    drivers["docker"] = {**of_docker, **drivers.get("docker", {})}
    return {**settings, "plugins": plugins, "drivers": drivers}


def loaded_plugins(specs: Sequence[str] | None) -> list[object]:
    """Load what ``--plugin`` names."""
    found: list[object] = []
    if specs:
        from cameleer.plugins import load_file_or_module

        for spec in specs:
            found += load_file_or_module(spec)
    return found


def _given(options: Namespace, flag: str) -> bool:
    return getattr(options, flag.lstrip("-").replace("-", "_")) not in (None, False)


def _limits(options: Namespace) -> list[str]:
    """The limits that are asked for."""
    return [flag for flag in _LIMITS if _given(options, flag)]


def _default_driver(options: Namespace) -> str:
    """``raw_exec``, which needs nothing, unless something is asked for that only another can do."""
    if options.image:
        return "docker"
    return "exec" if _limits(options) else "raw_exec"


async def _check_healthy(driver: OpenDriver, options: Namespace) -> None:
    """Say why a limit cannot be held here, and what would help.

    :raises RecoverableError: the driver that would hold it is not healthy.
    """
    from cameleer.errors import RecoverableError

    found = await driver.health()
    if found.health != "healthy":
        asked = " and ".join(_limits(options))
        raise RecoverableError(f"{asked}: only the driver {driver.name} holds this, and {found.description}")


async def _driver(host: Host, name: str, *, by_image: bool) -> OpenDriver:
    """Open the driver; a name that nobody has is a wrong command line.

    :param by_image: ``--image`` asked for it.
    """
    try:
        return await host.driver(name)
    except PluginError as exc:
        if any(refused.name == name for refused in host.refused):
            raise
        from cameleer.plugins import MissingExtra

        if by_image and not isinstance(exc, MissingExtra):
            raise UsageError(f"--image needs the driver {name}, and it is not installed here") from exc
        raise UsageError(f"{'--image' if by_image else '--driver'}: {exc}") from exc


def _task(
    task_id: str, options: Namespace, command: Sequence[str], driver: OpenDriver, streams: Mapping[str, Any]
) -> TaskConfig:
    from cameleer.config import Resources, TaskConfig

    _check_honoured(options, driver)
    own_files = _has_images(driver)
    more: dict[str, Any] = {"driver_config": driver_config(options.set or [])}
    if own_files or options.volume:
        from cameleer.cli.containers import fields

        more = fields(options, more["driver_config"], driver)
    return TaskConfig(
        id=task_id,
        name=_name(options, command),
        command=command[0] if command else "",
        args=command[1:],
        env=_environment(options, own_files=own_files),
        cwd=_folder(options, own_files=own_files),
        user=options.user,
        image=options.image,
        resources=Resources(
            memory_bytes=options.memory,
            cpu_mhz=options.cpu_mhz,
            cpu_quota_cores=options.cpus,
            pids=options.pids,
        ),
        timeout_s=options.timeout,
        kill_signal=None if own_files else 15,  # as timeout(1); an image knows its own
        leave_rest=not options.kill_rest and not own_files,  # nothing outlives a container's first process
        **more,
        **streams,
    )


def _has_images(driver: OpenDriver) -> bool:
    """Whether its tasks are containers, with the files of an image."""
    return driver.capabilities.fs_isolation == "image"


def _name(options: Namespace, command: Sequence[str]) -> str:
    """The task's name; empty: the command's."""
    if command:
        return ""
    from cameleer.cli.containers import name_of

    return name_of(options.image)


def _check_honoured(options: Namespace, driver: OpenDriver) -> None:
    for flag, field in _HONOURED.items():
        if not _given(options, flag) or field in driver.capabilities.honours:
            continue
        from cameleer.cli.capable import acts_upon, who_can

        if acts_upon(driver.cls, field):
            continue
        what = "holds no such limit" if flag in _LIMITS else "has no use for it"
        known = ("docker",) if flag in _OF_CONTAINERS else ("exec", "docker")
        raise UsageError(f"{flag}: the driver {driver.name} {what}; {who_can(field, known, names(options.no_plugins))}")


def _folder(options: Namespace, *, own_files: bool) -> str | None:
    asked: str | None = options.cwd
    if own_files:
        return asked
    if asked is None:
        try:
            return os.getcwd()
        except OSError as exc:
            raise UsageError(f"the current folder is gone ({exc.strerror}): name another with --cwd") from exc
    if not os.path.isdir(asked):
        raise UsageError(f"--cwd {asked}: there is no such folder")
    return os.path.abspath(asked)


def _environment(options: Namespace, *, own_files: bool) -> dict[str, str]:
    """The caller's environment, but for containers and ``--clean-env``; then what ``--env`` names."""
    env = {} if options.clean_env or own_files else dict(os.environ)
    for word in options.env or []:
        key, equals, value = word.partition("=")
        if not key:
            raise UsageError(f"--env {word}: write NAME=VALUE, or NAME to pass on the caller's")
        if equals:
            env[key] = value
        elif key in os.environ:
            env[key] = os.environ[key]
        else:
            env.pop(key, None)
    return env


def driver_config(words: Sequence[str]) -> dict[str, Any]:
    """The driver's settings of ``--set``: paths with dots; a key given twice is a list, as is ``[1, 2]``."""
    settings: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UsageError(f"--set {word}: write KEY=VALUE")
        block = settings
        for key in keys[:-1]:
            inner = block.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {word}: {key} has a value already, and cannot hold settings too")
            block = inner
        value = _value(text)
        if keys[-1] in block:
            before = block[keys[-1]]
            value = [*before, value] if isinstance(before, list) else [before, value]
        block[keys[-1]] = value
    return settings


def _value(text: str) -> Any:
    """Text, which a schema reads as the number or truth that it wants; JSON where it looks like a list or map."""
    if text[:1] in ("[", "{"):
        import msgspec

        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as exc:
            raise UsageError(f"--set: {text} begins like JSON and is none: {exc}") from exc
    return text
