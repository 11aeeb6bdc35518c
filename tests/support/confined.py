"""What tests of ``exec`` share: whether groups can be made here, and drivers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.cgroup.mode import detect as detect_groups
from cameleer.drivers.exec import Exec
from cameleer.drivers.exec.settings import ExecConfig
from cameleer.drivers.exec.task import ExecTask
from cameleer.node import detect

_MODE = detect_groups()
needs_groups = pytest.mark.skipif(not _MODE.usable, reason=f"no control groups can be made here: {_MODE.reason}")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def shell(script: str, *args: str, **fields: Any) -> TaskConfig:
    """A task of a shell; ``args`` are ``$0``, ``$1``…"""
    return TaskConfig(command="/bin/sh", args=["-c", script, *(args or ["sh"])], **{"env": {"PATH": PATH}, **fields})


def make(folder: Path, *, recoverable: bool = False, **settings: Any) -> Exec:
    """A driver of one host: those of the same folder find each other's tasks."""
    host_id = sha256(os.fsencode(folder)).hexdigest()[:16]
    return Exec(ExecConfig(**settings), detect(state_dir=folder, recoverable=recoverable, host_id=host_id))


def remove_groups(folder: Path) -> None:
    """Remove what a test that failed left running."""
    for group in make(folder).groups.cgroups.all():
        group.remove()


@asynccontextmanager
async def executing(folder: Path, *, recoverable: bool = False, **settings: Any) -> AsyncIterator[Exec]:
    """An opened driver, whose groups have all gone afterwards."""
    driver = make(folder, recoverable=recoverable, **settings)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


@asynccontextmanager
async def running(driver: Exec, config: TaskConfig) -> AsyncIterator[ExecTask]:
    """A task that is removed afterwards, whatever happens."""
    task = cast("ExecTask", await driver.start(config))
    try:
        yield task
    finally:
        await task.destroy(force=True)


async def output_of(driver: Exec, folder: Path, script: str, *args: str, **fields: Any) -> str:
    """Run a shell script to its end; what it wrote, also to stderr."""
    path = folder / f"out-{os.urandom(4).hex()}"
    stream = Stdio.file(path)
    async with running(driver, shell(script, *args, stdout=stream, stderr=stream, **fields)) as task:
        await task.wait()
        return path.read_text()
