"""What ``pytest --pyargs cameleer.testing --cameleer-driver NAME`` collects: the suite for an installed driver."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from cameleer.testing import DriverSuite, ShellCommands


def _load(group: str, name: str) -> object | None:
    for entry in entry_points(group=group, name=name):
        loaded: object = entry.load()
        return loaded
    return None


@pytest.fixture(scope="class", autouse=True)
def _chosen(request: pytest.FixtureRequest) -> None:
    """Give the suite the driver of ``--cameleer-driver``, and the ``commands`` of its entry point, if any."""
    name = request.config.getoption("--cameleer-driver")
    driver = _load("cameleer.drivers", name)
    if driver is None:
        pytest.fail(f"no installed package has an entry point {name!r} in cameleer.drivers", pytrace=False)
    commands = _load("cameleer.testing", name) or ShellCommands
    request.cls.driver = driver
    request.cls.commands = commands() if isinstance(commands, type) else commands


class TestDriver(DriverSuite):
    """The driver that the option names."""
