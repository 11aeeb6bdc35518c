"""Tasks of ``exec`` for the conformance suite."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from cameleer.config import TaskConfig
from cameleer.testing.adapter import ShellCommands


class ExecCommands(ShellCommands):
    """Shell commands in groups of their own.

    :param settings: the task's ``driver_config``. By default its processes are numbered as on the host, because checks
        look for pids that a task wrote down.
    """

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self._settings = {"pid_mode": "host"} if settings is None else dict(settings)

    def make(self, command: str, *args: str) -> TaskConfig:
        """A task of one command."""
        return dataclasses.replace(super().make(command, *args), driver_config=self._settings)

    def foreign(self) -> AbstractContextManager[str]:
        """A group with a process in it."""
        return _group()


@contextmanager
def _group() -> Iterator[str]:
    from cameleer.config import Resources
    from cameleer.drivers.cgroup.group import Cgroups

    group = Cgroups(node=f"foreign-{os.getpid()}").make(os.urandom(6).hex(), "foreign", Resources())
    try:
        with subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"], stdin=subprocess.DEVNULL) as process:
            try:
                group.enter(process.pid)
                yield f"cgroup:/{group.name}"
            finally:
                process.kill()
    finally:
        group.remove()
