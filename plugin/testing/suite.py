"""The suite as one class, for a driver's own tests.

    class TestMine(DriverSuite):
        driver = Mine

Every check goes through a :class:`cameleer.Host`, so drivers of both forms pass or fail alike. A check needs neither a
plugin for asyncio nor a mode of it.
"""

from __future__ import annotations

from cameleer.testing.ends import EndChecks
from cameleer.testing.extras import ExtraChecks
from cameleer.testing.leaks import LeakChecks
from cameleer.testing.life import LifeChecks
from cameleer.testing.readings import ReadingChecks
from cameleer.testing.recovery import RecoveryChecks
from cameleer.testing.surroundings import SurroundingChecks


class DriverSuite(  # pytest collects the last base first
    LeakChecks, ExtraChecks, RecoveryChecks, ReadingChecks, SurroundingChecks, EndChecks, LifeChecks
):
    """Checks of everything that the contract asks of a driver.

    :cvar driver: the driver's class.
    :cvar commands: how it expresses the tasks that the checks need; by default commands of the host's shell.
    :cvar config: settings of the driver, see its ``config_schema``.
    :cvar expected_failures: checks that fail for a reason that is known, each with the reason; strict: one that passes
        after all is a failure.
    :cvar interval_s: interval of the readings, seconds; longer for an engine that is slow.
    :cvar patience_s: how long anything may take before it counts as failed, seconds.
    """
