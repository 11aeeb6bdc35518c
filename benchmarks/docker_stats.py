"""What a reading of a container costs, the engine's part included: from its group, and by the ways through the engine.

    python benchmarks/docker_stats.py [--tasks 1 10 50] [--seconds 6] [--rounds 2]

CPU time for each container and sample, µs, of the client, dockerd, containerd and the shims together, and its ratio to
what most Python tools do: the SDK's stream with a thread for each container. The engine is one of its own with sleeping
containers, in a control group of its own, whose CPU time is exact to the nanosecond; what it uses while nobody measures
is measured in the same run and subtracted. Medians over the seconds, because an engine has housekeeping of its own: the
shims were seen to use some ms each at times, half a minute apart, so the containers are started evenly over 30 s.

Of the local path it is the time of the reads, paced at 1 Hz, where what they need has left the processor's caches since
the last one, and back to back; that the engine does nothing for them is shown apart, in turns with an engine at rest,
beside its noise. Needs root, ``dockerd`` and ``busybox``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

from engine import IMAGE, Engine, missing, running

from cameleer.beat import phase_of_slice
from cameleer.config import Resources
from cameleer.driver import Tick
from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.group import Cgroups, Group
from cameleer.drivers.cgroup.mode import detect
from cameleer.drivers.cgroup.reader import CgroupCounters
from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.stats import local
from cameleer.drivers.docker.stats.remote import Mode, Sampler

SDK = "SDK stream, a thread each"
LOCAL = "local"
HOT = "local, back to back"
IDLE = "local, idle container"
SETTLE_S = 2.0
IDLE_S = 4
"""After so long without CPU time only one file is read."""
LONG_S = 10.0
AIMS = {LOCAL: 0.01, HOT: 0.01, IDLE: 0.01, "one-shot": 1.25}
"""Of the SDK's stream, for each container and sample."""
LONG_AIM = 1 / 7
LONG_TURNS = 3
HOT_NS = 300_000_000
TURNS, TURN_S = 3, 2.0
HOUSEKEEPING_S = 30.0


@dataclass
class Cost:
    """CPU time of one way, nanoseconds, and for how many readings.

    :ivar period_s: time between two readings by their own times, the median.
    """

    engine_ns: float = 0.0
    client_ns: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    period_s: float | None = None

    def add(self, other: Cost) -> None:
        """Another round of the same."""
        self.engine_ns += other.engine_ns
        self.client_ns += other.client_ns
        self.samples += other.samples
        self.seconds += other.seconds
        self.period_s = other.period_s or self.period_s

    @property
    def engine_us(self) -> float:
        return self.engine_ns / 1000 / max(self.samples, 1)

    @property
    def client_us(self) -> float:
        return self.client_ns / 1000 / max(self.samples, 1)

    @property
    def sample_us(self) -> float:
        return self.engine_us + self.client_us


class Bench:
    """An engine whose CPU time is counted, and its containers.

    :ivar idle: what it uses while nobody measures: nanoseconds a second, the median and the mean.
    """

    def __init__(self, engine: Engine, group: Group) -> None:
        self.engine = engine
        self.containers: list[str] = []
        self.idle = (0.0, 0.0)
        self._group = group
        self._cpu = CgroupCounters(group.paths, adaptive=False)
        self._began = time.monotonic()

    def grow(self, count: int) -> None:
        """Have so many sleeping containers, whose shims do their housekeeping one after the other."""
        now = time.monotonic()
        passed = now - self._began
        new = range(len(self.containers), count)
        for wait_s in sorted((phase_of_slice(each) * HOUSEKEEPING_S - passed) % HOUSEKEEPING_S for each in new):
            time.sleep(max(now + wait_s - time.monotonic(), 0))
            words = ("run", "--detach", "--network=none", IMAGE, "sleep", "100000")
            self.containers.append(self.engine.out(*words))
        if len(self._group.pids()) < 2 + count:
            raise SystemExit("the shims are not in the engine's group: their CPU time would be missing")

    def engine_ns(self) -> int:
        return self._cpu.read(Tick(0)).cpu.total_ns or 0

    async def engine_seconds(self, seconds: float) -> list[float]:
        """What the engine uses in each second, nanoseconds."""
        found, began, before = [], time.monotonic(), self.engine_ns()
        for _ in range(max(round(seconds), 1)):
            await asyncio.sleep(1)
            now, used = time.monotonic(), self.engine_ns()
            found.append((used - before) / (now - began))
            began, before = now, used
        return found

    async def rest(self, seconds: float) -> None:
        """Measure what the engine uses by itself."""
        used = await self.engine_seconds(seconds)
        self.idle = median(used), mean(used)

    async def over(self, seconds: float, taken: Callable[[], int], *, bursts: bool = False) -> Cost:
        """The cost of what goes on for some time.

        :param bursts: it is not the same in each second: the mean counts.
        """
        began, client, samples = time.monotonic(), time.process_time_ns(), taken()
        used = await self.engine_seconds(seconds)
        passed = time.monotonic() - began
        return Cost(
            engine_ns=(mean(used) - self.idle[1] if bursts else median(used) - self.idle[0]) * passed,
            client_ns=time.process_time_ns() - client,
            samples=taken() - samples,
            seconds=passed,
        )

    def close(self) -> None:
        self._cpu.close()


@contextmanager
def bench() -> Iterator[Bench]:
    mode = detect(f"cameleer-bench-{os.getpid()}")
    if not mode.usable:
        raise SystemExit(f"no groups can be made: {mode.reason}")
    group = Cgroups(mode, node="n").make("bench", "engine", Resources())
    try:
        with running() as engine:
            for pid in (engine.pid, *engine._containerd()):
                group.enter(pid)
            made = Bench(engine, group)
            try:
                yield made
            finally:
                made.close()
    finally:
        group.remove(30)
        for folder in set(mode.parents().values()):
            for node in kernel.children(folder):
                kernel.remove(node)
            kernel.remove(folder)


# -- ways ----------------------------------------------------------------------------------------------------------

Way = Callable[[Bench, float], Coroutine[None, None, Cost]]


class Groups:
    """The groups of all containers, read in a sweep a second.

    :param adaptive: as the host reads them: of an idle container one file.
    :ivar ns: CPU time of the sweeps.
    """

    def __init__(self, bench: Bench, *, adaptive: bool) -> None:
        self.ns = 0
        self.sweeps = 0
        self._readers = []
        for container in bench.containers:
            pid = int(bench.engine.out("inspect", "--format={{.State.Pid}}", container))
            paths = local.find(container, pid)
            if paths is None:
                raise SystemExit(f"no group: {local.look(container, pid).reason}")
            self._readers.append(CgroupCounters(paths, network_pid=pid, adaptive=adaptive))

    def sweep(self) -> None:
        """Read all; every fifth time both tiers."""
        began = time.thread_time_ns()
        tick = Tick(0, extended=self.sweeps % 5 == 0)
        for each in self._readers:
            each.read(tick)
        self.ns += time.thread_time_ns() - began
        self.sweeps += 1

    async def pace(self, sweeps: int) -> None:
        """Sweep once a second."""
        for _ in range(sweeps):
            await asyncio.sleep(1)
            self.sweep()

    def forget(self) -> None:
        """What was until now was for warming up."""
        self.ns = self.sweeps = 0

    def cost(self) -> Cost:
        return Cost(client_ns=self.ns, samples=self.sweeps * len(self._readers), seconds=self.sweeps)

    def close(self) -> None:
        for each in self._readers:
            each.close()


async def from_groups(bench: Bench, seconds: float, *, adaptive: bool) -> Cost:
    with closing(Groups(bench, adaptive=adaptive)) as groups:
        await groups.pace(1 + (IDLE_S if adaptive else 0))
        groups.forget()
        await groups.pace(max(round(seconds), 5))
        return groups.cost()


def back_to_back(bench: Bench) -> Cost:
    with closing(Groups(bench, adaptive=False)) as groups:
        for _ in range(5):
            groups.sweep()
        groups.forget()
        while groups.ns < HOT_NS:
            groups.sweep()
        return groups.cost()


async def at_rest(bench: Bench, seconds: float) -> tuple[Cost, Cost]:
    """Reads of containers that work, and that are idle; meanwhile the engine is at rest."""
    seconds += IDLE_S
    busy, idle, _ = await asyncio.gather(
        from_groups(bench, seconds, adaptive=False),
        from_groups(bench, seconds - IDLE_S, adaptive=True),
        bench.rest(seconds),
    )
    return busy, idle


async def engine_beside_groups(bench: Bench) -> tuple[float, float]:
    """What the engine uses more while its containers are read from their groups: µs a second, and the noise of that."""
    resting, reading = [], []
    with closing(Groups(bench, adaptive=True)) as groups:
        for _ in range(TURNS):
            resting += await bench.engine_seconds(TURN_S)
            sweeps = asyncio.ensure_future(groups.pace(round(TURN_S)))
            reading += await bench.engine_seconds(TURN_S)
            await sweeps
    return (median(reading) - median(resting)) / 1000, stdev(resting) / 1000


class Consumers:
    """A task for each container, which takes its readings."""

    def __init__(self, sampler: Sampler, containers: Sequence[str], interval_s: float) -> None:
        self._sampler = sampler
        self._interval_s = interval_s
        self.times: dict[str, list[int]] = {each: [] for each in containers}

    def taken(self) -> int:
        return sum(map(len, self.times.values()))

    def period_s(self) -> float | None:
        gaps = [later - earlier for times in self.times.values() for earlier, later in pairwise(times[1:])]
        return mean(gaps) / 1e9 if gaps else None

    async def _consume(self, container: str) -> None:
        async with aclosing(self._sampler.stats(container, self._interval_s)) as stream:
            async for counters in stream:
                self.times[container].append(counters.at_ns)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        work = [asyncio.ensure_future(self._consume(each)) for each in self.times]
        try:
            yield
        finally:
            for each in work:
                each.cancel()
            for found in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(found, Exception):
                    raise found


async def sampled(bench: Bench, seconds: float, mode: Mode, interval_s: float = 1.0) -> Cost:
    count = len(bench.containers)
    limit = max(16, count) if interval_s <= 1 else 16
    client = Client(Endpoint(url=bench.engine.address), connections=limit)
    try:
        consumers = Consumers(Sampler(client, limit=limit, mode=mode), bench.containers, interval_s)
        async with consumers.at_work():
            await asyncio.sleep(SETTLE_S if interval_s <= 1 else LONG_S / 2)
            if interval_s > 1:  # begin and end half-way between two bursts
                await asyncio.sleep(interval_s - (time.monotonic() + interval_s / 2) % interval_s)
            cost = await bench.over(seconds, consumers.taken, bursts=interval_s > 1)
        cost.period_s = consumers.period_s()
        return cost
    finally:
        await client.close()


async def one_shot(bench: Bench, seconds: float) -> Cost:
    return await sampled(bench, seconds, "one-shot")


async def stream(bench: Bench, seconds: float) -> Cost:
    return await sampled(bench, seconds, "stream")


async def spread(bench: Bench, seconds: float) -> Cost:
    """One request after the other, evenly over the long interval."""
    client = Client(Endpoint(url=bench.engine.address), connections=len(bench.containers))
    taken = 0

    async def ask(number: int, container: str) -> None:
        nonlocal taken
        await asyncio.sleep(number * LONG_S / len(bench.containers))
        while True:
            began = time.monotonic()
            await client.request("GET", f"/containers/{container}/stats", query={"stream": "false", "one-shot": "true"})
            taken += 1
            await asyncio.sleep(LONG_S - (time.monotonic() - began))

    work = [asyncio.ensure_future(ask(*each)) for each in enumerate(bench.containers)]
    try:
        await asyncio.sleep(SETTLE_S)
        return await bench.over(seconds, lambda: taken, bursts=True)
    finally:
        for each in work:
            each.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await client.close()


async def sdk_stream(bench: Bench, seconds: float) -> Cost:
    import docker

    count = len(bench.containers)
    client = docker.APIClient(base_url=bench.engine.address, version="auto", max_pool_size=count + 1)
    stop = threading.Event()
    taken = [0] * count

    def follow(number: int, container: str) -> None:
        for _ in client.stats(container, decode=True, stream=True):
            taken[number] += 1
            if stop.is_set():
                return

    threads = [threading.Thread(target=follow, args=each, daemon=True) for each in enumerate(bench.containers)]
    for thread in threads:
        thread.start()
    try:
        await asyncio.sleep(SETTLE_S)
        return await bench.over(seconds, lambda: sum(taken))
    finally:
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join, 10)
        client.close()


async def docker_stats(bench: Bench, seconds: float) -> Cost:
    program = await asyncio.create_subprocess_exec(
        "docker",
        "stats",
        "--no-trunc",
        env={**os.environ, "DOCKER_HOST": bench.engine.address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    clock_tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    def used_ns() -> int:
        words = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) * clock_tick_ns

    try:
        await asyncio.sleep(SETTLE_S)
        before = used_ns()
        cost = await bench.over(seconds, lambda: 0)
        cost.client_ns = used_ns() - before
        cost.samples = round(len(bench.containers) * cost.seconds)
        return cost
    finally:
        program.kill()
        await program.wait()


WAYS: dict[str, Way] = {SDK: sdk_stream, "one-shot": one_shot, "stream": stream, "docker stats": docker_stats}
NAMES = (SDK, LOCAL, HOT, IDLE, "one-shot", "stream", "docker stats")


def measure(bench: Bench, seconds: float, rounds: int, *, all_ways: bool) -> dict[str, Cost]:
    """All ways in turns: the machine is not the same all the time."""
    found: dict[str, Cost] = {}
    found[LOCAL], found[IDLE] = asyncio.run(at_rest(bench, seconds))
    found[HOT] = back_to_back(bench)
    print(f"  at rest, µs a second         {bench.idle[0] / 1000:.0f}", file=sys.stderr)
    for number in range(rounds):
        for name, way in WAYS.items():
            if (number and name not in AIMS and name != SDK) or (name == "stream" and not all_ways):
                continue
            cost = asyncio.run(way(bench, seconds / rounds))
            if name in found:
                found[name].add(cost)
            else:
                found[name] = cost
            print(f"  {name:28} {cost.sample_us:.0f}", file=sys.stderr)
    return found


def seldom(bench: Bench) -> tuple[Cost, Cost, Cost]:
    """The SDK's stream, one-shot every 10 s in bursts, and spread out: in turns, long enough for the engine's own."""
    streamed, burst, apart = Cost(), Cost(), Cost()
    for number in range(LONG_TURNS):
        asyncio.run(bench.rest(LONG_S))
        streamed.add(asyncio.run(sdk_stream(bench, LONG_S)))
        burst.add(asyncio.run(sampled(bench, LONG_S, "one-shot", LONG_S)))
        apart.add(asyncio.run(spread(bench, LONG_S)))
        print(f"  every {LONG_S:g} s, turn {number + 1}         {burst.sample_us:.0f}", file=sys.stderr)
    return streamed, burst, apart


# -- table ---------------------------------------------------------------------------------------------------------


def describe(engine: Engine) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    version = engine.out("version", "--format={{.Server.Version}}")
    return (
        f"{date.today()}, {model.strip()}, {os.cpu_count()} CPUs, Linux {os.uname().release}, Docker {version}, "
        f"Python {sys.version.split()[0]}, CPU time"
    )


def mark(value: float, aim: float | None) -> str:
    if aim is None:
        return ""
    return " ✓" if value <= aim else f" ✗ ({aim:.3g})"


def cell(cost: Cost | None, base: Cost | None, aim: float | None) -> str:
    if cost is None:
        return "–"
    if base is None or base is cost:
        return f"{cost.sample_us:.0f}"
    ratio = cost.sample_us / base.sample_us
    return f"{cost.sample_us:.0f} ({ratio:.2g}){mark(ratio, aim)}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def by_samples(found: dict[tuple[str, int], Cost], counts: Sequence[int]) -> None:
    row("", *(f"N={count}" for count in counts))
    row(*["---"] * (len(counts) + 1))
    for name in NAMES:
        if any((name, count) in found for count in counts):
            cells = [cell(found.get((name, count)), found.get((SDK, count)), AIMS.get(name)) for count in counts]
            row(name, *cells)
    largest = counts[-1]
    print(f"\nOf it at N={largest}, µs for each container and sample, and the time between two readings:\n")
    row("", "dockerd, containerd, shims", "client", "period")
    row(*["---"] * 4)
    for name in NAMES:
        cost = found.get((name, largest))
        if cost is not None:
            period = "" if cost.period_s is None else f"{cost.period_s:.3f} s"
            row(name, f"{cost.engine_us:.0f}" if cost.engine_ns else "", f"{cost.client_us:.0f}", period)


def by_seconds(count: int, streamed: Cost, burst: Cost, apart: Cost) -> None:
    print(f"\nOne-shot every {LONG_S:g} s at N={count}, µs for each container and second:\n")
    row("", "µs", "ratio")
    row(*["---"] * 3)
    base = (streamed.engine_ns + streamed.client_ns) / 1000 / count / streamed.seconds
    per_second = burst.sample_us / LONG_S
    row(SDK, f"{base:.0f}", "1")
    row("one-shot, in bursts", f"{per_second:.0f}", f"{per_second / base:.3f}{mark(per_second / base, LONG_AIM)}")
    row("one-shot, spread out", f"{apart.sample_us / LONG_S:.0f}", f"{apart.sample_us / LONG_S / base:.3f}")
    row("bursts ÷ spread out", "", f"{burst.sample_us / apart.sample_us:.2f}")


def beside(more_us: float, noise_us: float) -> None:
    print("\nWhile its containers are read from their groups, the engine uses ", end="")
    print(f"{more_us:+.0f} µs a second more than at rest, where it varies by {noise_us:.0f}", end="")
    print(mark(more_us, noise_us))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each way is measured")
    parser.add_argument("--rounds", type=int, default=2, help="in so many turns")
    options = parser.parse_args()
    if missing:
        raise SystemExit(f"no engine can be started: {missing}")
    found: dict[tuple[str, int], Cost] = {}
    counts = sorted(options.tasks)
    with bench() as made:
        print(f"{describe(made.engine)}; µs for each container and sample (ratio to {SDK})\n")
        for count in counts:
            made.grow(count)
            print(f"N={count}", file=sys.stderr)
            ways = measure(made, options.seconds, options.rounds, all_ways=count == counts[-1])
            for name, cost in ways.items():
                found[name, count] = cost
        by_samples(found, counts)
        beside(*asyncio.run(engine_beside_groups(made)))
        by_seconds(counts[-1], *seldom(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
