from collections.abc import Mapping
from typing import ClassVar

import pytest
from engine import Engine, needs_engine

from cameleer.drivers.docker import Docker, DockerCommands
from cameleer.testing import DriverSuite
from cameleer.testing.readings import ReadingChecks


@pytest.fixture(autouse=True)
def _address(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.address)


@pytest.mark.root
@needs_engine
class TestDocker(DriverSuite):
    driver = Docker
    commands = DockerCommands()


@pytest.mark.root
@needs_engine
class TestDockerThatAsksTheEngine(ReadingChecks):
    """Readings come from the engine, as they do where it is on another machine."""

    driver = Docker
    commands = DockerCommands()
    config: ClassVar[Mapping[str, object]] = {"stats": "remote"}
    interval_s = 1.0  # the engine counts once a second
