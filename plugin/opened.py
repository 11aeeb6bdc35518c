"""A driver that is open: its calls have deadlines, its reads a thread if they may block, its failures are counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cameleer.blocking import BlockingDriver
from cameleer.driver import Capabilities, Driver, Fingerprint, capabilities_of
from cameleer.errors import ConfigError, RecoverableError, UnrecoverableError
from cameleer.log import fields, log
from cameleer.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cameleer.calls import Calls
    from cameleer.config import TaskConfig
    from cameleer.driver import DriverBase, Leftover, NetworkSpec, RunningTask, TaskEvent
    from cameleer.figures import Tally
    from cameleer.node import NodeInfo
    from cameleer.plugins import Plugins
    from cameleer.settings import Settings
    from cameleer.task import TaskHandle

T = TypeVar("T")

_FIELDS_TO_HONOUR = ("user", "image", "mounts", "devices", "ports", "dns", "network_isolation", "cgroup_path")


@dataclass(frozen=True, kw_only=True)
class DriverInfo:
    """What ``Host.drivers()`` says of one driver.

    :ivar health: ``undetected``, ``unhealthy`` or ``healthy``.
    :ivar health_description: the reason, for people.
    :ivar distribution: the installed package that it came with; empty for a class that was handed over.
    :ivar attributes: what it found, each a value and its unit.
    """

    name: str
    health: str
    health_description: str
    capabilities: Capabilities
    distribution: str = ""
    version: str = ""
    attributes: Mapping[str, tuple[str | int | float | bool, str]] = field(default_factory=dict)


class OpenDriver:
    """The opened driver behind the host's deadlines: what ``Host.driver(name)`` returns.

    :ivar cls: the class that declares name, schemas and capabilities.
    :ivar problem: why the host holds it for unhealthy; None while it behaves.
    :ivar failing: what of it fails at the moment; while there is something, it stays unhealthy.
    :ivar reader: the thread in which its tasks are read; None where reads cannot block.
    """

    def __init__(self, cls: type[DriverBase], driver: Driver, calls: Calls, settings: Settings, tally: Tally) -> None:
        self.cls = cls
        self.name = cls.name
        self.capabilities = capabilities_of(cls)
        self.problem: str | None = None
        self.failing: set[object] = set()
        self.reader = None if cls.reads_never_block else Worker(f"cameleer-{cls.name}-read")
        self._driver = driver
        self._calls = calls
        self._deadlines = settings.deadlines
        self._tally = tally

    def check(self, task: TaskConfig) -> None:
        """Refuse a task that asks for what this driver cannot give, before anything is done for it.

        :raises ConfigError: names the field and its value.
        """
        task.settings(self.cls.task_schema)
        honours = self.capabilities.honours
        for name in _FIELDS_TO_HONOUR:
            if getattr(task, name) and name not in honours:
                raise ConfigError(
                    f"TaskConfig.{name} is {getattr(task, name)!r}: the driver {self.name} has no use for it"
                )
        for name in type(task.resources).__dataclass_fields__:
            value = getattr(task.resources, name)
            if value is not None and name not in honours:
                raise ConfigError(f"Resources.{name} is {value!r}: the driver {self.name} cannot hold it")

    async def call(
        self,
        method: str,
        work: Coroutine[Any, Any, T],
        deadline_s: float | None,
        late: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Await one of the driver's or its tasks' methods; a success makes it healthy again."""
        who = f"{self.name}.{method}"
        try:
            result = await self._calls.call(
                who, work, deadline_s, late=late, abandoned=lambda: self._abandoned(who, deadline_s)
            )
        except RecoverableError:
            self._tally.errors[self.name] += 1
            raise
        self.behaves()
        return result

    def _abandoned(self, who: str, deadline_s: float | None) -> None:
        self._tally.abandoned[self.name] += 1
        self.misbehaves(f"{who} did not return within {deadline_s:g} s")

    def misbehaves(self, problem: str) -> None:
        """Hold the driver for unhealthy until something of it succeeds."""
        if self.problem is None:
            log.error("the driver %s is unhealthy: %s", self.name, problem, extra=fields(driver=self.name))
        self.problem = problem

    def behaves(self) -> None:
        """Something of it succeeded."""
        if self.problem is not None and not self.failing:
            log.warning("the driver %s works again", self.name, extra=fields(driver=self.name))
            self.problem = None

    async def open(self) -> None:
        """Open it."""
        await self.call("open", self._driver.open(), self._deadlines.call)

    async def close(self) -> None:
        """Close it, and end its thread."""
        try:
            await self.call("close", self._driver.close(), self._deadlines.call)
        finally:
            if self.reader is not None:
                self.reader.close()

    async def prepare(self, task: TaskConfig) -> None:
        """Make ready what tasks share."""
        await self.call("prepare", self._driver.prepare(task), self._deadlines.prepare)

    async def start(self, task: TaskConfig) -> RunningTask:
        """Start a task; one that appears after its start was given up is removed."""
        return await self.call("start", self._driver.start(task), self._deadlines.start, self.remove)

    async def remove(self, running: RunningTask) -> None:
        """End and free a task that nobody owns."""
        await self.call("destroy", running.destroy(force=True), self._deadlines.start)

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a task again."""
        return await self.call("recover", self._driver.recover(handle), self._deadlines.start)

    async def attach(self, ref: str) -> RunningTask:
        """Measure what others run."""
        return await self.call("attach", self._driver.attach(ref), self._deadlines.start)

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Yield the driver's health whenever it changes; what the host knows of it comes before its own word.

        A driver that was unhealthy by its own word and is healthy again has mended what the host held against it too.
        """
        source = self._driver.fingerprint()
        was_unhealthy = False
        try:
            async for found in source:
                if was_unhealthy and found.health == "healthy":
                    self.behaves()
                was_unhealthy = found.health != "healthy"
                yield self._overruled(found)
        finally:
            await source.aclose()

    def _overruled(self, found: Fingerprint) -> Fingerprint:
        if self.problem is None:
            return found
        return Fingerprint(health="unhealthy", description=self.problem, attributes=found.attributes)

    async def health(self) -> Fingerprint:
        """Ask the driver once how it is."""
        problem = self.problem
        source = self._driver.fingerprint()
        try:
            found = await self.call("fingerprint", _first(source), self._deadlines.call)
        except (RecoverableError, UnrecoverableError) as error:
            return Fingerprint(health="unhealthy", description=str(error))
        if problem is not None:  # that it answers this does not mend what it did before
            self.problem = problem
            return self._overruled(found)
        return found

    def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield what happens to the driver's tasks."""
        return self._driver.events()

    async def create_network(self, alloc_id: str, hostname: str) -> tuple[NetworkSpec, bool]:
        """Make the network of an allocation."""
        return await self.call("create_network", self._driver.create_network(alloc_id, hostname), self._deadlines.start)

    async def destroy_network(self, alloc_id: str, spec: NetworkSpec) -> None:
        """Remove such a network."""
        await self.call("destroy_network", self._driver.destroy_network(alloc_id, spec), self._deadlines.start)

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find what its tasks left behind."""
        return await self.call("leftovers", self._driver.leftovers(claimed), self._deadlines.start)

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Remove one of them."""
        await self.call("remove_leftover", self._driver.remove_leftover(leftover), self._deadlines.start)


async def _first(source: AsyncGenerator[Fingerprint, None]) -> Fingerprint:
    try:
        return await anext(source)
    finally:
        await source.aclose()


async def open_driver(
    name: str, *, plugins: Plugins, calls: Calls, settings: Settings, node: NodeInfo, tally: Tally
) -> OpenDriver:
    """Import, construct and open a driver.

    :raises PluginError: there is no such driver, or it was refused.
    :raises ConfigError: its settings are wrong.
    """
    from cameleer.schema import decode

    cls = plugins.driver_class(name)
    config = decode(cls.config_schema, settings.drivers.get(name, {}), f"drivers.{name}")
    driver: Driver
    if issubclass(cls, BlockingDriver):
        from cameleer.adapter import AdaptedDriver

        driver = AdaptedDriver(cls(config, node))
    else:
        assert issubclass(cls, Driver)
        driver = cls(config, node)
    opened = OpenDriver(cls, driver, calls, settings, tally)
    await opened.open()
    return opened
