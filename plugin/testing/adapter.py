"""How a driver expresses the tasks that the conformance suite needs.

Most drivers run commands: for them :class:`ShellCommands` is enough, or a subclass that adds an image. A driver that
runs something else derives from :class:`Commands`, returns what its tasks are called instead, and ``None`` for what it
has no word for; the checks that need it then count as not offered.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from cameleer.config import TaskConfig

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Commands(Protocol):
    """Makes tasks. Each call returns a new configuration."""

    def ends(self, exit_code: int = 0) -> TaskConfig | None:
        """A task that ends at once. None is possible for exit codes other than 0."""
        ...

    def lasts(self) -> TaskConfig:
        """A task that runs for an hour, does nothing, and is ended by SIGTERM and by SIGKILL."""
        ...

    def busy(self) -> TaskConfig | None:
        """A task that keeps one processor busy until a signal ends it."""
        return None

    def shell(self, script: str, *args: str) -> TaskConfig | None:
        """A task that runs a POSIX shell script, with ``args`` as ``$1``, ``$2``…"""
        return None

    def refused(self) -> TaskConfig | None:
        """A task that cannot be started: an unknown command, an unknown function."""
        return None

    def exec_argv(self, script: str) -> Sequence[str] | None:
        """The words that run a shell script inside a running task."""
        return None

    def foreign(self) -> AbstractContextManager[str] | None:
        """Something that others run, for the time of the context: the reference that ``attach`` takes."""
        return None


class ShellCommands(Commands):
    """Commands on the host, or in an image that has ``/bin/sh``."""

    def make(self, command: str, *args: str) -> TaskConfig:
        """A task of one command; the place to add an image or settings of the driver's own."""
        return TaskConfig(command=command, args=args, env={"PATH": _PATH})

    def ends(self, exit_code: int = 0) -> TaskConfig:
        """``exit N``."""
        return self.shell(f"exit {exit_code}")

    def lasts(self) -> TaskConfig:
        """``sleep``."""
        return self.shell("exec sleep 3600")

    def busy(self) -> TaskConfig:
        """An empty loop."""
        return self.shell("while :; do :; done")

    def shell(self, script: str, *args: str) -> TaskConfig:
        """``/bin/sh -c``."""
        return self.make("/bin/sh", "-c", script, "sh", *args)

    def refused(self) -> TaskConfig:
        """A command that does not exist."""
        return self.make("/no/such/command")

    def exec_argv(self, script: str) -> Sequence[str]:
        """``/bin/sh -c``."""
        return ["/bin/sh", "-c", script]

    def foreign(self) -> AbstractContextManager[str]:
        """A process of ours, by its pid; a driver whose ``attach`` takes something else overrides this."""
        return _process()


@contextmanager
def _process() -> Iterator[str]:
    with subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"], stdin=subprocess.DEVNULL) as process:
        try:
            yield str(process.pid)
        finally:
            process.kill()
