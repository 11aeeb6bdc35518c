"""``cameleer watch``: measure what is already running, until it ends or Ctrl-C."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cameleer.cli.console import say, show_log, write
from cameleer.cli.options import PLUGIN_GROUP, Command, Group, Option, UsageError, names, parser_of, plain
from cameleer.cli.run import INTERVAL, JSON_OUT, STATS_OUT
from cameleer.errors import DriverError
from cameleer.runusage import RunAccount
from cameleer.status import ExitResult, FinalStatus

if TYPE_CHECKING:
    import asyncio
    from argparse import Namespace

    from cameleer.cli.output import Readings
    from cameleer.cli.view import View
    from cameleer.host import Host
    from cameleer.task import Task
    from cameleer.usage import RunUsage, TaskResourceUsage

NO_SUCH = 1

_INTERVAL_S = 1.0

COMMAND = Command(
    name="watch",
    help="measure processes that are already running",
    synopsis="[OPTION]… PID|cgroup:/PATH|docker:NAME…",
    description="""\
Measure processes that somebody else started, each with all that descends from it, until they end or until Ctrl-C; or
control groups, or containers, by name or id. They are never signalled or changed. What is told covers the time of
watching only.""",
    epilog="""\
exit status: 0 watched to the end or to Ctrl-C; 1 one is not there, or may not be measured; 2 wrong usage.

examples:
  cameleer watch 4711
  cameleer watch docker:web docker:db
  cameleer watch --stats-out readings.jsonl --interval 5 $(pgrep postgres)""",
    groups=(
        Group(
            "measuring",
            (
                INTERVAL,
                Option("--quiet", "", "no summary and no live view"),
                STATS_OUT,
                JSON_OUT,
            ),
        ),
        PLUGIN_GROUP,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run ``cameleer watch``."""
    import asyncio

    parser = parser_of(COMMAND)
    parser.add_argument(
        "refs", nargs="*", metavar="PID|cgroup:/PATH|docker:NAME", help="process id, control group, or container"
    )
    options = parser.parse_args(plain(argv))
    if not options.refs:
        raise UsageError("cameleer watch needs the id of a process; see cameleer watch --help")
    for ref in options.refs:
        if _driver(ref) is None:
            raise UsageError(
                f"{ref!r} is no process id: write a whole number above 0, cgroup:/path, or docker:name for a container"
            )
    show_log()
    return asyncio.run(_watch(options, list(dict.fromkeys(options.refs))))


def _driver(ref: str) -> str | None:
    """The driver that measures it; None: it names nothing."""
    if ref.isascii() and ref.isdigit() and int(ref) > 0:
        return "raw_exec"
    if ref.startswith("cgroup:/"):
        return "exec"
    return "docker" if ref.removeprefix("docker:") not in ("", ref) else None


class Watched:
    """One that is watched, and what it used meanwhile.

    :ivar ref: as it was asked for.
    """

    def __init__(self, ref: str, task: Task) -> None:
        self.ref = ref
        self.task = task
        self.account = RunAccount()
        self.first: TaskResourceUsage | None = None
        self.last: TaskResourceUsage | None = None
        self.started_ns = time.time_ns()
        self.ended_ns: int | None = None

    def add(self, reading: TaskResourceUsage) -> None:
        """Take in a reading."""
        self.first = self.first or reading
        self.last = reading
        self.account.add(reading)

    def result(self) -> ExitResult:
        """Sum up the time of watching, in the form of a run that somebody else ends."""
        return ExitResult(
            task_id=self.ref,
            driver=self.task.info.driver,
            status=FinalStatus.SUCCESS,
            exit_code=None,
            started_at_ns=self.started_ns,
            ended_at_ns=self.ended_ns or time.time_ns(),
            usage=self._usage(),
        )

    def _usage(self) -> RunUsage:
        """The counters' gain since the first reading; peaks as the readings show them."""
        import dataclasses

        first, last = self.first, self.last
        wall_ns = (self.ended_ns or time.time_ns()) - self.started_ns
        usage = self.account.summary(None, self.task.info.config.resources, wall_ns, since_recovery=False)
        if first is None or last is None:
            return usage
        total = _gain(first.cpu.total_ns, last.cpu.total_ns)
        span_ns = last.at_ns - first.at_ns
        return dataclasses.replace(
            usage,
            cpu_total_ns=total,
            cpu_user_ns=_gain(first.cpu.user_ns, last.cpu.user_ns),
            cpu_system_ns=_gain(first.cpu.system_ns, last.cpu.system_ns),
            cpu_percent_average=total * 100 / span_ns if total is not None and span_ns > 0 else None,
            minor_faults=_gain(first.memory.minor_faults, last.memory.minor_faults),
            major_faults=_gain(first.memory.major_faults, last.memory.major_faults),
            io_read_bytes=_gain(first.io.read_bytes, last.io.read_bytes),
            io_write_bytes=_gain(first.io.write_bytes, last.io.write_bytes),
            voluntary_switches=_gain(first.processes.voluntary_switches, last.processes.voluntary_switches),
            involuntary_switches=_gain(first.processes.involuntary_switches, last.processes.involuntary_switches),
        )


def _gain(first: int | None, last: int | None) -> int | None:
    return last - first if first is not None and last is not None and last >= first else None


async def _watch(options: Namespace, refs: list[str]) -> int:
    import asyncio

    from cameleer.cli.output import Readings, open_output
    from cameleer.host import Host

    json_fd = open_output(options.json, "--json") if options.json else None
    readings = Readings(options.stats_out) if options.stats_out else None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    settings = {
        "plugins": {"hooks": [], "disabled": names(options.no_plugins)},
        "drivers": {"raw_exec": {"memory": "pss"}},
    }
    async with Host(settings) as host:
        watched = [each for ref in refs if (each := await _attach(host, ref)) is not None]
        if watched:
            await _follow_all(watched, options, readings, stop)
    if readings is not None:
        readings.close()
    _tell(watched, options, json_fd)
    return 0 if len(watched) == len(refs) else NO_SUCH


def _title(ref: str) -> str:
    return f"pid {ref}" if ref.isdigit() else ref


async def _attach(host: Host, ref: str) -> Watched | None:
    driver = _driver(ref)
    assert driver is not None  # main has looked
    try:
        return Watched(ref, await host.attach(ref, driver))
    except DriverError as exc:
        say(f"cannot watch {ref}: {exc}")
        return None


async def _follow_all(
    watched: list[Watched], options: Namespace, readings: Readings | None, stop: asyncio.Event
) -> None:
    import asyncio

    from cameleer.cli.live import choose
    from cameleer.cli.terminal import Terminal

    gc.enable()  # main has disabled it for the imports
    terminal = Terminal.controlling()
    live = choose(terminal, asked=False, quiet=options.quiet or len(watched) > 1, task_writes=False)
    view = live.begin(watched[0].task, [_title(watched[0].ref), watched[0].task.info.name])
    loop = asyncio.get_running_loop()
    if live.drawn:
        for signum in (signal.SIGCONT, signal.SIGWINCH):
            loop.add_signal_handler(signum, live.signal, signum)
    following: list[asyncio.Task[Any]] = [
        loop.create_task(_follow(each, options.interval, view, readings)) for each in watched
    ]
    stopped: asyncio.Task[Any] = loop.create_task(stop.wait())
    pending: set[asyncio.Task[Any]] = {*following}
    while pending and not stopped.done():
        await asyncio.wait([*pending, stopped], return_when=asyncio.FIRST_COMPLETED)
        pending = {task for task in pending if not task.done()}
    for task in (*following, stopped):
        task.cancel()
    await asyncio.gather(*following, stopped, return_exceptions=True)
    await live.close()
    if terminal is not None:
        terminal.close()


async def _follow(watched: Watched, interval_s: float | None, view: View | None, readings: Readings | None) -> None:
    import asyncio

    from cameleer.cli.follow import follow

    def use(reading: Any) -> None:
        watched.add(reading)
        if view is not None:
            view.add(reading)
        if readings is not None:
            readings.add(watched.ref, reading)

    ended = asyncio.ensure_future(watched.task.wait())
    try:
        await follow(watched.task, interval_s or _INTERVAL_S, ended, use)
        await ended
        watched.ended_ns = time.time_ns()
    finally:
        ended.cancel()


def _tell(watched: list[Watched], options: Namespace, json_fd: int | None) -> None:
    from cameleer.cli.run import write_json
    from cameleer.cli.summary import watched_lines

    for each in watched:
        result = each.result()
        if not options.quiet:
            write("\n".join(watched_lines(result, each.task.info.name, ended=each.ended_ns is not None)) + "\n")
        if json_fd is not None:
            write_json(json_fd, options.json, result)
