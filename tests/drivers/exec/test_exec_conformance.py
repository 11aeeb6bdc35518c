import os
from typing import ClassVar

import pytest
from confined import needs_groups

from cameleer.drivers.exec import Exec, ExecCommands
from cameleer.testing import DriverSuite

PATIENCE_S = 60.0 if "CAMELEER_TEST_UML" in os.environ else DriverSuite.patience_s
"""User-mode Linux is slow."""


@needs_groups
class TestExec(DriverSuite):
    driver = Exec
    commands = ExecCommands()
    patience_s: ClassVar[float] = PATIENCE_S


@pytest.mark.root
@needs_groups
class TestExecWithProcessesOfItsOwn(DriverSuite):
    """The checks look for the pids that a task writes down, which are numbers of its own here."""

    driver = Exec
    commands = ExecCommands({"pid_mode": "private"})
    patience_s: ClassVar[float] = PATIENCE_S
    expected_failures: ClassVar = {}
