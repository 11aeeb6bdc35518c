"""What the conformance suite needs to know of this driver: which functions end, last, and keep a processor busy."""

import sys
import time

from cameleer import TaskConfig
from cameleer.testing import Commands


def end(exit_code: str) -> None:
    sys.exit(int(exit_code))


def last() -> None:
    time.sleep(3600)


def work() -> None:
    while True:
        pass


class Functions(Commands):
    def _task(self, function: str, *args: str) -> TaskConfig:
        env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
        return TaskConfig(driver_config={"function": f"{__name__}:{function}"}, args=args, env=env)

    def ends(self, exit_code: int = 0) -> TaskConfig:
        return self._task("end", str(exit_code))

    def lasts(self) -> TaskConfig:
        return self._task("last")

    def busy(self) -> TaskConfig:
        return self._task("work")

    def refused(self) -> TaskConfig:
        return TaskConfig(driver_config={"function": "no colon"})
