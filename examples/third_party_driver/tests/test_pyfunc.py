from cameleer_pyfunc import PyFunc
from cameleer_pyfunc_testing import Functions

from cameleer.testing import DriverSuite


class TestPyFunc(DriverSuite):
    driver = PyFunc
    commands = Functions()
