"""``pytest --pyargs cameleer.testing`` against an installed wheel, from an empty folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "third_party_driver"
PARTS = ("plugin", "hooks", "drivers", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def install(source: Path, target: Path, scratch: Path, parts: tuple[str, ...]) -> None:
    """Build a wheel from a copy, so that nothing is written beside the source, and install it."""
    for tool, oldest in (("pip", 23), ("setuptools", 77)):
        if importlib.util.find_spec(tool) is None or int(version(tool).partition(".")[0]) < oldest:
            pytest.skip(f"building a wheel needs {tool} {oldest}")
    copy = scratch / source.name
    copy.mkdir()
    for part in parts:
        where = source / part
        if where.is_dir():
            shutil.copytree(where, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(where, copy / part)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = scratch / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, copy], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, *wheels.iterdir()], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheels of the project and of the example."""
    target = tmp_path_factory.mktemp("site")
    install(ROOT, target, tmp_path_factory.mktemp("project"), PARTS)
    install(EXAMPLE, target, tmp_path_factory.mktemp("example"), tuple(os.listdir(EXAMPLE)))
    return target


def first(site: Path) -> dict[str, str]:
    """An environment in which what is installed there comes before all else."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "cameleer.testing", *arguments]
    return subprocess.run(
        command, cwd=folder, env=first(site), capture_output=True, text=True, timeout=300, check=False
    )


def test_the_installed_suite_checks_an_installed_driver(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "--cameleer-driver", "mock", "-q", "-k", "ends_well or waiters or exec_takes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mock (cameleer.testing.test_driver.TestDriver): 2 passed, 1 not offered: exec of a shell" in done.stdout
    assert os.listdir(tmp_path) == []


def test_the_suite_is_the_one_of_the_wheel(site: Path, tmp_path: Path) -> None:
    text = "import cameleer.testing.option as option; print(option.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=first(site), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(site / "cameleer" / "testing" / "option.py")


def test_a_strangers_driver_brings_its_own_tasks(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "--cameleer-driver", "pyfunc", "-q", "-k", "ends_well or never_fall or attaching")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pyfunc (cameleer.testing.test_driver.TestDriver): 2 passed, 1 not offered: attach" in done.stdout


def test_a_driver_without_an_adapter_runs_commands(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "--cameleer-driver", "raw_exec", "-q", "-k", "ends_well or arguments_arrive")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_an_unknown_driver_is_named(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "--cameleer-driver", "nothing", "-q", "-k", "ends_well")
    assert done.returncode == 1
    assert "no installed package has an entry point 'nothing' in cameleer.drivers" in done.stdout


def test_without_a_driver_it_says_what_to_add(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path)
    assert done.returncode == 4
    assert "add --cameleer-driver NAME" in done.stdout + done.stderr
