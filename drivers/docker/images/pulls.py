"""Images: looked for, and pulled where the policy says so.

One pull serves all who want the same image with the same credentials. It goes through our own client, without a
thread, so the last caller who leaves ends it at once: the engine gives up a pull whose connection is closed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from cameleer.config import TaskConfig
from cameleer.drivers.docker.client.failures import EngineGone, worded
from cameleer.drivers.docker.images import credentials
from cameleer.drivers.docker.images.image import ImageName
from cameleer.drivers.docker.settings import DockerTaskConfig
from cameleer.errors import (
    ConfigError,
    DriverError,
    PluginShutdown,
    RecoverableError,
    StartError,
    StartRecoverable,
    TaskNotFound,
    UnrecoverableError,
)
from cameleer.schema import duration_s
from cameleer.threads import Pool

if TYPE_CHECKING:
    from cameleer.drivers.docker.client.http import Client
    from cameleer.drivers.docker.images.credentials import Credentials
    from cameleer.drivers.docker.settings import DockerConfig

Told = Callable[[TaskConfig, str, Mapping[str, str]], object]
"""Is told of a pull's progress: whose image, a line of text, annotations."""

_EVENT_S: Final = 1.0
_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_DISK_FULL: Final = ("no space left on device", "disk quota exceeded")
_FINAL: Final = (
    "access denied",
    "denied:",
    "unauthorized",
    "no basic auth credentials",
    "authentication required",
    "incorrect username or password",
    "manifest unknown",
    "not found",
    "does not exist",
    "no matching manifest",
    "manifest invalid",
    "invalid manifest",
    "unsupported",
    "mediatype",
    "media type",
    "not supported",
    "schema version",
    "invalid reference",
    "invalid digest",
    "invalid checksum",
    "verification failed",
    "http response to https client",
    "x509:",
    "certificate",
)
"""What the engine says where trying again cannot help; all else may be a network's or a registry's bad moment."""
_PASSING: Final = ("no such host", "connection refused", "timeout", "toomanyrequests", "too many requests")
"""Looked for first: such an error may quote others."""
_URL: Final = re.compile(r"""\bhttps?://[^\s"']+""")
_VERSION: Final = r"(?::\w[\w.-]*)?(?:@[\w+.-]+:[0-9a-fA-F]+)?"


class Pulls:
    """The images of one engine."""

    def __init__(self, client: Client, config: DockerConfig, told: Told = lambda task, text, annotations: None) -> None:
        """Do nothing yet.

        :param told: told of the progress, about once a second for each task that waits.
        :raises ConfigError: the timeout is none.
        """
        self._client = client
        self._config = config
        self._told = told
        self._timeout_s = duration_s(config.pull_timeout, "drivers.docker.pull_timeout")
        self._call_s = duration_s(config.call_timeout, "drivers.docker.call_timeout")
        self._running: dict[tuple[str, str], _Pull] = {}
        self._ending: set[asyncio.Task[str]] = set()
        self._pool = Pool("cameleer-docker-credentials", 2)
        self._closed = False

    async def ensure(self, task: TaskConfig) -> str:
        """Have a task's image, and say its id, by which the container is to be created.

        :raises ConfigError: the image's name is wrong, or there is none.
        :raises RecoverableError: registry or engine cannot be reached, or the engine's disk is full.
        :raises UnrecoverableError: there is no such image, or we may not have it.
        """
        if not task.image:
            raise ConfigError(f"TaskConfig.image is {task.image!r}: a container needs an image")
        settings = task.settings(DockerTaskConfig)
        policy = settings.pull_policy or self._config.pull_policy
        if _ID.fullmatch(task.image):
            return await self._by_id(task.image)
        image = ImageName.parse(task.image)
        if policy != "always" and (found := await self._look(image.reference)) is not None:
            return found
        if policy == "never":
            raise StartError(f"the engine has no image {image.familiar}, and the pull policy is 'never'")
        return await self._pulled(image, task, await self._credentials(image, settings))

    async def close(self) -> None:
        """End all pulls; who waits for one gets PluginShutdown."""
        self._closed = True
        for pull in list(self._running.values()):
            pull.work.cancel()
            self._ending.add(pull.work)
        if self._ending:
            await asyncio.wait(set(self._ending))
        self._pool.close()

    async def _by_id(self, image_id: str) -> str:
        found = await self._look(image_id)
        if found is None:
            raise StartError(f"the engine has no image {image_id}, and an id cannot be pulled")
        return found

    async def _look(self, reference: str) -> str | None:
        """The id of an image that the engine has."""
        path = f"/images/{quote(reference, safe='/:@')}/json"
        try:
            answer = await self._client.request(
                "GET", path, timeout_s=self._call_s, what=f"look for the image {reference}"
            )
        except UnrecoverableError as exc:
            if isinstance(exc, TaskNotFound) or "no such image" in str(exc).lower():
                return None
            raise
        found = answer.json()
        image_id = found.get("Id") if isinstance(found, dict) else None
        if not isinstance(image_id, str):
            raise RecoverableError(f"look for the image {reference}: the engine's answer has no id")
        return image_id

    async def _credentials(self, image: ImageName, settings: DockerTaskConfig) -> Credentials:
        found = credentials.given(image, settings, self._config)
        if found is not None:
            return found
        try:
            async with asyncio.timeout(self._call_s):
                return await self._pool.call(lambda: credentials.of_user(image.domain))
        except TimeoutError as exc:
            raise StartRecoverable(
                f"the credential helper of the user's docker configuration did not answer for {image.domain} within "
                f"{self._call_s:g} s"
            ) from exc

    async def _pulled(self, image: ImageName, task: TaskConfig, who: Credentials) -> str:
        if self._closed:
            raise PluginShutdown("the driver docker is closed")
        key = (image.reference, who.header)
        pull = self._running.get(key)
        if pull is None:
            pull = self._running[key] = _Pull(image, who, self._told)
            pull.work = asyncio.get_running_loop().create_task(self._pull(pull), name=f"pull {image.familiar}")
            pull.work.add_done_callback(lambda work: self._ended(key, work))
        pull.callers.append(task)
        try:
            pull.tell([task])
            return await asyncio.shield(pull.work)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if pull.work.cancelled() and current is not None and not current.cancelling():
                raise PluginShutdown("the driver docker was closed during a pull") from None
            raise
        finally:
            pull.callers.remove(task)
            if not pull.callers and not pull.work.done():
                pull.work.cancel()
                self._ending.add(pull.work)
                if self._running.get(key) is pull:  # the next caller begins anew
                    del self._running[key]

    def _ended(self, key: tuple[str, str], work: asyncio.Task[str]) -> None:
        self._ending.discard(work)
        pull = self._running.get(key)
        if pull is not None and pull.work is work:
            del self._running[key]
        if not work.cancelled():
            work.exception()  # it was told to whoever waited; where nobody did, it is nobody's

    async def _pull(self, pull: _Pull) -> str:
        image = pull.image
        what = f"pull {image.familiar}"
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._stream(pull, what)
        except TimeoutError as exc:
            raise StartRecoverable(
                f"{what}: not done within {self._config.pull_timeout} (drivers.docker.pull_timeout)"
            ) from exc
        found = await self._look(image.reference)
        if found is None:
            raise StartRecoverable(f"{what}: the engine ended it and does not have the image")
        pull.done()
        return found

    async def _stream(self, pull: _Pull, what: str) -> None:
        headers = {"X-Registry-Auth": pull.who.header} if pull.who.header else {}
        query = {"fromImage": pull.image.name, "tag": pull.image.version}
        try:
            async with self._client.stream(
                "POST", "/images/create", query=query, headers=headers, timeout_s=self._timeout_s, what=what
            ) as stream:
                async for each in stream.json():
                    if isinstance(each, dict):
                        pull.heard(each)
        except _Refused as exc:
            raise failure(what, str(exc), pull.image, pull.who) from None
        except (EngineGone, TimeoutError):
            raise
        except DriverError as exc:
            raise failure("", str(exc), pull.image, pull.who, final=isinstance(exc, UnrecoverableError)) from exc


class _Refused(Exception):
    """The engine's own error, in the middle of a pull."""


class _Pull:
    """One pull and who waits for it.

    :ivar work: ends with the image's id.
    """

    work: asyncio.Task[str]

    def __init__(self, image: ImageName, who: Credentials, told: Told) -> None:
        self.image = image
        self.who = who
        self.callers: list[TaskConfig] = []
        self._told = told
        self._progress = Progress()
        self._began_s = asyncio.get_running_loop().time()
        self._next_s = self._began_s + _EVENT_S

    def heard(self, line: Mapping[str, Any]) -> None:
        """Take one of the engine's lines.

        :raises _Refused: it is an error.
        """
        if (error := line.get("error")) or line.get("errorDetail"):
            detail = line.get("errorDetail")
            raise _Refused(str(error or (detail.get("message") if isinstance(detail, dict) else detail)))
        self._progress.heard(line)
        now = asyncio.get_running_loop().time()
        if now >= self._next_s:
            self._next_s = now + _EVENT_S
            self.tell(self.callers)

    def tell(self, tasks: list[TaskConfig], verb: str = "pulling") -> None:
        """Tell these tasks how far it is."""
        progress = self._progress
        text = f"{verb} {self.image.familiar}{progress.text()}"
        annotations = {"image": self.image.reference, **progress.annotations()}
        for task in tasks:
            self._told(task, text, annotations)

    def done(self) -> None:
        """Tell all that the image is there."""
        self.tell(self.callers, "pulled")


class Progress:
    """How far a pull is, from the engine's lines about each layer."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def heard(self, line: Mapping[str, Any]) -> None:
        """Take a line; what is none of a layer is nothing."""
        status, name = line.get("status"), line.get("id")
        if not isinstance(status, str) or not isinstance(name, str):
            return
        state = _STATES.get(status)
        if state is None:
            return
        layer = self._layers.setdefault(name, _Layer())
        if state == "done":
            layer.done, layer.current = True, layer.total
        elif state == "there":
            layer.current = layer.total
        elif state == "more":
            detail = line.get("progressDetail")
            if isinstance(detail, dict):
                layer.current, layer.total = _bytes(detail.get("current")), _bytes(detail.get("total"))

    def text(self) -> str:
        """``: 3 of 7 layers, 12.3 MB of 80.0 MB``; empty before the first layer is known."""
        if not self._layers:
            return ""
        text = f": {self._done} of {len(self._layers)} layers"
        if total := self._sum("total"):
            text += f", {_megabytes(self._sum('current'))} of {_megabytes(total)}"
        return text

    def annotations(self) -> dict[str, str]:
        """The same as numbers."""
        return {
            "layers": str(len(self._layers)),
            "layers_done": str(self._done),
            "bytes": str(self._sum("current")),
            "bytes_known": str(self._sum("total")),
        }

    @property
    def _done(self) -> int:
        return sum(layer.done for layer in self._layers.values())

    def _sum(self, name: Literal["current", "total"]) -> int:
        return sum(getattr(layer, name) for layer in self._layers.values())


class _Layer:
    """One layer: bytes come and to come, of what the engine said so far."""

    __slots__ = ("current", "done", "total")

    def __init__(self) -> None:
        self.current = 0
        self.total = 0
        self.done = False


_STATES: Final = {
    "Pulling fs layer": "new",
    "Waiting": "new",
    "Downloading": "more",
    "Verifying Checksum": "there",
    "Download complete": "there",
    "Extracting": "there",
    "Pull complete": "done",
    "Already exists": "done",
}


def _bytes(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def failure(what: str, text: str, image: ImageName, who: Credentials, *, final: bool = False) -> DriverError:
    """What a pull's failure means to its caller.

    :param what: put before the engine's text; empty: it has it already.
    :param final: trying again cannot help, unless the text says otherwise.
    """
    message = worded(what, text)
    words = _without_names(text, image).lower()
    if any(each in words for each in _DISK_FULL):
        return StartRecoverable(f"{message} (the engine's disk is full)")
    if any(each in words for each in _PASSING):
        return StartRecoverable(message)
    if final or any(each in words for each in _FINAL):
        return StartError(f"{message} (credentials: {who.source})")
    return StartRecoverable(message)


def _without_names(text: str, image: ImageName) -> str:
    """An engine's text without addresses and the image's names: an image may be called ``certificate-api``."""
    text = _URL.sub("", text)
    short = image.path.removeprefix("library/")
    for name in (
        image.name,
        f"{image.domain}/{short}",
        image.path,
        short,
        image.domain,
        image.domain.partition(":")[0],
    ):
        # a name of one word may be any word, so it is one only where the engine puts it
        before = r"(?<![\w./-])" if set(name) & set("/.:") else r"(?:(?<=\bfor )|(?<=\bpull )|(?<=\brepository ))"
        text = re.sub(rf"{before}{re.escape(name)}{_VERSION}(?![\w-])", "", text)
    return text
