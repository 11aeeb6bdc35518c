from cameleer.drivers.raw_exec import RawExec
from cameleer.testing import DriverSuite


class TestRawExec(DriverSuite):
    driver = RawExec
