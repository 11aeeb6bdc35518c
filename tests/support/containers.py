"""What tests of ``docker`` share: drivers of one engine, and tasks that are removed afterwards."""

from __future__ import annotations

import asyncio
import glob
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

from engine import IMAGE, Engine

from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.docker import Docker
from cameleer.drivers.docker.settings import DockerConfig
from cameleer.drivers.docker.task import ContainerTask
from cameleer.host import Host
from cameleer.node import detect


def shell(script: str, *args: str, **fields: Any) -> TaskConfig:
    """A container of a shell without a network; ``args`` are ``$0``, ``$1``…"""
    settings = {"network_mode": "none", **fields.pop("driver_config", {})}
    return TaskConfig(
        **{
            "command": "/bin/sh",
            "args": ["-c", script, *(args or ["sh"])],
            "image": IMAGE,
            "driver_config": settings,
            **fields,
        }
    )


def make(engine: Engine, folder: Path, *, recoverable: bool = False, **settings: Any) -> Docker:
    """A driver of one host: those of the same folder find each other's tasks."""
    host_id = sha256(os.fsencode(folder)).hexdigest()[:16]
    node = detect(state_dir=folder, recoverable=recoverable, host_id=host_id)
    return Docker(DockerConfig(**{"endpoint": engine.address, **settings}), node)


@asynccontextmanager
async def driving(engine: Engine, folder: Path, *, recoverable: bool = False, **settings: Any) -> AsyncIterator[Docker]:
    """An opened driver."""
    driver = make(engine, folder, recoverable=recoverable, **settings)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


@asynccontextmanager
async def running(driver: Docker, config: TaskConfig) -> AsyncIterator[ContainerTask]:
    """A task that is removed afterwards, whatever happens."""
    await driver.prepare(config)
    task = cast("ContainerTask", await driver.start(config))
    try:
        yield task
    finally:
        await task.destroy(force=True)


async def output_of(driver: Docker, folder: Path, script: str, *args: str, **fields: Any) -> str:
    """Run a shell script to its end; what it wrote, also to stderr."""
    path = folder / f"out-{os.urandom(4).hex()}"
    stream = Stdio.file(path)
    async with running(driver, shell(script, *args, stdout=stream, stderr=stream, **fields)) as task:
        await task.wait()
        return path.read_text()


@asynccontextmanager
async def hosting(
    engine: Engine,
    *plugins: object,
    state_dir: Path | None = None,
    on_exit: Literal["stop", "detach"] = "stop",
    deadlines: Mapping[str, float] | None = None,
    **settings: Any,
) -> AsyncIterator[Host]:
    """An open host with the driver, and whatever drivers it is given besides."""
    config = {
        "drivers": {"docker": {"endpoint": engine.address, **settings}},
        "plugins": {"hooks": []},
        "deadlines": deadlines or {},
    }
    async with Host(config, plugins=[Docker, *plugins], state_dir=state_dir, on_exit=on_exit) as host:
        yield host


def traces(engine: Engine, host_id: str, folder: Path | None = None) -> list[str]:
    """What there is of a host's containers: themselves, control groups, records of output."""
    found = engine.out("ps", "--all", "--quiet", "--filter", f"label=cameleer.host_id={host_id}").split()
    for group in glob.glob(f"/sys/fs/cgroup/**/docker.*{host_id}", recursive=True):
        with suppress(FileNotFoundError):  # it goes while we look
            found += [*(each.path for each in os.scandir(group) if each.is_dir()), group]
    if folder is not None and (folder / "docker").is_dir():
        found += [str(each) for each in (folder / "docker").iterdir()]
    return found


async def until(condition: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
    """Poll until something is so."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"within {patience_s:g} s: {what}"
        await asyncio.sleep(0.02)
    return found


async def written(path: Path) -> str:
    """What a task writes to a file, as soon as there is a line."""
    await until(lambda: path.exists() and path.read_bytes().endswith(b"\n"), f"nothing was written to {path}")
    return path.read_text()
