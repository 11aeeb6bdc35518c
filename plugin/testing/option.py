"""pytest's side of the conformance suite: the option that names a driver, and the closing line.

Registered by the ``pytest11`` entry point, because pytest refuses options from a package's ``conftest``. It is loaded
into every pytest run where the project is installed, so it imports nothing else of the project.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

MARKER = "cameleer_suite"
NOT_OFFERED = "not offered: "
SUITE_PROPERTY = "cameleer_suite"
OUR_MODULE = "cameleer.testing.test_driver"


@dataclass
class _Score:
    """What became of the checks of one suite."""

    outcomes: Counter[str] = field(default_factory=Counter)
    not_offered: set[str] = field(default_factory=set)

    def line(self) -> str:
        """Say it as ``41 passed, 6 not offered: exec, recover``."""
        parts = [
            f"{self.outcomes[outcome]} {outcome}"
            for outcome in ("failed", "errors", "passed", "skipped", "failed as expected")
            if self.outcomes[outcome] or outcome == "passed"
        ]
        if self.not_offered:
            parts.append(f"{self.outcomes['not offered']} not offered: {', '.join(sorted(self.not_offered))}")
        return ", ".join(parts)


class Scores:
    """Counts the checks of every suite in a run; under pytest-xdist, in the process that prints."""

    def __init__(self) -> None:
        self._scores: dict[str, _Score] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one phase of one check."""
        suite = next((str(value) for name, value in report.user_properties if name == SUITE_PROPERTY), None)
        if suite is None:
            return
        score = self._scores.setdefault(suite, _Score())
        reason = _skip_reason(report)
        if reason.startswith(NOT_OFFERED):
            score.outcomes["not offered"] += 1
            score.not_offered.add(reason.removeprefix(NOT_OFFERED))
        elif report.skipped:
            score.outcomes["failed as expected" if hasattr(report, "wasxfail") else "skipped"] += 1
        elif report.failed:
            score.outcomes["failed" if report.when == "call" else "errors"] += 1
        elif report.when == "call":
            score.outcomes["passed"] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print one line for each suite."""
        if self._scores:
            terminalreporter.section("cameleer driver conformance")
        for suite, score in sorted(self._scores.items()):
            terminalreporter.write_line(f"{suite}: {score.line()}")


def _skip_reason(report: pytest.TestReport) -> str:
    """Why a check was skipped; empty if it was not."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--cameleer-driver``."""
    parser.getgroup("cameleer").addoption(
        "--cameleer-driver",
        metavar="NAME",
        help="driver that `pytest --pyargs cameleer.testing` checks: the name of an entry point in cameleer.drivers",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the closing lines."""
    config.addinivalue_line("markers", f"{MARKER}: a check of cameleer's driver conformance suite")
    config.pluginmanager.register(Scores(), "cameleer-scores")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to run the suite for no driver at all."""
    if config.getoption("--cameleer-driver"):
        return
    if any(isinstance(item, pytest.Function) and item.module.__name__ == OUR_MODULE for item in items):
        raise pytest.UsageError("the suite of cameleer.testing needs a driver: add --cameleer-driver NAME")
