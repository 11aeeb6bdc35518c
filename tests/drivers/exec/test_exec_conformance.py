from typing import ClassVar

import pytest
from confined import needs_groups

from cameleer.drivers.exec import Exec, ExecCommands
from cameleer.testing import DriverSuite


@needs_groups
class TestExec(DriverSuite):
    driver = Exec
    commands = ExecCommands()


@pytest.mark.root
@needs_groups
class TestExecWithProcessesOfItsOwn(DriverSuite):
    """The checks look for the pids that a task writes down, which are numbers of its own here."""

    driver = Exec
    commands = ExecCommands({"pid_mode": "private"})
    expected_failures: ClassVar = {}
