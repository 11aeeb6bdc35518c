"""Starting one container, step by step; what was made is undone if a step fails or is cancelled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from cameleer.config import TaskConfig
from cameleer.drivers.docker.client.failures import EngineGone, Malformed
from cameleer.drivers.docker.creation.create import LABEL, arguments, check_warnings
from cameleer.drivers.docker.settings import DockerTaskConfig
from cameleer.drivers.docker.streams.output import Streams
from cameleer.drivers.docker.task import ContainerTask, has_ended
from cameleer.errors import (
    CommandNotExecutable,
    CommandNotFound,
    DriverError,
    PluginShutdown,
    RecoverableError,
    StartError,
    TaskNotFound,
    UnrecoverableError,
)

if TYPE_CHECKING:
    import docker
    from cameleer.drivers.docker.creation.create import Creation
    from cameleer.drivers.docker.driver import Docker
    from cameleer.drivers.docker.engine import EngineInfo
    from cameleer.drivers.docker.stats.parent import Parent

T = TypeVar("T")

_MARK: Final = f"{LABEL}start"
"""Label of a container that tells one attempt to start a task from the next."""
_UNDER_WAY_S: Final = 10.0
"""What the engine was asked for without an answer may come to be, for so long after it answers again."""
_NOT_FOUND = ("executable file not found", "no such file or directory")
_FINAL = ("unable to find user", "unable to find group", "no matching entries in")
"""What the engine tells as a fault of its own, and is none."""
_NOT_EXECUTABLE = ("permission denied", "exec format error", "is a directory")


class Start:
    """The start of one container.

    :ivar name: the container's.
    """

    def __init__(self, driver: Docker, task: TaskConfig, info: EngineInfo) -> None:
        self._driver = driver
        self._task = task
        self._info = info
        self._settings = task.settings(DockerTaskConfig)
        self._mark = os.urandom(8).hex()
        self.name = ""
        self._parent: Parent | None = None
        self._container = ""
        self._streams: Streams | None = None
        self._asked: asyncio.Task[object] | None = None
        self._unanswered = False
        self._answers_since_s: float | None = None

    async def run(self, image: str) -> ContainerTask:
        """Make everything, and start it.

        :param image: the image's id.
        """
        driver, engine = self._driver, self._driver.engine
        await engine.events.ready(engine.timeout_s)
        self._parent = await driver.make_parent(self._task, self._info)
        creation = self._creation(image)
        self.name = creation.name
        reaper = await driver.reaper()
        if reaper is not None:
            await reaper.watch(self.name, () if self._parent is None else self._parent.folders())
        await self._create(creation)
        self._streams = await Streams.connect(
            engine.client, self._task, self._container, record=driver.record(self.name)
        )
        await self._start()
        found = await engine.events.inspect(self._container)
        task = driver.task_of(self._task, found, self._parent)
        driver.adopt(task, self._streams)
        if has_ended(found["State"]):
            task.looked_at(found)
        return task

    def _creation(self, image: str) -> Creation:
        creation = arguments(
            self._task,
            self._settings,
            self._driver.config,
            image=image,
            node=self._driver.node,
            cgroup_parent=None if self._parent is None else self._parent.cgroup_parent,
            info=self._info,
        )
        labels = creation.body["Labels"]
        assert isinstance(labels, dict)
        labels[_MARK] = self._mark
        return creation

    async def _ask(self, what: str, function: Callable[[docker.APIClient], T]) -> T:
        """Ask the engine. What it was asked for it does, also when nobody waits any more: undoing waits for that."""
        asked = asyncio.get_running_loop().create_task(self._driver.engine.sdk.call(what, function))
        self._asked = asked
        return await asyncio.shield(asked)

    async def _create(self, creation: Creation) -> None:
        try:
            warnings = await self._create_once(creation)
        except TaskNotFound:  # the image vanished since it was looked for
            creation.body["Image"] = await self._driver.pulls.ensure(self._task)
            try:
                warnings = await self._create_once(creation)
            except TaskNotFound as exc:
                raise StartError(str(exc)) from exc
        check_warnings(self._task, warnings)

    async def _create_once(self, creation: Creation) -> list[str]:
        """Create it; what the engine warns of."""
        what = f"create the container {self.name}"

        def create(client: docker.APIClient) -> object:
            made: object = client.create_container_from_config(creation.body, creation.name)  # type: ignore[no-untyped-call]
            return made

        self._unanswered = True
        try:
            made = await self._ask(what, create)
        except DriverError as exc:
            self._unanswered = _is_no_answer(exc)
            raise
        if not isinstance(made, dict) or not isinstance(made.get("Id"), str):
            raise RecoverableError(f"{what}: the engine's answer has no Id")
        self._unanswered = False
        self._container = made["Id"]
        return [str(each) for each in made.get("Warnings") or ()]

    async def _start(self) -> None:
        try:
            await self._ask(f"start the container {self.name}", lambda client: client.start(self._container))
        except UnrecoverableError as exc:
            raise self._refused(exc) from exc
        except RecoverableError as exc:
            if any(each in str(exc) for each in _FINAL):
                raise StartError(str(exc)) from exc
            raise

    def _refused(self, error: DriverError) -> DriverError:
        """What the runtime says of a command that it cannot execute, as the contract's errors."""
        text = str(error)
        if "exec" in text or "OCI runtime" in text:
            if any(each in text for each in _NOT_EXECUTABLE):
                return CommandNotExecutable(text)
            if any(each in text for each in _NOT_FOUND):
                return CommandNotFound(text)
        return StartError(text)

    # -- undoing -------------------------------------------------------------------------------------------------

    async def undo(self) -> None:
        """Remove what was made; may be tried again.

        :raises DriverError: something could not be removed.
        """
        driver = self._driver
        if self._asked is not None:
            await asyncio.wait([self._asked])
            error = self._asked.exception()
            if isinstance(error, DriverError) and not _is_no_answer(error):
                self._unanswered = False
        if self._streams is not None:
            await self._streams.close()
        if self._container:
            await driver.remove_container(self._container)
        if self._parent is not None:
            await driver.remove_parent(self._parent)
        if not self.name:
            return
        driver.remove_record(self.name)
        if self._unanswered:
            await self._remove_unanswered()
        reaper = await driver.reaper()
        if reaper is not None:
            await reaper.forget(self.name)

    async def give_up(self) -> None:
        """Wait no more for what the engine was asked for."""
        if self._asked is not None and not self._asked.done():
            self._asked.cancel()
            await asyncio.wait([self._asked])

    async def _remove_unanswered(self) -> None:
        """Remove the container that the engine made without saying so.

        :raises RecoverableError: there is none, and it may still be made.
        """
        found = await self._driver.with_labels(f"{_MARK}={self._mark}")
        for each in found:
            await self._driver.remove_container(str(each["Id"]))
        now = asyncio.get_running_loop().time()
        if self._answers_since_s is None:
            self._answers_since_s = now
        if not found and now - self._answers_since_s < _UNDER_WAY_S:
            raise RecoverableError("the engine did not say whether it has made it")
        self._unanswered = False


def _is_no_answer(error: DriverError) -> bool:
    """Whether nobody knows what the engine did: it has not answered, or with nonsense, or we hung up."""
    return isinstance(error, EngineGone | Malformed | PluginShutdown)
