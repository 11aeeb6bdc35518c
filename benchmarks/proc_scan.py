"""What it costs to follow the processes of all tasks, beside a bare listing of /proc in C and psutil.

    python benchmarks/proc_scan.py [--processes 300 2000 5000] [--tasks 1 10 100] [--rounds 15]

CPU time of one sweep over all tasks of five processes each, medians, all variants in turn in each round:

- listing: open, getdents and close of /proc in C, the floor of any scan;
- scan: `ProcessTable.refresh` when a process was created since the last sweep;
- still: the same when none was;
- usage: one `Tree.usage` for each task, on top of either;
- psutil: `children(recursive=True)` for each task (one task is measured).

Needs a C compiler (`cc`) and psutil. Aims: scan at most 2.5 × the listing, and at most 1 % of psutil's cost for ten
tasks; the last column says which were missed. `nan`: others created processes all the time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from statistics import median

import psutil  # type: ignore[import-untyped, unused-ignore]

from cameleer.drivers.procfs import ProcessTable

SCAN_PER_LISTING = 2.5
SCAN_PER_PSUTIL = 0.01
PSUTIL_TASKS = 10
PROCESSES_PER_TASK = 5


class Answering:
    """A process that answers each line of its stdin with one line."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, at which it ends

    def line(self) -> str:
        """Return its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a helper process has ended")
        return line

    def ask(self) -> str:
        """Write a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.line()


@contextmanager
def compiled() -> Iterator[str]:
    source = Path(__file__).with_name("proc_floor.c")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "proc_floor"))
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, str(source)], check=True)
        yield program


def processes_now() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


class Costs:
    """Measured CPU nanoseconds by variant."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    @contextmanager
    def measure(self, variant: str) -> Iterator[None]:
        """Add what the body costs this thread."""
        began = time.thread_time_ns()
        yield
        self.of.setdefault(variant, []).append(time.thread_time_ns() - began)

    def median_us(self, variant: str) -> float:
        """Return a variant's median, microseconds."""
        return median(self.of[variant] or [nan]) / 1000


def measure(program: str, processes: int, tasks: int, rounds: int) -> Costs | None:
    extra = processes - processes_now() - tasks * PROCESSES_PER_TASK - 3  # the two helpers and the changing sleeper
    if extra < 0:
        return None
    costs = Costs()
    with Answering(program, "sleep", str(tasks), str(extra)) as sleepers, Answering(program, "list") as floor:
        roots = [int(pid) for pid in sleepers.line().split()]
        table = ProcessTable()
        try:
            trees = [table.track(pid) for pid in roots]
            for _ in range(3):  # first scan, and the one that settles it
                table.refresh(object())
                usages = [tree.usage() for tree in trees]
            assert all(usage.processes == PROCESSES_PER_TASK for usage in usages)
            root = psutil.Process(roots[0])
            for _ in range(rounds):
                sleepers.ask()
                costs.of.setdefault("listing", []).append(int(floor.ask()))
                scans = table.scans
                with costs.measure("scan"):
                    table.refresh(object())
                assert table.scans == scans + 1
                table.refresh(object())
                scans = table.scans
                with costs.measure("still"):
                    table.refresh(object())
                if table.scans != scans:  # somebody else on this machine created a process
                    costs.of["still"].pop()
                with costs.measure("usage"):
                    for tree in trees:
                        tree.usage()
                with costs.measure("psutil"):
                    children = root.children(recursive=True)
                assert len(children) == PROCESSES_PER_TASK - 1
        finally:
            table.close()
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[300, 2000, 5000])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    missed = 0
    print("CPU µs of one sweep over all tasks (medians)\n")
    print("| processes | tasks | listing | scan | still | usage | psutil | scan / listing | scan / psutil | missed |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    with compiled() as program:
        for processes in options.processes:
            for tasks in options.tasks:
                costs = measure(program, processes, tasks, options.rounds)
                if costs is None:
                    print(f"| {processes} | {tasks} | more processes than that already | | | | | | | |")
                    continue
                listing, scan, still, usage = (costs.median_us(name) for name in ("listing", "scan", "still", "usage"))
                psutil_us = costs.median_us("psutil") * tasks
                misses = [
                    name
                    for name, is_missed in (
                        ("listing", scan > SCAN_PER_LISTING * listing),
                        ("psutil", tasks >= PSUTIL_TASKS and scan > SCAN_PER_PSUTIL * psutil_us),
                    )
                    if is_missed
                ]
                missed += len(misses)
                print(
                    f"| {processes} | {tasks} | {listing:.0f} | {scan:.0f} | {still:.1f} | {usage:.0f} "
                    f"| {psutil_us:.0f} | {scan / listing:.2f} | {scan / psutil_us:.2%} | {', '.join(misses) or '–'} |",
                    flush=True,
                )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
