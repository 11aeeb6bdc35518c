"""What a reading of a control group costs, beside a C program that only reads the same files.

    python benchmarks/cgroup_read.py [--tasks 1 10 100 1000 5000] [--rounds 11] [--paced] [--uml] [--only NAME…]

CPU time for each task and sample, µs, and its ratio to the floor: C that preads the same files of kept descriptors and
parses nothing. Floor and variant alternate, in a random order; medians over the rounds. Before each sweep every task
has run for some 10 µs and touched a page, so nothing is unchanged, but in the rows that say otherwise. Works as root
under a parent group of its own, which it removes. ``--paced`` adds the table on a real clock, once a second in
equal slices; ``--uml`` runs inside user-mode Linux, on version 2 (by the clock on the wall: its CPU clock is coarse).
More than 2,000 tasks are measured in parts, one after the other, all there at once: a process has too few descriptors
for more. There only the rows are made that say whether the cost is flat.

Needs a C compiler (``cc``); psutil, cgroupspy and Go with ``github.com/opencontainers/cgroups`` give more rows.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import date
from math import inf
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, cast

from cameleer.config import Resources, TaskConfig
from cameleer.driver import Driver, RunningTask, Tick
from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup import reader as reader_module
from cameleer.drivers.cgroup.files import BUDGET
from cameleer.drivers.cgroup.group import Cgroups, Group
from cameleer.drivers.cgroup.mode import detect
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.drivers.cgroup.reader import CgroupCounters
from cameleer.hooks.specs import hookimpl
from cameleer.host import Host
from cameleer.node import detect as detect_node
from cameleer.rates import derive
from cameleer.status import Exit
from cameleer.usage import Counters

if TYPE_CHECKING:
    from cameleer.drivers.cgroup.reader_v1 import CgroupCountersV1

HERE = Path(__file__).resolve().parent
QUOTA = Resources(cpu_quota_cores=2)
NO_LIMITS = Resources()
CORE = Tick(0)
BOTH = Tick(0, extended=True)
SAMPLES, SWEEPS = 2000, 400
"""At most about so many in each round: some 40 ms, and not longer where tasks are few."""
PART = 2000
"""Tasks that are measured at once, at most."""
SLICE = 250
"""Tasks that the host reads at one wake-up."""
CLOCKS = {False: time.process_time_ns, True: time.perf_counter_ns}
IS_DEBIANS = sys.base_prefix == "/usr" and Path("/etc/debian_version").exists()
"""Debian builds with a profile, and does not say so in CONFIG_ARGS."""
IS_PGO = IS_DEBIANS or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
ALLOWANCE = 0.0 if IS_PGO else 0.15
"""What the aims allow more for an interpreter that was not optimised by a profile."""


class Answering:
    """A process that answers a line of its stdin with one line."""

    def __init__(self, *command: str, lines: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for line in lines:
            self.say(line, flush=False)
        assert self.process.stdin is not None
        self.process.stdin.flush()
        self.answer()

    def say(self, line: str, flush: bool = True) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        if flush:
            self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} has ended")
        return line

    def ask(self, line: str) -> str:
        self.say(line)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Groups:
    """N groups with a process in each.

    :ivar program: the C program.
    """

    def __init__(self, count: int, program: str, wall: bool) -> None:
        self.program, self.wall = program, wall
        self.mode = detect(f"cameleer-bench-{os.getpid()}")
        if not self.mode.usable:
            raise SystemExit(f"no groups can be made: {self.mode.reason}")
        self.groups: list[Group] = []
        try:
            cgroups = Cgroups(self.mode, node="n")
            for number in range(count):
                self.groups.append(cgroups.make("bench", f"t{number}", QUOTA))
            entries = [" ".join(group.entry.files) for group in self.groups]
            self.tasks = Answering(program, "tasks", str(count), lines=entries)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.groups)

    def parts(self) -> list[Groups]:
        """The same in parts that one process has the descriptors for; each wakes all tasks."""
        if len(self) <= PART:
            return [self]
        made = []
        for start in range(0, len(self), PART):
            made.append(copy.copy(self))
            made[-1].groups = self.groups[start : start + PART]
        return made

    def wake(self, every: int) -> None:
        if every:
            self.tasks.ask(f"wake {every}")

    def floor(self, files: Sequence[str]) -> Answering:
        """The C program on some files of all groups, named as the reader names them."""
        with closing(CgroupCounters(self.groups[0].paths)) as one:
            paths = [one._path(name) for name in files]
        first = self.groups[0].name.rpartition("/")[2]
        names = [group.name.rpartition("/")[2] for group in self.groups]
        lines = [path.replace(f"/{first}/", f"/{name}/") for name in names for path in paths]
        return Answering(self.program, "floor", str(int(self.wall)), lines=[*lines, ""])

    def files(self, *, both: bool = False, all_eight: bool = False) -> list[str]:
        """Names of the core tier's files; of both tiers'; or with those that a reader of version 1 can do without."""
        with closing(CgroupCounters(self.groups[0].paths)) as one:
            found = [*one._core.handles, *(one._extended.handles if both else ())]
        if all_eight and self.groups[0].paths.version == 1:
            found += ["memory.memsw.usage_in_bytes", "memory.kmem.usage_in_bytes"]
        if "memory.swap.current" in found and not swap():
            found.remove("memory.swap.current")
        return found

    def close(self) -> None:
        if hasattr(self, "tasks"):
            self.tasks.close()
        for group in self.groups:
            group.remove(30)
        for folder in set(self.mode.parents().values()):
            for node in kernel.children(folder):
                kernel.remove(node)
            kernel.remove(folder)


def swap() -> bool:
    return Path("/proc/swaps").read_text().count("\n") > 1


# -- variants ------------------------------------------------------------------------------------------------------

Sweep = Callable[[], None]


@contextmanager
def readers(groups: Groups, **options: Any) -> Iterator[list[CgroupCounters]]:
    made = [CgroupCounters(group.paths, **{"has_quota": True, "adaptive": False} | options) for group in groups.groups]
    if not all(each._core.are_kept for each in made):
        raise SystemExit("too few descriptors: raise the hard limit (ulimit -Hn)")
    for each in made:
        each.read(Tick(0, extended=True, fresh=True))
    try:
        yield made
    finally:
        for each in made:
            each.close()


@contextmanager
def reading(groups: Groups, tick: Tick = CORE, **options: Any) -> Iterator[Sweep]:
    with readers(groups, **options) as made:
        reads = [each.read for each in made]

        def sweep() -> None:
            for read in reads:
                read(tick)

        yield sweep


@contextmanager
def parsing(groups: Groups) -> Iterator[Sweep]:
    """The reader's reads and its parsing of all values, by its own descriptors and layouts, with no object made."""
    with readers(groups) as made:
        one = cast("CgroupCountersV1", made[0])
        stat, throttling, size = one._stat, one._throttling_layout, one._stat_bytes
        assert stat is not None
        assert throttling is not None
        descriptors = [
            (each._first, each._times, each._cpu_stat, each._memory_stat, each._usage_in_bytes, each._max_usage)
            for each in cast("list[CgroupCountersV1]", made)
        ]
        last = [b""] * len(made)
        pread, of_stat, of_throttling = os.pread, stat.values, throttling.values

        def sweep() -> None:
            for index, (total, times, cpu_stat, memory_stat, usage, peak) in enumerate(descriptors):
                int(pread(total, 24, 0))
                _, user, _, system = pread(times, 64, 0).split()
                int(user), int(system)
                throttled = pread(cpu_stat, 200, 0)
                if throttled != last[index]:
                    of_throttling(throttled)
                    last[index] = throttled
                of_stat(pread(memory_stat, size, 0), (pread(usage, 24, 0), pread(peak, 24, 0)))

        yield sweep


@contextmanager
def defaults(groups: Groups) -> Iterator[Sweep]:
    """Both tiers as the host asks for them: the extended one every fifth time."""
    with readers(groups) as made:
        reads, turn = [each.read for each in made], 0

        def sweep() -> None:
            nonlocal turn
            turn += 1
            tick = CORE if turn % 5 else BOTH
            for read in reads:
                read(tick)

        yield sweep


@contextmanager
def public(groups: Groups) -> Iterator[Sweep]:
    node = detect_node()
    with readers(groups) as made:
        reads = [each.read for each in made]
        last: list[Counters] = [read(CORE) for read in reads]

        def sweep() -> None:
            for index, read in enumerate(reads):
                counters = read(CORE)
                derive(last[index], counters, NO_LIMITS, node)
                last[index] = counters

        yield sweep


@contextmanager
def opening(groups: Groups, *, plain: bool) -> Iterator[Sweep]:
    """Files opened for each sample: the same ones with the barest calls, or all eight as everybody writes it first."""
    with closing(CgroupCounters(groups.groups[0].paths)) as one:
        names = groups.files(all_eight=plain)
        paths = [
            [one._path(name).replace(groups.groups[0].name, group.name) for name in names] for group in groups.groups
        ]

    def plainly() -> None:
        for files in paths:
            values: dict[str, dict[str, int] | int] = {}
            for path in files:
                with open(path) as file:
                    text = file.read()
                if " " in text:
                    values[path] = {key: int(value) for key, value in (line.split() for line in text.splitlines())}
                else:
                    values[path] = int(text)

    def barely() -> None:
        for files in paths:
            for path in files:
                fd = os.open(path, os.O_RDONLY)
                os.read(fd, 4096)
                os.close(fd)

    yield plainly if plain else barely


@contextmanager
def with_cgroupspy(groups: Groups) -> Iterator[Sweep]:
    from cgroupspy.controllers import CpuAcctController, CpuController, MemoryController  # type: ignore[import-untyped]
    from cgroupspy.nodes import Node  # type: ignore[import-untyped]

    def controller(kind: Any, name: str, group: Group) -> Any:
        return kind(Node(os.fsencode(group.paths.folders[name])))

    kept = [
        (
            controller(CpuAcctController, "cpuacct", group),
            controller(CpuController, "cpu", group),
            controller(MemoryController, "memory", group),
        )
        for group in groups.groups
    ]

    def sweep() -> None:
        for cpuacct, cpu, memory in kept:
            _ = cpuacct.usage, cpuacct.acct_stat, cpu.stat, memory.stat, memory.usage_in_bytes
            _ = memory.max_usage_in_bytes, memory.memsw_usage_in_bytes

    yield sweep


@contextmanager
def with_psutil(groups: Groups) -> Iterator[Sweep]:
    import psutil  # type: ignore[import-untyped, unused-ignore]

    kept = [psutil.Process(min(group.pids())) for group in groups.groups]

    def sweep() -> None:
        for process in kept:
            with process.oneshot():
                process.cpu_times()
                process.memory_info()

    yield sweep


class Measured(RunningTask):
    """A task that others run: measured, never ended."""

    def __init__(self, config: TaskConfig, group: Group, options: dict[str, Any]) -> None:
        super().__init__(config)
        self._counters = CgroupCounters(group.paths, has_quota=True, **options)

    async def wait(self) -> Exit:
        await asyncio.Event().wait()
        raise AssertionError

    async def signal(self, signum: int) -> None: ...

    async def stop(self, timeout_s: float, signum: int) -> None: ...

    def read(self, tick: Tick) -> Counters:
        return self._counters.read(tick)

    async def destroy(self, force: bool = False) -> None:
        self._counters.close()


class Groupwise(Driver):
    name = "groupwise"
    task_type = Measured
    reads_never_block = True
    groups: ClassVar[list[Group]] = []
    options: ClassVar[dict[str, Any]] = {}

    async def start(self, task: TaskConfig) -> RunningTask:
        return Measured(task, self.groups[int(task.id)], self.options)


class Consumer:
    """Takes a figure of every reading."""

    def __init__(self) -> None:
        self.readings = 0
        self.wanted = 1 << 62
        self.reached: Callable[[], object] = int

    @hookimpl
    def update_stats(self, readings: Sequence[Any]) -> None:
        for _task, usage in readings:
            if usage.cpu.percent is not None:
                self.readings += 1
        if self.readings >= self.wanted:
            self.wanted = 1 << 62
            self.reached()


def host_of(consumer: Consumer, interval_s: float) -> Host:
    telemetry = {"publish_allocation_metrics": True, "collection_interval": interval_s}
    return Host({"telemetry": telemetry, "plugins": {"hooks": ["stats_hook"]}}, plugins=[Groupwise, consumer])


async def start_all(host: Host, count: int) -> None:
    for number in range(count):
        await host.start(TaskConfig(id=str(number), command="x"), "groupwise")


async def leave_all(host: Host) -> None:
    """These tasks never end: leave them."""
    for life in list(host._lives.values()):
        await life.leave()
        life.forget()
        if life.running is not None:
            await life.running.destroy()


@contextmanager
def whole_path(groups: Groups, **options: Any) -> Iterator[Sweep]:
    """Scheduler, model, hook and a consumer; each sweep is set off by hand, at once for all slices."""
    Groupwise.groups, Groupwise.options = groups.groups, {"adaptive": False} | options
    consumer = Consumer()
    loop = asyncio.new_event_loop()

    async def opened() -> Host:
        host = host_of(consumer, 3600)
        await host.__aenter__()
        await start_all(host, len(groups))
        return host

    host = loop.run_until_complete(opened())
    sweeps = host.collector._sweeps
    (scheduler,) = sweeps._schedulers.values()

    async def once() -> None:
        done = asyncio.Event()
        consumer.reached = lambda: loop.call_soon_threadsafe(done.set)
        consumer.wanted = consumer.readings + len(groups)
        now = loop.time()
        for place in scheduler.slices:
            place.extended_due = inf
            sweeps._sweep(scheduler, place, now)
        await done.wait()

    async def close() -> None:
        await leave_all(host)
        await host.__aexit__(None, None, None)

    try:
        once_read = loop.time() + 30
        while consumer.readings < len(groups) and loop.time() < once_read:
            loop.run_until_complete(asyncio.sleep(0.05))
            if all(m.previous is not None for p in scheduler.slices for g in p.groups.values() for m in g.members):
                break
        for place in scheduler.slices:
            for group in place.groups.values():
                for member in group.members:
                    member.not_before_ns = 0
        yield lambda: loop.run_until_complete(once())
    finally:
        loop.run_until_complete(close())
        loop.close()


# -- measuring -----------------------------------------------------------------------------------------------------


class Result:
    """One row at one number of tasks: medians of µs for each task and sample, and of the ratios."""

    def __init__(self, floors: list[float], costs: list[float]) -> None:
        self.floor, self.cost = median(floors), median(costs)
        self.ratio = median(cost / floor for cost, floor in zip(costs, floors, strict=True))

    @classmethod
    def of(cls, parts: Sequence[Result]) -> Result:
        """Of tasks that were measured in parts."""
        if len(parts) == 1:
            return parts[0]
        return cls([each.floor for each in parts], [each.cost for each in parts])


Timed = Callable[[int], float]
"""Makes so many sweeps and returns the nanoseconds that they took."""


def alternate(groups: Groups, floor: Timed, sweep: Timed, rounds: int, *, every: int, turns: int = 1) -> Result:
    """Measure a variant and the floor, or what else stands for it, by turns.

    :param every: each so many-th task runs before each sweep; 0: none does.
    :param turns: sweeps in a row.
    """
    times = max(1, min(SAMPLES // len(groups), SWEEPS) // turns)
    floors, costs = [], []
    gc.collect()
    gc.freeze()
    for number in range(rounds + 1):
        spent = {"floor": 0.0, "variant": 0.0}
        for _ in range(times):
            for which in random.sample(("floor", "variant"), 2):
                groups.wake(every)
                spent[which] += (floor if which == "floor" else sweep)(turns)
        if number:  # the first is for warming up
            samples = times * turns * len(groups) * 1000
            floors.append(spent["floor"] / samples)
            costs.append(spent["variant"] / samples)
    gc.unfreeze()
    return Result(floors, costs)


def timed(sweep: Sweep, wall: bool) -> Timed:
    clock = CLOCKS[wall]

    def measure(turns: int) -> float:
        began = clock()
        for _ in range(turns):
            sweep()
        return clock() - began

    return measure


class Row:
    """What is measured, against which files, how, and what is aimed at.

    :ivar peer: the most that our reader may cost of it.
    :ivar is_flat: to be measured with thousands of tasks too.
    """

    def __init__(
        self,
        name: str,
        make: Any,
        aim: dict[int, float] | float | None = None,
        *,
        every: int = 1,
        turns: int = 1,
        files: dict[str, bool] | None = None,
        v1_only: bool = False,
        peer: float | None = None,
        go: str = "",
        is_flat: bool = False,
    ) -> None:
        self.name, self.make, self.aim = name, make, aim
        self.every, self.turns, self.files, self.v1_only = every, turns, files or {}, v1_only
        self.peer, self.go, self.is_flat = peer, go, is_flat

    def aimed(self, tasks: int) -> float | None:
        found = self.aim.get(tasks) if isinstance(self.aim, dict) else self.aim
        return None if found is None or tasks < 100 else found


def without_quota(groups: Groups) -> Any:
    return reading(groups, has_quota=False)


def settled(groups: Groups) -> Any:
    return reading(groups, adaptive=True, idle_after_s=0)


ROWS = [
    Row("files read, values parsed", parsing, {100: 1.40 + ALLOWANCE, 1000: 1.30 + ALLOWANCE}, v1_only=True),
    Row("reader: Counters", reading, 1.6, is_flat=True),
    Row("with rates: TaskResourceUsage", public, 1.6),
    Row("whole path", whole_path, 1.9),
    Row("without quota and swap / all eight files", without_quota, 1.25, files={"all_eight": True}),
    Row("without quota", without_quota),
    Row(
        "settled idle",
        lambda groups: reading(groups, adaptive=True, idle_after_s=0),
        0.20,
        every=0,
        turns=5,
        is_flat=True,
    ),
    Row("every tenth active", settled, 0.45, every=10),
    Row("nothing changed", reading, every=0, turns=5),
    Row("both tiers at defaults", defaults, 2.3, turns=5),
    Row("both tiers each time / their files", lambda groups: reading(groups, BOTH), files={"both": True}),
    Row("whole path, settled idle", lambda groups: whole_path(groups, adaptive=True, idle_after_s=0), every=0),
    Row("Python open, read, close", lambda groups: opening(groups, plain=False)),
    Row("plain open().read(), dicts", lambda groups: opening(groups, plain=True), peer=0.15),
    Row("cgroupspy, kept nodes", with_cgroupspy, v1_only=True, peer=0.15),
    Row("psutil, one pid each", with_psutil),
]


@contextmanager
def floor_of(groups: Groups, **files: bool) -> Iterator[Timed]:
    with closing(groups.floor(groups.files(**files))) as program:
        yield lambda turns: float(program.ask(f"{turns} 0"))


@contextmanager
def libcontainer(groups: Groups, program: str) -> Iterator[Timed]:
    lines = [
        group.paths.folders["unified"]
        if group.paths.version == 2
        else " ".join(f"{name}={group.paths.folders[name]}" for name in ("cpu", "cpuacct", "memory"))
        for group in groups.groups
    ]
    with closing(Answering(program, str(int(groups.wall)), lines=[*lines, ""])) as go:
        yield lambda turns: float(go.ask(str(turns)))


@contextmanager
def variant(groups: Groups, row: Row) -> Iterator[Timed]:
    if row.go:
        with libcontainer(groups, row.go) as found:
            yield found
    else:
        with row.make(groups) as sweep:
            yield timed(sweep, groups.wall)


def run(groups: Groups, row: Row, rounds: int) -> Result:
    found = []
    for part in groups.parts():
        with floor_of(part, **row.files) as floor, variant(part, row) as sweep:
            found.append(alternate(part, floor, sweep, rounds, every=row.every, turns=row.turns))
    return Result.of(found)


STATES: dict[str, tuple[int, dict[str, Any]]] = {
    "tasks asleep, as it comes": (0, {"adaptive": True, "idle_after_s": 0}),
    "tasks asleep, every file each time": (0, {}),
    "tasks that ran": (1, {}),
}
"""Which tasks run before each sweep, and how the reader reads, where it is held against a peer."""


def run_peer(groups: Groups, row: Row, rounds: int, state: str) -> Result:
    """A peer beside the reader."""
    every, how = STATES[state]
    with reading(groups, **how) as ours, variant(groups, row) as sweep:
        return alternate(groups, timed(ours, groups.wall), sweep, rounds, every=every)


def build_c(folder: str) -> str:
    program = f"{folder}/cgroup_read"
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, str(HERE / "cgroup_read.c")], check=True)
    return program


def build_go(folder: str) -> str | None:
    """The reader of libcontainer; None: no Go, or its package cannot be had."""
    if shutil.which("go") is None:
        return None
    source = Path(folder, "go")
    source.mkdir()
    shutil.copy(HERE / "cgroup_read.go", source / "main.go")
    for command in (
        ["go", "mod", "init", "cgroupread"],
        ["go", "get", "github.com/opencontainers/cgroups"],
        ["go", "build", "-o", f"{folder}/libcontainer", "."],
    ):
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"no libcontainer: {' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
            return None
    return f"{folder}/libcontainer"


def room_for_descriptors() -> None:
    """Raise the limit: this process is the benchmark's own."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (max(hard, 1 << 20), hard):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
    BUDGET.share, BUDGET.spare_share = 0.97, 0.95


def keep_core_only() -> None:
    """Keep no files of the extended tier open: so many tasks have too few descriptors for both."""
    BUDGET.spare_share = 0.0


def bytes_per_task(groups: Groups) -> float:
    """What a measured task adds to the resident memory of a process, the host's part included."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import cgroup_read; print(cgroup_read.grown())"
    about = {"version": groups.groups[0].paths.version, "folders": [dict(each.paths.folders) for each in groups.groups]}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(about), capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def grown() -> float:
    """Measure the groups that stdin names, in a host, and say how much memory each took."""
    room_for_descriptors()
    about = json.load(sys.stdin)
    folders, version = about["folders"], about["version"]
    Groupwise.groups = [Group(name="", paths=GroupPaths(version=version, folders=each)) for each in folders]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    async def measure() -> float:
        consumer = Consumer()
        async with host_of(consumer, 1) as host:
            for number in range(10):
                await host.start(TaskConfig(id=str(number), command="x"), "groupwise")
            await asyncio.sleep(1.5)
            gc.collect()
            before = resident()
            for number in range(10, len(folders)):
                await host.start(TaskConfig(id=str(number), command="x"), "groupwise")
            await asyncio.sleep(2.5)
            gc.collect()
            after = resident()
            await leave_all(host)
            return (after - before) / max(len(folders) - 10, 1)

    return asyncio.run(measure())


def paced(groups: Groups, rounds: int, seconds: int = 3) -> Result:
    """Once a second, in equal slices for both: the whole path against C."""
    slices = -(-len(groups) // SLICE)
    floors, costs = [], []
    Groupwise.groups, Groupwise.options = groups.groups, {"adaptive": False}

    async def of_host() -> float:
        consumer = Consumer()
        async with host_of(consumer, 1) as host:
            host.collector._sweeps.extended_interval_s = inf
            await start_all(host, len(groups))
            await asyncio.sleep(1.6)
            gc.collect()
            readings, began = consumer.readings, CLOCKS[groups.wall]()
            await asyncio.sleep(seconds)
            cost = CLOCKS[groups.wall]() - began
            readings = consumer.readings - readings
            await leave_all(host)
            return cost / 1000 / max(readings, 1)

    with closing(groups.floor(groups.files())) as floor:
        for number in range(rounds):
            for which in random.sample(("floor", "host"), 2):
                if which == "floor":
                    groups.tasks.say(f"auto {seconds}")
                    costed = float(floor.ask(f"pace {slices} {seconds}"))
                    floors.append(costed / 1000 / seconds / (len(groups) // slices * slices))
                else:
                    groups.tasks.say(f"auto {seconds + 2}")
                    costs.append(asyncio.run(of_host()))
            print(f"  round {number + 1}: floor {floors[-1]:.1f}, whole path {costs[-1]:.1f} µs", file=sys.stderr)
    return Result(floors, costs)


def describe(wall: bool) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    return (
        f"{date.today()}, {model.strip()}, {os.cpu_count()} CPUs, Linux {os.uname().release}, "
        f"Python {sys.version.split()[0]} ({'PGO' if IS_PGO else 'not PGO'} build), "
        f"{'time on the wall' if wall else 'CPU time'}"
    )


def cell(result: Result | None, aim: float | None) -> str:
    if result is None:
        return "–"
    verdict = "" if aim is None else (" ✓" if result.ratio <= aim else f" ✗ ({aim:.2f})")
    return f"{result.cost:.1f} ({result.ratio:.2f}){verdict}"


def share(found: float, aim: float | None) -> str:
    return f"{found:.3f}{' ✓' if aim is not None and found <= aim else ' ✗'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--paced", action="store_true", help="the second table too")
    parser.add_argument("--uml", action="store_true", help="inside user-mode Linux, on version 2")
    parser.add_argument("--wall", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", help="rows whose name has one of these words in it")
    parser.add_argument("--no-go", action="store_true")
    options = parser.parse_args()
    if options.uml:
        return in_user_mode_linux([each for each in sys.argv[1:] if each != "--uml"])
    room_for_descriptors()
    reader_module._PIDLIST_NS = 0  # type: ignore[misc]  # sweeps follow one another faster than a host's ever would
    results: dict[tuple[str, int], Result] = {}
    shares: dict[tuple[str, int, str], Result] = {}
    memory: float | None = None
    paces: dict[int, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build_c(folder)
        go = None if options.no_go else build_go(folder)
        rows = [*ROWS, *([Row("libcontainer", None, peer=0.10, go=go)] if go is not None else [])]
        rows = [row for row in rows if not options.only or any(word in row.name for word in options.only)]
        for tasks in options.tasks:
            with closing(Groups(tasks, program, options.wall)) as groups:
                if groups.groups[0].paths.version == 2:
                    rows = [row for row in rows if not row.v1_only]
                if tasks > PART:
                    keep_core_only()
                for row in rows if tasks <= PART else (row for row in rows if row.is_flat):
                    results[row.name, tasks] = result = run(groups, row, options.rounds)
                    print(f"{tasks:>5} {row.name:35} {cell(result, row.aimed(tasks))}", file=sys.stderr)
                    for state in STATES if row.peer is not None else ():
                        shares[row.name, tasks, state] = run_peer(groups, row, options.rounds, state)
                if options.paced and 100 <= tasks <= PART:
                    paces[tasks] = paced(groups, options.rounds)
                if tasks == 1000 and not options.only:
                    memory = bytes_per_task(groups)
    print(f"{describe(options.wall)}; µs for each task and sample (ratio to the floor of the same run)\n")
    print(f"| | {' | '.join(f'N={tasks}' for tasks in options.tasks)} |\n|---|{'---|' * len(options.tasks)}")
    firsts = [next(results[row.name, tasks] for row in rows if (row.name, tasks) in results) for tasks in options.tasks]
    print(f"| C floor | {' | '.join(f'{each.floor:.1f}' for each in firsts)} |")
    for row in rows:
        cells = [cell(results.get((row.name, tasks)), row.aimed(tasks)) for tasks in options.tasks]
        print(f"| {row.name} | {' | '.join(cells)} |")
    for row in rows:
        peer = row.peer
        for state in STATES if peer is not None else ():
            found = [shares.get((row.name, tasks, state)) for tasks in options.tasks]
            marks = ["–" if each is None else share(1 / each.ratio, peer) for each in found]
            print(f"| reader ÷ {row.name}, {state} (≤ {peer:.2f}) | {' | '.join(marks)} |")
    name = "reader: Counters"
    if (name, 5000) in results and (name, 1000) in results:
        print(f"\n{name}, 1,000 to 5,000: × {results[name, 5000].cost / results[name, 1000].cost:.2f} (≤ 1.25)")
    if memory is not None:
        print(f"\nMemory for each measured task: {memory / 1000:.1f} kB (≤ 20)")
    if paces:
        print("\nOnce a second on a real clock, in equal slices:\n")
        print("| | " + " | ".join(f"N={tasks}" for tasks in paces) + " |\n|---|" + "---|" * len(paces))
        print("| C floor | " + " | ".join(f"{each.floor:.1f}" for each in paces.values()) + " |")
        print("| whole path | " + " | ".join(cell(each, 1.9) for each in paces.values()) + " |")
    return 0


def in_user_mode_linux(arguments: list[str]) -> int:
    """Boot a kernel as a process, mount version 2, and run there with the same interpreter."""
    program = shutil.which("linux.uml")
    if program is None:
        raise SystemExit("user-mode Linux is not installed: apt-get install user-mode-linux")
    command = " ".join([sys.executable, str(HERE / "cgroup_read.py"), "--wall", "--no-go", *arguments])
    with tempfile.TemporaryDirectory(prefix="uml.") as folder:
        init = Path(folder, "init")
        init.write_text(
            f"#!/bin/sh\nexport PATH={os.environ['PATH']} HOME=/run TMPDIR=/run PYTHONDONTWRITEBYTECODE=1\n"
            "mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run\n"
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup\nulimit -n 500000\n"
            f"{command} </dev/null\nhalt -f\n"
        )
        init.chmod(0o755)
        boot = [program, "mem=1G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}"]
        boot += [f"uml_dir={folder}", "con=null", "con0=null,fd:1", "quiet"]
        return subprocess.run(["taskset", "-c", "0", *boot], stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
