"""The conformance suite finds what is wrong with a driver, and says nothing of one that is right."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cameleer.testing import DriverSuite

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BROKEN = HERE / "broken.py"
CHECKS = sorted(name for name in dir(DriverSuite) if name.startswith("test_"))
PROCESSES = 6  # most of the time the checks wait for what does not come


def _broken() -> ModuleType:
    spec = importlib.util.spec_from_file_location("broken_drivers", BROKEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


broken = _broken()
MAY_LOWER = not subprocess.run(
    ["/bin/sh", "-c", "echo -500 >/proc/self/oom_score_adj"], stderr=subprocess.DEVNULL, check=False
).returncode
CASES = [
    (driver.__name__, name)
    for drivers in (broken.ON_MOCK, broken.ON_COMMANDS)
    for driver, names in drivers.items()
    for name in names
    if MAY_LOWER or driver not in broken.NEEDS_OOM_SCORE
]


def start_pytest(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each case, run in other processes."""
    base = tmp_path_factory.mktemp("broken")
    drivers = sorted({driver for driver, _ in CASES})
    runs = []
    for number in range(PROCESSES):
        share = set(drivers[number::PROCESSES])
        wanted = [f"{BROKEN}::Test{driver}::{name}" for driver, name in CASES if driver in share]
        runs.append(start_pytest("-q", "-rA", "--tb=short", f"--basetemp={base / str(number)}", *wanted))
    output = "".join(run.communicate()[0] for run in runs)
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) .*?::Test(\w+)::(\w+)", output, re.M)
    assert found, output
    return {f"{driver}::{name}": verdict for verdict, driver, name in found}


@pytest.mark.parametrize(("driver", "name"), CASES)
def test_a_broken_driver_fails_the_check(verdicts: dict[str, str], driver: str, name: str) -> None:
    assert verdicts.get(f"{driver}::{name}") == "FAILED"


def test_each_check_has_a_driver_that_fails_it() -> None:
    proved = {name for drivers in (broken.ON_MOCK, broken.ON_COMMANDS) for names in drivers.values() for name in names}
    assert sorted(set(CHECKS) - proved) == []
    assert sorted(proved - set(CHECKS)) == []


# what the suite says


HEADER = """
from cameleer.drivers.mock import Mock, MockTasks
from cameleer.testing import DriverSuite


class Zero(Mock):
    name = "zero"

    async def fingerprint(self):
        from cameleer import Fingerprint

        yield Fingerprint(health="unhealthy", description="it is zero")


"""


def outcome(folder: Path, text: str, *arguments: str) -> tuple[int, str]:
    """Write a stranger's test file and run it in a folder without any configuration."""
    (folder / "test_mine.py").write_text(HEADER + text)
    run = start_pytest("-q", *arguments, cwd=folder)
    output = run.communicate()[0]
    return run.returncode, output


@pytest.mark.parametrize(
    "arguments",
    [[], ["-o", "asyncio_mode=strict"], ["-o", "asyncio_mode=auto"], ["-p", "no:asyncio"], ["--strict-markers"]],
)
def test_the_suite_runs_in_a_strangers_project(tmp_path: Path, arguments: list[str]) -> None:
    text = "class TestMine(DriverSuite):\n    driver = Mock\n    commands = MockTasks()\n"
    code, output = outcome(tmp_path, text, "-k", "ends_well or waiters or exec_takes or attaching", *arguments)
    assert code == 0, output
    assert "mock (test_mine.TestMine): 2 passed, 2 not offered: attach, exec of a shell\n" in output
    assert "coroutine" not in output


def test_an_expected_failure_is_counted(tmp_path: Path) -> None:
    text = """
class TestZero(DriverSuite):
    driver = Zero
    commands = MockTasks()
    expected_failures = {"test_the_driver_says_that_it_is_healthy": "it is zero"}
"""
    code, output = outcome(tmp_path, text, "-k", "healthy or ends_well")
    assert code == 0, output
    assert "zero (test_mine.TestZero): 1 passed, 1 failed as expected" in output


def test_an_expected_failure_that_does_not_come_is_a_failure(tmp_path: Path) -> None:
    text = """
class TestMine(DriverSuite):
    driver = Mock
    commands = MockTasks()
    expected_failures = {"test_the_driver_says_that_it_is_healthy": "it was thought to fail"}
"""
    code, output = outcome(tmp_path, text, "-k", "healthy or ends_well")
    assert code == 1
    assert "[XPASS(strict)] it was thought to fail" in output
    assert "mock (test_mine.TestMine): 1 failed, 1 passed" in output


def test_an_expected_failure_of_a_check_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    text = """
class TestMine(DriverSuite):
    driver = Mock
    expected_failures = {"test_the_driver_says_it_is_healthy": "misspelt"}
"""
    code, output = outcome(tmp_path, text)
    assert code == 2
    assert "did you mean 'test_the_driver_says_that_it_is_healthy'?" in output


def test_a_suite_without_a_driver_says_what_to_do(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, "class TestMine(DriverSuite):\n    pass\n", "-k", "ends_well")
    assert code == 1
    assert "TestMine has no driver: add `driver = YourDriver`" in output


def test_a_driver_that_is_refused_says_why(tmp_path: Path) -> None:
    text = """
class Refused(Mock):
    name = "no good name"

class TestRefused(DriverSuite):
    driver = Refused
    commands = MockTasks()
"""
    code, output = outcome(tmp_path, text, "-k", "ends_well")
    assert code == 1
    assert "its name is 'no good name'" in output


def test_a_driver_may_be_installed_under_the_name_of_the_class_that_is_checked(tmp_path: Path) -> None:
    text = """
class Other(Mock):
    async def fingerprint(self):
        from cameleer import Fingerprint

        yield Fingerprint(health="unhealthy", description="this one was checked")

class TestOther(DriverSuite):
    driver = Other
    commands = MockTasks()
"""
    _, output = outcome(tmp_path, text, "-k", "healthy")
    assert "this one was checked" in output


def test_pytests_option_imports_nothing_else_of_the_project() -> None:
    text = "import sys, cameleer.testing.option; print(sorted(m for m in sys.modules if m.startswith('cameleer')))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cameleer', 'cameleer.testing', 'cameleer.testing.option']"
