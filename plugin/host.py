"""The host: finds drivers and hooks, starts tasks, knows their ends, measures those that somebody looks at."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from cameleer.calls import Calls
from cameleer.config import TaskConfig
from cameleer.dispatch import Dispatcher
from cameleer.driver import Capabilities, Driver
from cameleer.errors import ConfigError, DriverError, PluginError, PluginShutdown, UnrecoverableError
from cameleer.figures import Figures, Tally
from cameleer.life import Life
from cameleer.log import fields, log
from cameleer.measuring import Collector
from cameleer.node import NodeInfo
from cameleer.opened import DriverInfo, OpenDriver, open_driver
from cameleer.plugins import MissingExtra, Plugins, RefusedPlugin
from cameleer.settings import Settings
from cameleer.state import StateDir
from cameleer.status import Cause, ExitResult
from cameleer.task import Task, TaskHandle

if TYPE_CHECKING:
    from cameleer.driver import Leftover
    from cameleer.telemetry import Telemetry


class Host:
    """Runs and measures tasks inside an asyncio program: ``async with Host() as host: …``.

    Its methods belong to the event loop in which it was entered.

    :param config: settings shaped as the TOML file is (``telemetry``, ``drivers``, ``deadlines``, ``plugins``), or the
        path of such a file.
    :param plugins: driver classes and hook plugins besides those that are installed.
    :param state_dir: folder for the handles, so that tasks can outlive this host; None: nothing is kept.
    :param node: the machine, where an orchestrator knows better; detected otherwise.
    :param on_exit: ``stop`` all tasks on leaving, or ``detach``: they stay with their supervisors.
    :raises ConfigError: a setting is wrong, or ``detach`` is asked for without a ``state_dir``.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        plugins: Iterable[object] = (),
        state_dir: str | os.PathLike[str] | None = None,
        node: NodeInfo | None = None,
        on_exit: Literal["stop", "detach"] = "stop",
    ) -> None:
        if on_exit not in ("stop", "detach"):
            raise ConfigError(f"on_exit is {on_exit!r}: use 'stop' or 'detach'")
        if on_exit == "detach" and state_dir is None:
            raise ConfigError("on_exit='detach' needs a state_dir: without one nobody would find the tasks again")
        self.settings = Settings.of(config)
        self._plugins = Plugins(self.settings, plugins)
        self._telemetry = self.settings.telemetry
        self._state_dir = state_dir
        self._given_node = node
        self._on_exit = on_exit
        self._lives: dict[str, Life] = {}
        self._tasks: dict[str, Task] = {}
        self._drivers: dict[str, asyncio.Task[OpenDriver]] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._tally = Tally()
        self._open = False
        self._closing = False
        self.tasks: Mapping[str, Task] = MappingProxyType(self._tasks)
        self.unrecovered: dict[str, str] = {}
        self.node: NodeInfo
        self.state: StateDir
        self.calls: Calls
        self.collector: Collector
        self.hooks: Dispatcher

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<Host {state}, {len(self._lives)} tasks>"

    # -- open and close ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Host:
        """Open the host: load the hook plugins; drivers are opened when they are first used."""
        if self._open or self._closing:
            raise RuntimeError("a Host is entered once")
        self.state = StateDir(self._state_dir)
        try:
            self.node = self._node()
            self.calls = Calls()
            deadline_s = self.settings.deadlines.call
            self.hooks = Dispatcher(self._plugins.load_hooks(self), self.calls, deadline_s)
            self.collector = Collector(self._telemetry, self.calls, self._tally, self.hooks.publish, deadline_s)
        except BaseException:
            self.state.close(remove=True)
            raise
        self._open = True
        if not self._telemetry.publish_allocation_metrics:
            for name in self.hooks.consumers:
                log.info(
                    "plugin %s receives nothing: telemetry.publish_allocation_metrics is false", name, extra=fields()
                )
        return self

    def _node(self) -> NodeInfo:
        host_id = self.state.host_id()
        given = self._given_node
        if given is None:
            from cameleer.node import detect

            found = detect(host_id=host_id, state_dir=self.state.path, recoverable=self.state.keeps_handles)
            kept = self.state.node()
            return found if kept is None else dataclasses.replace(found, node_id=kept[0], node_name=kept[1])
        self.state.keep_node(given.node_id, given.node_name)
        return dataclasses.replace(
            given,
            host_id=given.host_id or host_id,
            state_dir=self.state.path,
            recoverable=self.state.keeps_handles,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the host, however the body ended; a cancellation meanwhile is obeyed after the closing."""
        closing = asyncio.get_running_loop().create_task(self._close())
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as exc:
                if closing.cancelled():
                    raise
                cancelled = exc
        closing.result()
        if cancelled is not None:
            raise cancelled

    async def _close(self) -> None:
        self._closing = True
        for starting in list(self._starting):
            starting.cancel()
        if self._starting:
            await asyncio.wait(self._starting, timeout=self.settings.deadlines.call)
        await asyncio.gather(*(self._end(life) for life in list(self._lives.values())), return_exceptions=True)
        await self.hooks.event("shutdown")
        self.collector.close()
        await self.hooks.close()
        await asyncio.gather(*(self._close_driver(opening) for opening in self._drivers.values()))
        await self.calls.close(self.settings.deadlines.call)
        self._open = False
        self.state.close(remove=True)

    async def _end(self, life: Life) -> None:
        """End or leave one task at the closing of the host."""
        try:
            out_of_reach = life.running is None and not life.over
            if life.info.attached or out_of_reach or self._on_exit == "detach":
                await life.leave()
            else:
                if not life.over:
                    await life.stop(None, None, Cause.CLOSING)
                await life.destroy(force=True)
        except Exception as exc:  # the other tasks are ended all the same
            log.error("cannot end task %s: %r", life.id, exc, exc_info=exc, extra=fields(task_id=life.id))
            await life.leave()

    async def _close_driver(self, opening: asyncio.Task[OpenDriver]) -> None:
        try:
            driver = await opening
            await driver.close()
        except Exception as exc:  # the other drivers are closed all the same
            log.error("cannot close a driver: %s", exc, extra=fields())

    # -- drivers -------------------------------------------------------------------------------------------------

    async def driver(self, name: str) -> OpenDriver:
        """Return the opened driver behind the host's deadlines: fingerprint, events, networks.

        :raises PluginError: there is no such driver, or it was refused; the message says why.
        :raises ConfigError: its settings are wrong.
        """
        self._check_open()
        opening = self._drivers.get(name)
        if opening is None:
            opening = self._drivers[name] = asyncio.get_running_loop().create_task(
                open_driver(
                    name,
                    plugins=self._plugins,
                    calls=self.calls,
                    settings=self.settings,
                    node=self.node,
                    tally=self._tally,
                )
            )
            opening.add_done_callback(lambda done: self._opened(name, done))
        return await asyncio.shield(opening)

    def _opened(self, name: str, opening: asyncio.Task[OpenDriver]) -> None:
        if opening.cancelled() or opening.exception() is not None:  # the next caller tries again
            self._drivers.pop(name, None)

    async def drivers(self) -> list[DriverInfo]:
        """Ask every driver how it is. One that was refused is in :attr:`refused` instead."""
        found = await asyncio.gather(*(self._driver_info(name) for name in sorted(self._plugins.drivers())))
        return [info for info in found if info is not None]

    async def _driver_info(self, name: str) -> DriverInfo | None:
        distribution, version = self._plugins.drivers()[name].origin

        def info(health: str, description: str, capabilities: Capabilities, attributes: Any = ()) -> DriverInfo:
            return DriverInfo(
                name=name,
                health=health,
                health_description=description,
                capabilities=capabilities,
                distribution=distribution,
                version=version,
                attributes=dict(attributes),
            )

        try:
            driver = await self.driver(name)
        except MissingExtra as exc:
            return info("undetected", str(exc), Capabilities())
        except PluginError:
            return None
        except DriverError as exc:
            return info("unhealthy", str(exc), Capabilities())
        found = await driver.health()
        return info(found.health, found.description, driver.capabilities, found.attributes)

    @property
    def refused(self) -> tuple[RefusedPlugin, ...]:
        """Plugins that were not loaded, and why."""
        return tuple(self._plugins.refused)

    # -- tasks ---------------------------------------------------------------------------------------------------

    async def start(self, config: TaskConfig, driver: str = "raw_exec") -> Task:
        """Start a task; returns when it runs and every ``poststart`` hook has run.

        :raises ConfigError: the configuration does not fit the driver, or the id is already known.
        :raises PluginError: there is no such driver.
        :raises RecoverableError: it may work later.
        :raises UnrecoverableError: it cannot work. Nothing is left behind in any case.
        """
        return (await self._start(config, driver)).task

    async def _start(self, config: TaskConfig, driver: str) -> Life:
        opened = await self.driver(driver)
        opened.check(config)
        self._check_open()
        life = self._enter(Life(self, opened, config))
        starting = asyncio.get_running_loop().create_task(life.start())
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            if starting.cancelled() and self._closing:
                raise PluginShutdown(f"the host closed while task {config.id} was starting") from None
            starting.add_done_callback(_seen)
            if not starting.cancel() and life.running is not None:  # it had started in this very moment
                self.calls.spawn(life.cancel())
            raise
        return life

    def _enter(self, life: Life) -> Life:
        if life.id in self._lives:
            raise ConfigError(f"TaskConfig.id is {life.id!r}: a task of this id is already known")
        self._lives[life.id] = life
        self._tasks[life.id] = life.task
        return life

    def forget(self, life: Life) -> None:
        """For the task's own life: it is destroyed."""
        if self._lives.get(life.id) is life:
            del self._lives[life.id]
            del self._tasks[life.id]

    async def run(self, config: TaskConfig, driver: str = "raw_exec") -> ExitResult:
        """Run a task to its end and remove it. Cancelling this stops the task, which then counts as cancelled."""
        life = await self._start(config, driver)
        try:
            result = await life.wait()
        except asyncio.CancelledError:
            ending = self.calls.spawn(life.cancel())
            await asyncio.wait([ending])
            raise
        try:
            await life.destroy(force=True)
        except DriverError as exc:  # the result is worth more
            log.error("cannot remove task %s: %s", life.id, exc, extra=fields(task_id=life.id, driver=driver))
        return result

    async def attach(self, ref: str, driver: str = "raw_exec") -> Task:
        """Measure something that others run; it is never stopped or removed by us.

        :param ref: as the driver names it: a process id for ``raw_exec``.
        :raises NotSupported: the driver cannot.
        :raises TaskNotFound: there is no such thing.
        """
        opened = await self.driver(driver)
        running = await opened.attach(ref)
        life = self._enter(Life(self, opened, running.config, attached=True))
        await life.attach(running)
        return life.task

    async def recover(self, handle: TaskHandle | None = None) -> list[Task]:
        """Find tasks again that were started before this host.

        One that runs gets ``poststart`` again, one that ended meanwhile gets ``exited`` only. What cannot be recovered
        for now keeps its handle: its reason is in :attr:`unrecovered`, or its state is ``unknown`` and it is tried
        again in the background.

        :param handle: this one; None: all that the state folder keeps.
        """
        self._check_open()
        handles = [handle] if handle is not None else self.state.handles()
        unknown = [each for each in handles if each.config.id not in self._lives]
        found = await asyncio.gather(*(self._recover(each) for each in unknown))
        return [task for task in found if task is not None]

    async def _recover(self, handle: TaskHandle) -> Task | None:
        task_id = handle.config.id
        try:
            opened = await self.driver(handle.driver)
        except DriverError as exc:
            self.unrecovered[task_id] = str(exc)
            log.error(
                "task %s keeps its handle and cannot be recovered: %s",
                task_id,
                exc,
                extra=fields(task_id=task_id, driver=handle.driver),
            )
            return None
        self.unrecovered.pop(task_id, None)
        life = self._enter(Life(self, opened, handle.config))
        await life.recover(handle)
        return life.task if task_id in self._lives else None

    async def leftovers(self) -> list[tuple[str, Leftover]]:
        """Find what tasks of this node and host id left behind: pairs of driver name and leftover."""
        claimed = {handle.config.id for handle in self.state.handles()} | self._lives.keys()
        found: list[tuple[str, Leftover]] = []
        for name in sorted(self._plugins.drivers()):
            try:
                driver = await self.driver(name)
                if driver.cls.__dict__.get("leftovers", Driver.leftovers) is not Driver.leftovers:
                    found += [(name, each) for each in await driver.leftovers(claimed)]
            except MissingExtra:  # so it has never been used here
                continue
            except DriverError as exc:
                log.warning("cannot look for leftovers of %s: %s", name, exc, extra=fields(driver=name))
        return found

    async def remove_leftover(self, driver: str, leftover: Leftover) -> None:
        """Remove one of them."""
        await (await self.driver(driver)).remove_leftover(leftover)

    # -- measuring -----------------------------------------------------------------------------------------------

    @property
    def telemetry(self) -> Telemetry:
        """What is measured and published; assign another to switch while tasks run."""
        return self._telemetry

    @telemetry.setter
    def telemetry(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        if self._open:
            self.collector.switch(telemetry)

    def publish(self, task: Task) -> None:
        """Publish a task's readings to the hook plugins, as long as ``publish_allocation_metrics`` is on."""
        life = self._lives.get(task.id)
        if life is not None:
            self.collector.wish(life)

    def unpublish(self, task: Task) -> None:
        """Publish them no more."""
        life = self._lives.get(task.id)
        if life is not None:
            self.collector.unwish(life)

    @property
    def figures(self) -> Figures:
        """What measuring has cost since the host opened."""
        tally = self._tally
        return Figures(
            sweeps=tally.sweeps,
            readings=tally.readings,
            cpu_ns=tally.cpu_ns,
            cpu_ns_per_sweep=tally.cpu_ns / tally.sweeps if tally.sweeps else None,
            late_ticks=tally.late_ticks,
            missed_ticks=tally.missed_ticks,
            dropped=tally.dropped,
            dropped_by_plugin=dict(self.hooks.dropped),
            errors_by_driver=dict(tally.errors),
            abandoned_by_driver=dict(tally.abandoned),
            measured_tasks=self.collector.measured_tasks,
        )

    def hook_results(self, name: str, **arguments: object) -> Sequence[Any]:
        """Call a front door's hook (``http_routes``, ``cli_commands``) and gather what every plugin returns."""
        results: list[Any] = []
        for implementation in reversed(getattr(self.hooks.manager.hook, name).get_hookimpls()):
            try:
                wanted = {key: arguments[key] for key in implementation.argnames}
                results += implementation.function(**wanted) or ()
            except Exception:  # that plugin's own affair
                log.exception("plugin %s failed in %s", implementation.plugin_name, name, extra=fields())
        return results

    def _check_open(self) -> None:
        if self._closing:
            raise PluginShutdown("the host is closing: it takes nothing new")
        if not self._open:
            raise UnrecoverableError("the host is not open: use it inside 'async with Host() as host'")


def _seen(done: asyncio.Task[None]) -> None:
    if not done.cancelled():
        done.exception()
