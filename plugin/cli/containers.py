"""What ``cameleer run`` does for containers alone: their options, and the progress of a pull."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from cameleer.cli import console
from cameleer.cli.capable import acts_upon
from cameleer.cli.options import UsageError
from cameleer.config import Mount, Port
from cameleer.errors import ConfigError, DriverError

if TYPE_CHECKING:
    from argparse import Namespace

    from cameleer.opened import OpenDriver
    from cameleer.task import Task

LOOPBACK = "127.0.0.1"
PULL_POLICIES = ("missing", "always", "never")

_MODES = ("", "ro", "rw")
_FRAME_S = 0.1
_GRACE_S = 1.0
"""For a container whose output nobody reads any more."""


class Volume(NamedTuple):
    """Value of ``--volume``.

    :ivar source: absolute path of the host, or a volume's name; empty: a new one without a name.
    :ivar mode: empty, ``ro`` or ``rw``.
    """

    source: str
    target: str
    mode: str

    @property
    def is_path(self) -> bool:
        """It is a path of the host."""
        return self.source.startswith("/")


def volume(text: str) -> Volume:
    """Read ``SOURCE:TARGET[:ro]``; a source with a slash, or of dots, is a path.

    :raises ConfigError: it is none.
    """
    source, colon, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not colon:
        source, target = "", text
    if mode not in _MODES or not target.startswith("/") or (colon and not source):
        raise ConfigError(
            f"{text!r}: write SOURCE:TARGET or SOURCE:TARGET:ro, where TARGET is an absolute path in the container"
        )
    if "/" in source or source in (".", ".."):
        source = os.path.abspath(source)
    return Volume(source, target, mode)


def port(text: str) -> Port:
    """Read ``[ADDRESS:]HOST:CONTAINER[/udp]``; without an address it is reached from this machine alone.

    :raises ConfigError: it is none.
    """
    numbers, slash, protocol = text.partition("/")
    address, _, host = numbers.rpartition(":")[0].rpartition(":")
    inner = numbers.rpartition(":")[2]
    if slash and protocol not in ("tcp", "udp", "sctp"):
        raise ConfigError(f"{text!r}: the protocol must be tcp, udp or sctp")
    if not all(each.isascii() and each.isdigit() and 0 < int(each) <= 65535 for each in (host, inner)):
        raise ConfigError(f"{text!r}: write HOST:CONTAINER or ADDRESS:HOST:CONTAINER, with ports of 1 to 65535")
    address = address.removeprefix("[").removesuffix("]")
    return Port(
        host_port=int(host),
        container_port=int(inner),
        host_ip=_address(address) if address else LOOPBACK,
        protocol=protocol or "tcp",  # type: ignore[arg-type] # checked above
    )


def _address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ConfigError(f"{text!r} is no IP address; 0.0.0.0 stands for all of this machine's") from None


def fields(options: Namespace, settings: dict[str, Any], driver: OpenDriver) -> dict[str, Any]:
    """What the options of containers ask for, as fields of the task's config.

    :param settings: ``driver_config`` as ``--set`` has it.
    :raises UsageError: the driver has no volumes.
    """
    volumes: list[Volume] = options.volume or []
    for each in volumes:
        if not each.is_path and not acts_upon(driver.cls, "driver_config.volumes"):
            raise UsageError(f"--volume {each.source or each.target}: the driver {driver.name} has paths alone: ./NAME")
    named = [":".join(filter(None, each)) for each in volumes if not each.is_path]
    asked = {"network_mode": options.network, "pull_policy": options.pull, "keep": options.keep or None}
    settings |= {key: value for key, value in asked.items() if value is not None}
    if named:
        before = settings.get("volumes", [])
        settings["volumes"] = [*(before if isinstance(before, list) else [before]), *named]
    return {
        "mounts": [
            Mount(source=each.source, target=each.target, read_only=each.mode == "ro")
            for each in volumes
            if each.is_path
        ],
        "ports": options.publish or [],
        "driver_config": settings,
    }


def name_of(image: str) -> str:
    """A short name for what runs an image's own command: ``busybox`` of ``docker.io/library/busybox:1.36``."""
    return image.rpartition("/")[2].partition("@")[0].partition(":")[0]


async def tell_kept(task: Task) -> None:
    """Say which container ``--keep`` has kept."""
    found = await task.inspect()
    console.say(f"the container {found.get('container_name', task.id)} is kept")


@contextmanager
def ended_without_reader(task: Task) -> Iterator[None]:
    """Stop a container when the reader of the pipe that is our stdout has gone: ``cameleer run … | head``."""
    if not stat.S_ISFIFO(os.fstat(1).st_mode):
        yield
        return
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []
    fd = os.dup(1)  # the loop may watch 1 already

    def gone() -> None:
        loop.remove_reader(fd)
        ending.append(loop.create_task(stop()))

    async def stop() -> None:
        with suppress(DriverError):  # it ended by itself
            await task.stop(_GRACE_S)

    loop.add_reader(fd, gone)  # nothing is ever read from there: the kernel tells an error
    try:
        yield
    finally:
        loop.remove_reader(fd)
        os.close(fd)


class Progress:
    """Shows what a driver says of a task before it runs, on one line of the terminal, while it lasts."""

    def __init__(self, driver: OpenDriver, task_id: str) -> None:
        self._driver = driver
        self._task_id = task_id
        self._text = ""
        self._timer: asyncio.TimerHandle | None = None
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        """Begin to listen, where stderr is a terminal."""
        from cameleer.cli.terminal import dumb

        if os.isatty(2) and not dumb():
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def __aexit__(self, *_: object) -> None:
        """Remove the line."""
        if self._following is None:
            return
        self._following.cancel()
        await asyncio.wait([self._following])
        if self._timer is not None:
            self._timer.cancel()
        if self._text:
            console.write("\r\x1b[K")

    async def _follow(self) -> None:
        async with aclosing(self._driver.events()) as events:
            async for event in events:
                if event.task_id == self._task_id:
                    self._text = " ".join(event.message.split())
                    if self._timer is None:
                        self._timer = asyncio.get_running_loop().call_later(_FRAME_S, self._draw)

    def _draw(self) -> None:
        self._timer = None
        columns = os.get_terminal_size(2).columns or 80
        console.write(f"\r{f'cameleer: {self._text}'[: columns - 1]}\x1b[K")
