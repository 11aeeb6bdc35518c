"""Measuring a group that somebody else made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cameleer.drivers.cgroup.mode import detect
from cameleer.errors import NotSupported, TaskNotFound
from cameleer.host import Host

QUIET = {"plugins": {"hooks": []}}


@pytest.fixture
def group() -> Iterator[str]:
    """A group of this test's own, as ``/proc/PID/cgroup`` names it."""
    mode = detect()
    if not mode.usable:
        pytest.skip(f"needs a writable cgroup: {mode.reason}")
    path = f"/cameleer-attach-{os.getpid()}"
    wanted = {"memory", "cpuacct", "cpu"} if mode.version == 1 else {"unified"}
    folders = [Path(f"{mode.mounts[name]}{path}") for name in sorted(wanted & mode.mounts.keys())]
    for folder in folders:
        folder.mkdir()
    yield path
    for folder in folders:
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.root
async def test_a_group_of_somebody_elses_is_measured_until_it_is_removed(group: str) -> None:
    async with Host(QUIET) as host:
        task = await host.attach(f"cgroup:{group}", "exec")
        usage = await anext(task.readings())
        assert usage.cpu.total_ns is not None
        assert usage.memory.measure == "cgroup"
        with pytest.raises(NotSupported, match="somebody else"):
            await task.stop()
        mode = detect()
        for mount in mode.mounts.values():
            folder = Path(f"{mount}{group}")
            if folder.is_dir():
                folder.rmdir()
        async with asyncio.timeout(10):
            assert (await task.wait()).exit_code is None


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        ("cgroup:/no/such/group", TaskNotFound),
        ("cgroup:relative", TaskNotFound),
        ("cgroup:/a/../../etc", TaskNotFound),
        ("4711", TaskNotFound),
    ],
)
async def test_what_names_no_group_is_an_error(ref: str, error: type[Exception]) -> None:
    async with Host(QUIET) as host:
        with pytest.raises(error):
            await host.attach(ref, "exec")
