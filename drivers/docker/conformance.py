"""Containers for the conformance suite."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from cameleer.config import TaskConfig
from cameleer.testing.adapter import ShellCommands

IMAGE = "CAMELEER_TEST_IMAGE"
"""Variable that names an image with ``/bin/sh``; without it ``busybox:test``."""


class DockerCommands(ShellCommands):
    """Shell commands in containers without a network, with an init: a command that is pid 1 ignores SIGTERM.

    :param settings: the task's ``driver_config``.
    :param endpoint: of the engine; empty: as the driver finds it.
    """

    def __init__(self, settings: Mapping[str, object] | None = None, endpoint: str = "") -> None:
        self._settings = {"network_mode": "none", "init": True, **(settings or {})}
        self._endpoint = endpoint

    @property
    def image(self) -> str:
        """The image of all tasks."""
        return os.environ.get(IMAGE, "busybox:test")

    def make(self, command: str, *args: str) -> TaskConfig:
        """A container of one command."""
        made = super().make(command, *args)
        return dataclasses.replace(made, image=self.image, driver_config=self._settings)

    def refused(self) -> TaskConfig:
        """A command that does not exist; without the init, which would start in its place."""
        return dataclasses.replace(super().refused(), driver_config={**self._settings, "init": False})

    def foreign(self) -> AbstractContextManager[str]:
        """A container that somebody else started."""
        return _container(self.image, self._endpoint)


@contextmanager
def _container(image: str, endpoint: str) -> Iterator[str]:
    import docker
    from cameleer.drivers.docker.client.endpoint import find
    from cameleer.drivers.docker.settings import DockerConfig

    client = docker.DockerClient(base_url=find(DockerConfig(endpoint=endpoint)).url)
    try:
        made = client.containers.run(
            image, ["/bin/sh", "-c", "while :; do :; done"], detach=True, network_mode="none", auto_remove=False
        )
        try:
            yield f"docker:{made.id}"
        finally:
            made.remove(v=True, force=True)
    finally:
        client.close()
