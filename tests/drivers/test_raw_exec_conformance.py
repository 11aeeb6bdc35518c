import os
from collections.abc import Mapping
from typing import ClassVar

from confined import needs_groups

from cameleer.drivers.raw_exec import RawExec
from cameleer.testing import DriverSuite


class TestRawExecFromProc(DriverSuite):
    driver = RawExec
    config: ClassVar[Mapping[str, object]] = {"accounting": "procfs"}


@needs_groups
class TestRawExecInGroups(DriverSuite):
    driver = RawExec
    config: ClassVar[Mapping[str, object]] = {"accounting": "cgroup"}
    patience_s: ClassVar[float] = 60.0 if "CAMELEER_TEST_UML" in os.environ else DriverSuite.patience_s
