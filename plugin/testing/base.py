"""What the checks of the suite stand on: a loop and a host for each, deadlines, and what counts as not offered."""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import pytest

from cameleer.driver import DriverBase, capabilities_of
from cameleer.testing.adapter import Commands, ShellCommands
from cameleer.testing.option import MARKER, NOT_OFFERED, SUITE_PROPERTY

if TYPE_CHECKING:
    from cameleer.config import TaskConfig
    from cameleer.host import Host
    from cameleer.task import Task

S = TypeVar("S", bound="SuiteBase")
T = TypeVar("T")

_CAPABILITIES = ("stats", "send_signals", "exec", "recover", "attach")


def check(*needs: str) -> Callable[[Callable[[S], Coroutine[Any, Any, None]]], Callable[[S], None]]:
    """Make a check of a coroutine: run in a loop of its own, so no plugin and no mode of pytest-asyncio matters.

    :param needs: what the driver must offer: a capability, ``events``, or a kind of task that ``commands`` makes
        (``shell``, ``busy``, ``refused``, …). Where it does not, the check counts as not offered.
    """

    def decorate(body: Callable[[S], Coroutine[Any, Any, None]]) -> Callable[[S], None]:
        def run(self: S) -> None:
            for need in needs:
                if not self.offers(need):
                    pytest.skip(NOT_OFFERED + need)
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # the global loop is not touched
                runner.run(_bounded(self, body(self)))

        functools.update_wrapper(run, body)
        del run.__wrapped__  # type: ignore[attr-defined] # else pytest plugins take it for a coroutine
        marked: Callable[[S], None] = getattr(pytest.mark, MARKER)(run)
        return marked

    return decorate


async def _bounded(suite: SuiteBase, body: Coroutine[Any, Any, None]) -> None:
    """End a check that hangs. What it was waiting for is in its traceback."""
    async with asyncio.timeout(suite.patience_s * 3):
        await body


class SuiteBase:
    """Settings of a suite, and helpers for its checks."""

    driver: ClassVar[type[DriverBase]]
    commands: ClassVar[Commands] = ShellCommands()
    config: ClassVar[Mapping[str, object]] = {}
    expected_failures: ClassVar[Mapping[str, str]] = {}
    interval_s: ClassVar[float] = 0.2
    patience_s: ClassVar[float] = 15.0

    folder: Path

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.expected_failures:
            if not hasattr(cls, name):
                near = difflib.get_close_matches(name, [each for each in dir(cls) if each.startswith("test_")], 1)
                hint = f": did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"{cls.__name__}.expected_failures names {name!r}, which is no check{hint}")

    @pytest.fixture(autouse=True)
    def _prepare(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        if not hasattr(self, "driver"):
            pytest.fail(f"{type(self).__name__} has no driver: add `driver = YourDriver`", pytrace=False)
        self.folder = tmp_path
        module = type(self).__module__
        request.node.user_properties.append((SUITE_PROPERTY, f"{self.driver.name} ({module}.{type(self).__name__})"))
        reason = self.expected_failures.get(request.node.originalname)
        if reason is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    def offers(self, what: str) -> bool:
        """Whether the driver and its ``commands`` have this."""
        if what in _CAPABILITIES:
            return bool(getattr(capabilities_of(self.driver), what))
        if what == "events":
            from cameleer.driver import Driver

            return getattr(self.driver, "events", Driver.events) is not Driver.events
        if what == "host files":
            return capabilities_of(self.driver).fs_isolation == "none"
        if what == "exit codes":
            return self.commands.ends(1) is not None
        if what == "shell":
            return self.commands.shell("") is not None
        if what == "exec of a shell":
            return self.commands.exec_argv("") is not None
        return getattr(self.commands, what)() is not None

    @asynccontextmanager
    async def host(self, *, state_dir: Path | None = None, detach: bool = False) -> AsyncIterator[Host]:
        """Open a host that knows this driver and no hook plugin."""
        from cameleer.host import Host

        config = {
            "drivers": {self.driver.name: self.config} if self.config else {},
            "plugins": {"hooks": []},
            "deadlines": {"start": self.patience_s, "stop": self.patience_s, "call": self.patience_s},
        }
        on_exit: Literal["stop", "detach"] = "detach" if detach else "stop"
        async with Host(config, plugins=[self.driver], state_dir=state_dir, on_exit=on_exit) as host:
            yield host

    async def start(self, host: Host, config: TaskConfig | None, **changes: Any) -> Task:
        """Start a task that ``commands`` made, with some fields changed."""
        assert config is not None, "`commands` made no task"
        if changes:
            config = dataclasses.replace(config, **changes)
        return await host.start(config, driver=self.driver.name)

    def shell(self, script: str, *args: str) -> TaskConfig:
        """A shell task; only in checks that need ``shell``."""
        config = self.commands.shell(script, *args)
        assert config is not None, "`commands.shell` made no task"
        return config

    def busy(self) -> TaskConfig:
        """A busy task; only in checks that need ``busy``."""
        config = self.commands.busy()
        assert config is not None, "`commands.busy` made no task"
        return config

    async def soon(self, awaitable: Awaitable[T], what: str) -> T:
        """Await with a deadline; the failure says what did not happen."""
        try:
            async with asyncio.timeout(self.patience_s):
                return await awaitable
        except TimeoutError:
            pytest.fail(f"within {self.patience_s:g} s: {what}")

    async def until(self, condition: Callable[[], T | bool | None], what: str) -> T:
        """Poll until something is so; the failure says what did not become true."""
        deadline = time.monotonic() + self.patience_s
        while True:
            found = condition()
            if found is not None and found is not False:
                return found  # type: ignore[return-value] # True is a T there
            if time.monotonic() > deadline:
                pytest.fail(f"within {self.patience_s:g} s: {what}")
            await asyncio.sleep(0.01)

    async def output_of(self, script: str, *args: str, **changes: Any) -> str:
        """Run a shell script to its end; its stdout."""
        from cameleer.config import Stdio

        path = self.folder / f"out-{os.urandom(4).hex()}"
        async with self.host() as host:
            task = await self.start(host, self.shell(script, *args), stdout=Stdio.file(path), **changes)
            result = await self.soon(task.wait(), "the script did not end")
            text = path.read_text()
            assert result.exit_code == 0, f"the script ended with {result.exit_code} and wrote {text!r}"
        return text

    async def ready(self, path: Path) -> None:
        """Wait until a script has written a line to this file."""
        await self.until(lambda: path.exists() and b"\n" in path.read_bytes(), "the script wrote nothing")
