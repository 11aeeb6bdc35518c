"""Containers as tasks, by a Docker engine.

Ends come from one stream of events, readings from the container's own control group where the engine is on this
machine (:mod:`cameleer.drivers.docker.stats.local`), else from the engine
(:mod:`cameleer.drivers.docker.stats.remote`).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import Capabilities, Driver, Fingerprint, Leftover, RunningTask, TaskEvent
from cameleer.drivers.docker.creation.create import container_name
from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig
from cameleer.drivers.docker.start import Start
from cameleer.drivers.docker.state import State
from cameleer.drivers.docker.streams.output import Streams
from cameleer.drivers.docker.task import (
    AttachedLocal,
    AttachedRemote,
    ContainerTask,
    LocalContainer,
    RemoteContainer,
    has_ended,
)
from cameleer.errors import ConfigError, DriverError, RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.log import fields, log
from cameleer.schema import duration_s
from cameleer.threads import Pool

if TYPE_CHECKING:
    from pathlib import Path

    from tenacity.wait import wait_base

    from cameleer.drivers.cgroup.paths import GroupPaths
    from cameleer.drivers.docker.client.endpoint import Endpoint
    from cameleer.drivers.docker.engine import Engine, EngineInfo
    from cameleer.drivers.docker.events import Inspected
    from cameleer.drivers.docker.images.pulls import Pulls
    from cameleer.drivers.docker.reaper import Reaper
    from cameleer.drivers.docker.stats.parent import Parent, Parents
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle

T = TypeVar("T")

PREFIX: Final = "docker:"
_LABEL: Final = "cameleer."
_EVENTS: Final = 1000
"""Events that wait for one reader; the oldest are dropped."""
_HEALTHY_S: Final = 30.0
_UNHEALTHY_S: Final = 2.0
_CONTAINER: Final = "container:"
_GROUP: Final = "group:"
_THREADS: Final = 4
_FIRST_PAUSE_S: Final = 0.1
_CLEARING_S: Final = 5.0
"""How long the closing waits for an engine that is slow to remove what was begun."""
_LONGEST_PAUSE_S: Final = 2.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What the engine takes for a container's name, and nothing that would change the path of a request."""


class _Retry:
    """5 s × 4ⁿ up to 2 min: how long after the nth failure in a row a reading is tried again."""

    def __get__(self, instance: object, owner: type | None = None) -> wait_base:
        from tenacity import wait_exponential

        return wait_exponential(multiplier=5, exp_base=4, min=5, max=120)


class Docker(Driver):
    """Runs containers.

    Reads never block: a remote container is not read but streamed, and a local one is read from kept descriptors.
    """

    name: ClassVar[str] = "docker"
    task_type: ClassVar[type[RunningTask]] = LocalContainer
    config_schema: ClassVar[type[msgspec.Struct]] = DockerConfig
    task_schema: ClassVar[type[msgspec.Struct]] = DockerTaskConfig
    reads_never_block: ClassVar[bool] = True
    retry: ClassVar[wait_base | None] = cast("wait_base", _Retry())
    capabilities: ClassVar[Capabilities] = Capabilities(
        honours=frozenset(
            {
                "user",
                "image",
                "mounts",
                "devices",
                "ports",
                "dns",
                "network_isolation",
                "cpu_mhz",
                "cpu_quota_cores",
                "cpuset_cpus",
                "memory_bytes",
                "memory_max_bytes",
                "swap_bytes",
                "pids",
                "io_weight",
                "oom_score_adj",
            }
        ),
        fs_isolation="image",
        network_isolation_modes=("host", "group", "task", "none"),
        mount_configs=True,
        dynamic_workload_users=True,
    )

    def __init__(self, config: DockerConfig, node: NodeInfo) -> None:
        super().__init__(config, node)
        self.output_patience_s = duration_s(config.output_patience, "drivers.docker.output_patience")
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._parents: Parents | None = None
        self._pulls: Pulls | None = None
        self._reaper: Reaper | None = None
        self._pool: Pool | None = None
        self._images: dict[str, str] = {}
        self._tasks: dict[str, ContainerTask] = {}
        self._starting: set[str] = set()
        self._clearing: set[asyncio.Task[None]] = set()
        self._undoing: dict[str, asyncio.Task[None]] = {}
        self._readers: set[asyncio.Queue[TaskEvent]] = set()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()

    # -- what tasks share ----------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine; connected to when it is needed.

        :raises ConfigError: its address is wrong.
        """
        if self._engine is None:
            from cameleer.drivers.docker.engine import Engine

            self._engine = Engine(self.config, self._changed.set)
        return self._engine

    async def info(self) -> EngineInfo:
        """What the engine is; asked once, and again after it was away.

        :raises EngineGone: it does not answer.
        """
        if self._info is None or not self.engine.events.connected.is_set():
            self._info = await self.engine.info()
        return self._info

    @property
    def pulls(self) -> Pulls:
        """What gets images."""
        if self._pulls is None:
            from cameleer.drivers.docker.images.pulls import Pulls

            self._pulls = Pulls(self.engine.client, self.config, self._pull_told)
        return self._pulls

    def in_thread(self, function: Callable[[], T], late: Callable[[T], object] | None = None) -> asyncio.Future[T]:
        """Call something that may wait for the kernel."""
        if self._pool is None:
            self._pool = Pool("cameleer-docker-groups", _THREADS)
        return self._pool.call(function, late)

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Healthy while the engine answers; else the reason. Looked at again when the connection changes."""
        last: Fingerprint | None = None
        while True:
            self._changed.clear()
            found = await self._look()
            if found != last:
                yield found
                last = found
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEALTHY_S if found.health == "healthy" else _UNHEALTHY_S):
                    await self._changed.wait()

    async def _look(self) -> Fingerprint:
        from cameleer.drivers.docker.client.failures import EngineGone

        try:
            self._info = await self.engine.info()
        except ConfigError as exc:
            return Fingerprint(health="unhealthy", description=str(exc))
        except EngineGone as exc:
            return Fingerprint(
                health="undetected" if _is_absent(self.engine.endpoint) else "unhealthy", description=str(exc)
            )
        except DriverError as exc:
            return Fingerprint(health="unhealthy", description=str(exc))
        return Fingerprint(attributes=self._info.attributes())

    async def close(self) -> None:
        """Let go of all containers, which live on; end what was being cleared up, as far as the engine answers."""
        self._closing.set()
        async with AsyncExitStack() as closing:  # whatever fails or is cancelled: all of it, the reaper first
            if self._pool is not None:
                closing.callback(self._pool.close)
            for each in (self._engine, self._pulls, self._reaper):
                if each is not None:
                    closing.push_async_callback(each.close)
            for task in list(self._tasks.values()):
                task.let_go()
            await self._end_clearing()

    async def _end_clearing(self) -> None:
        """Wait a while for what is being cleared up; the reaper, where there is one, goes on with the rest."""
        if not self._clearing:
            return
        _, left = await asyncio.wait(set(self._clearing), timeout=_CLEARING_S)
        for each in left:
            each.cancel()
        if left:
            await asyncio.wait(left)
        if left and self._reaper is None:
            log.error(
                "%d containers or their groups may be left: the engine did not answer while the driver closed",
                len(left),
                extra=fields(driver=self.name),
            )

    # -- events --------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield what happens to containers and images: pull progress, OOM, health, ends."""
        queue: asyncio.Queue[TaskEvent] = asyncio.Queue(_EVENTS)
        self._readers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._readers.discard(queue)

    def tell(
        self, config: TaskConfig, message: str, at_ns: int | None, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Tell all who read the events."""
        if not self._readers:
            return
        event = TaskEvent(
            task_id=config.id,
            alloc_id=config.alloc_id,
            task_name=config.name,
            message=message,
            at_ns=at_ns or time.time_ns(),
            annotations=annotations or {},
        )
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def _pull_told(self, task: TaskConfig, message: str, annotations: Mapping[str, str]) -> None:
        self.tell(task, message, None, annotations)

    # -- start ---------------------------------------------------------------------------------------------------

    async def prepare(self, task: TaskConfig) -> None:
        """Have the task's image, pulled where the policy says so.

        :raises ConfigError: the image's name is wrong, or there is none.
        :raises RecoverableError: the registry or the engine cannot be reached.
        :raises UnrecoverableError: there is no such image.
        """
        self._images[task.id] = await self.pulls.ensure(task)

    async def start(self, task: TaskConfig) -> RunningTask:
        """Create and start a container; nothing of it is left where that fails.

        :raises CommandNotFound: the image has no such command.
        :raises CommandNotExecutable: it has, and it cannot be executed.
        :raises ConfigError: a setting is wrong; the message names it.
        :raises RecoverableError: the engine cannot be reached.
        """
        image = self._images.pop(task.id, None) or await self.pulls.ensure(task)
        start = Start(self, task, await self.info())
        if (last := self._undoing.get(task.id)) is not None:  # an attempt that is being undone: it has the same names
            await asyncio.wait([last])
        self._starting.add(task.id)
        try:
            return await start.run(image)
        except asyncio.CancelledError:
            self._undo_later(task.id, start)
            raise
        except Exception as exc:
            try:
                await asyncio.shield(asyncio.ensure_future(start.undo()))
            except (RecoverableError, asyncio.CancelledError):  # the engine has gone, or our caller
                self._undo_later(task.id, start)
            except DriverError as undoing:
                both = [exc, undoing]
                raise ExceptionGroup("a container could not be started, nor what was made of it removed", both) from exc
            raise
        finally:
            self._starting.discard(task.id)

    def _undo_later(self, task_id: str, start: Start) -> None:
        undoing = self._undoing[task_id] = self.clear_up(self._undo(start))
        undoing.add_done_callback(lambda _: self._undoing.pop(task_id, None))

    async def _undo(self, start: Start) -> None:
        """Undo a start, as often as it takes, until we close."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await start.undo()
            except RecoverableError as exc:
                if self._closing.is_set():
                    raise RecoverableError(f"the container {start.name} may be left: {exc}") from exc
            except asyncio.CancelledError:
                await start.give_up()
                raise
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def make_parent(self, task: TaskConfig, info: EngineInfo) -> Parent | None:
        """Make the group around a container, where the engine is on this machine and groups can be made."""
        parents = self.parents(info)
        if parents is None:
            return None
        return await self.in_thread(lambda: parents.make(task), self._remove_later)

    def parents(self, info: EngineInfo) -> Parents | None:
        """The groups around containers; None: the engine is elsewhere, as far as its address tells."""
        if self.config.stats == "remote" or not self.engine.endpoint.is_unix or info.cgroup_driver == "none":
            return None
        if self._parents is None:
            from cameleer.drivers.docker.stats.parent import Parents

            self._parents = Parents(
                self.node,
                info.cgroup_driver,
                info.cgroup_version,
                parent=self.config.cgroup_parent,
                default_cpu_mhz=self.config.default_cpu_mhz,
            )
        return self._parents

    def _remove_later(self, parent: Parent | None) -> None:
        if parent is not None:
            self.clear_up(self.remove_parent(parent))

    async def remove_parent(self, parent: Parent) -> None:
        """Remove a group around a container that is gone; twice without error."""
        await self.in_thread(parent.remove)

    def clear_up(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this even if nobody waits for it any more; the closing does."""
        task = asyncio.get_running_loop().create_task(work)
        self._clearing.add(task)
        task.add_done_callback(self._cleared)
        return task

    def _cleared(self, task: asyncio.Task[None]) -> None:
        self._clearing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("cannot clear up: %s", error, extra=fields(driver=self.name))

    async def reaper(self) -> Reaper | None:
        """What removes our containers when this process dies; None where a later host finds them again."""
        if self.node.recoverable:
            return None
        if self._reaper is None:
            from cameleer.drivers.docker.reaper import Reaper

            self._reaper = Reaper(self.engine.endpoint, self.node.host_id)
        return self._reaper

    def record(self, container_name: str) -> Path | None:
        """Where it is noted what was delivered of a container's output; None: nobody would read it."""
        folder = self.node.state_dir
        if folder is None or not self.node.recoverable:
            return None
        (folder / "docker").mkdir(mode=0o700, exist_ok=True)
        return folder / "docker" / container_name

    def adopt(self, task: ContainerTask, streams: Streams | None = None) -> None:
        """Hear of its end from now on, and follow its output."""
        self._tasks[task.config.id] = task
        self.engine.events.listen(task.container, task)
        if streams is not None:
            task.follow(streams)

    async def remove(self, task: ContainerTask) -> None:
        """Remove a task's container, and what is around it; twice without error."""
        keep = task.config.settings(DockerTaskConfig).keep
        if not keep:
            await self.remove_container(task.container)
        if task.parent is not None:
            with suppress(RecoverableError) if keep else nullcontext():  # it still runs in there
                await self.remove_parent(task.parent)
        if self._reaper is not None:
            await self._reaper.forget(task.container_name)
        self.remove_record(task.container_name)
        self.forget(task)

    def forget(self, task: ContainerTask) -> None:
        """It is no task of ours any more."""
        if self._tasks.get(task.config.id) is task:
            del self._tasks[task.config.id]

    def remove_record(self, container_name: str) -> None:
        """Remove what was noted of a container's output; twice without error."""
        if (record := self.record(container_name)) is not None:
            record.unlink(missing_ok=True)

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container with its anonymous volumes; one that is gone is no error."""
        from cameleer.drivers.docker.client.failures import Conflict

        what = f"remove the container {container[:12]}"
        try:
            await self.engine.sdk.call(what, lambda client: client.remove_container(container, v=True, force=True))
        except TaskNotFound:
            return
        except Conflict as exc:  # somebody else is removing it
            if not await self._has_gone(container):
                raise RecoverableError(str(exc)) from exc

    async def _has_gone(self, container: str) -> bool:
        """Wait a little for a container's end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.engine.timeout_s):
                while True:
                    try:
                        await self.engine.events.inspect(container)
                    except TaskNotFound:
                        return True
                    await asyncio.sleep(_FIRST_PAUSE_S)
        return False

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a container again, also one that ended meanwhile, with its result.

        :raises TaskNotFound: it is gone for good.
        :raises RecoverableError: the engine cannot be reached.
        """
        state = State.of(handle.driver_state)
        self._take_engine_of(state)
        info = await self.info()  # an engine that is not there, or does not let us in, says so at once
        await self.engine.events.ready(self.engine.timeout_s)
        parent = self._parent_of(handle.config, state, info)
        try:
            found = await self._find(handle.config.id, state)
            if found["State"].get("Status") == "created":
                await self.remove_container(str(found["Id"]))
                raise TaskNotFound(f"the container of task {handle.config.id} was never started")
        except TaskNotFound as exc:
            here = self.engine.endpoint
            if state.endpoint not in ("", here.url):  # it is not lost where nobody looks
                raise RecoverableError(
                    f"{exc}: it was started by the engine at {state.endpoint}, and the one at {here.url} was asked "
                    f"({here.source}); drivers.docker.endpoint says which"
                ) from exc
            if parent is not None:
                await self.remove_parent(parent)
            self.remove_record(container_name(handle.config, self.node))
            raise
        task = self.task_of(handle.config, found, parent, was_local=state.local)
        record = self.record(task.container_name)
        streams = None
        if record is not None:
            streams = await Streams.resume(self.engine.client, handle.config, task.container, record=record)
        if handle.started_at_ns is not None:  # the container may have been started again meanwhile
            task.started_at_ns = handle.started_at_ns
        self.adopt(task, streams)
        try:
            task.looked_at(found)
            if has_ended(found["State"]):
                await asyncio.wait([asyncio.ensure_future(task.wait())])
        except BaseException:  # whoever tries again finds it as it was
            self.forget(task)
            task.let_go()
            if streams is not None:
                await streams.close()
            raise
        return task

    def _take_engine_of(self, state: State) -> None:
        """Use the engine that a task was started by, where nobody says which: Nomad loses a driver's configuration."""
        from cameleer.drivers.docker.client.endpoint import find

        if self._engine is None and state.endpoint and find(self.config).source == "default":
            self.config = msgspec.structs.replace(self.config, endpoint=state.endpoint)

    def _parent_of(self, config: TaskConfig, state: State, info: EngineInfo) -> Parent | None:
        """The group around a task's container; also where its host was killed before it could note that."""
        parents = self.parents(info)
        if parents is None or (state.container and state.parent is None):
            return None
        if state.parent is not None:
            return parents.restore(state.parent)
        parent = parents.of(config)
        return parent if parent.exists() else None

    async def _find(self, task_id: str, state: State) -> Inspected:
        """The container of a task: by its id, or by its label where its host was killed before it knew that."""
        if state.container:
            return await self.engine.events.inspect(state.container)
        for each in await self._labelled():
            if each["Labels"].get(f"{_LABEL}task_id") == task_id:
                return await self.engine.events.inspect(str(each["Id"]))
        raise TaskNotFound(f"there is no container of task {task_id}")

    async def _labelled(self) -> list[dict[str, Any]]:
        """All containers of this node and host id."""
        return await self.with_labels(f"{_LABEL}host_id={self.node.host_id}", f"{_LABEL}node_id={self.node.node_id}")

    async def with_labels(self, *labels: str) -> list[dict[str, Any]]:
        """All containers that have these labels, also ended ones."""
        found: list[dict[str, Any]] = await self.engine.sdk.call(
            "list our containers", lambda client: client.containers(all=True, filters={"label": list(labels)})
        )
        return found

    def task_of(
        self, config: TaskConfig, found: Inspected, parent: Parent | None, *, was_local: bool = False
    ) -> ContainerTask:
        """The task of a container that was started."""
        paths = self._paths(found)
        if paths is not None or was_local or (parent is not None and parent.was_used()):
            task: ContainerTask = LocalContainer(config, self, found, parent, paths)
        else:
            task = RemoteContainer(config, self, found, parent)
        task.driver_state = State(
            container=task.container,
            parent=None if parent is None else parent.kept(),
            local=isinstance(task, LocalContainer),
            endpoint=self.engine.endpoint.url,
        ).kept()
        return task

    def _paths(self, found: Inspected) -> GroupPaths | None:
        """The container's group; None: it is not on this machine, or not to be read."""
        from cameleer.drivers.docker.stats import local

        if self.config.stats == "remote":
            return None
        pid = int(found["State"].get("Pid") or 0)
        paths = local.find(str(found["Id"]), pid) if pid > 0 else None
        if paths is None and pid > 0 and self.config.stats == "local":
            raise UnrecoverableError(
                f"drivers.docker.stats is 'local', and the group of container {str(found['Id'])[:12]} is not here"
            )
        return paths

    async def attach(self, ref: str) -> RunningTask:
        """Measure a container that somebody else runs: ``docker:NAME``, or its id.

        :raises TaskNotFound: there is no such container, or it does not run.
        """
        name = ref.removeprefix(PREFIX)
        if not ref.startswith(PREFIX) or not _NAME.fullmatch(name):
            raise TaskNotFound(f"{ref!r} names no container: write docker:NAME, or docker:ID")
        await self.info()  # an engine that is not there says so at once
        await self.engine.events.ready(self.engine.timeout_s)
        found = await self.engine.events.inspect(name)
        if not found["State"].get("Running"):
            raise TaskNotFound(f"the container {name} does not run")
        config = TaskConfig(name=str(found["Name"]).lstrip("/") or name, image=(found.get("Config") or {}).get("Image"))
        paths = self._paths(found)
        task: ContainerTask = AttachedRemote(config, self, found, None)
        if paths is not None:
            task = AttachedLocal(config, self, found, None, paths)
        self.adopt(task)
        return task

    # -- what is left over ---------------------------------------------------------------------------------------

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find containers with our label, and groups around containers, that no handle claims."""
        from cameleer.drivers.docker.client.failures import EngineGone

        kept = {*claimed, *self._tasks, *self._starting}
        found = []
        try:
            info = await self.info()
        except EngineGone:  # where there is no engine, nothing of it is left over
            if self.engine.endpoint.source == "default":
                return ()
            raise
        for each in await self._labelled():
            labels = each["Labels"]
            task_id = str(labels.get(f"{_LABEL}task_id", ""))
            if f"{_LABEL}keep" in labels:  # it may run on, in the group around it
                kept.add(task_id)
            elif task_id not in kept:
                name = next(iter(each.get("Names") or ()), str(each["Id"])[:12]).lstrip("/")
                found.append(
                    Leftover(
                        task_id=task_id,
                        ref=f"{_CONTAINER}{each['Id']}",
                        description=f"container {name} of task {task_id}",
                    )
                )
        parents = self.parents(info)
        if parents is not None:
            groups = await self.in_thread(lambda: parents.leftovers(kept))
            found += [
                Leftover(task_id="", ref=f"{_GROUP}{group.label}", description=f"group {group.cgroup_parent}")
                for group in groups
            ]
        return found

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Remove one of them."""
        if leftover.ref.startswith(_CONTAINER):
            await self.remove_container(leftover.ref.removeprefix(_CONTAINER))
            return
        parents = self.parents(await self.info())
        if parents is None:
            return
        label = leftover.ref.removeprefix(_GROUP)
        for group in await self.in_thread(lambda: parents.leftovers((*self._tasks, *self._starting))):
            if group.label == label:
                await self.remove_parent(group)


def _is_absent(endpoint: Endpoint) -> bool:
    """Whether nobody asked for an engine, and there is none."""
    return endpoint.source == "default" and endpoint.path is not None and not os.path.exists(endpoint.path)
