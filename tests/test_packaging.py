"""What a user installs: every module of the three folders under ``cameleer``, and nothing else."""

from __future__ import annotations

import configparser
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"plugin": "cameleer", "hooks": "cameleer/hooks", "drivers": "cameleer/drivers"}
NOT_SOURCE = {"__pycache__", ".git", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
IN_SDIST = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "setup.cfg", "pyproject.toml", ".ci/run")


def sources() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not NOT_SOURCE.intersection(parts) and not any(p.endswith(".egg-info") for p in parts):
            yield path.relative_to(ROOT)


def modules() -> set[str]:
    """Where each module of the three folders belongs in the wheel."""
    return {
        f"{FOLDERS[path.parts[0]]}/{Path(*path.parts[1:])}"
        for path in sources()
        if path.parts[0] in FOLDERS and path.suffix == ".py"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and with the wheel that was built from it."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("the module build is not installed")
    setuptools = version("setuptools") if importlib.util.find_spec("setuptools") else "0"
    if int(setuptools.partition(".")[0]) < 77:
        pytest.skip(f"building the project needs setuptools 77, here is {setuptools}")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in sources():  # a copy, since building leaves files behind
        (source / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, source / path)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (found,) = built.glob("*.whl")
    with zipfile.ZipFile(found) as archive:
        yield archive


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def in_dist_info(wheel: zipfile.ZipFile) -> set[str]:
    return {name.partition(".dist-info/")[2] for name in wheel.namelist() if ".dist-info/" in name}


def test_every_module_is_in_the_wheel_under_cameleer_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == modules() | {"cameleer/py.typed"}


def test_the_wheel_has_its_license_and_no_unknown_metadata(wheel: zipfile.ZipFile) -> None:
    expected = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert in_dist_info(wheel) == expected


def test_the_wheel_is_pure_python(wheel: zipfile.ZipFile, built: Path) -> None:
    (found,) = built.glob("*.whl")
    assert found.name.endswith("-py3-none-any.whl")
    (name,) = (name for name in wheel.namelist() if name.endswith("top_level.txt"))
    assert wheel.read(name).decode().split() == ["cameleer"]


def test_every_entry_point_leads_somewhere(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    groups = set(entries.sections())
    assert groups == {"console_scripts", "cameleer.drivers", "cameleer.hooks", "cameleer.testing", "pytest11"}
    for group in groups:
        for value in entries[group].values():
            module, _, attribute = value.partition(":")
            found = importlib.import_module(module)
            assert not attribute or hasattr(found, attribute), value


def test_every_built_in_driver_goes_by_its_own_name(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    for name, value in entries["cameleer.drivers"].items():
        module, _, attribute = value.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_the_metadata_says_what_is_needed(metadata: Message) -> None:
    assert metadata["Name"] == "cameleer"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">=")[0] for line in needed) == ["msgspec", "pluggy", "tenacity"]


def test_every_extra_brings_something(metadata: Message) -> None:
    extras = metadata.get_all("Provides-Extra", [])
    assert "test" in extras
    for extra in extras:
        assert any(f'extra == "{extra}"' in line for line in metadata.get_all("Requires-Dist", [])), extra


def test_the_source_archive_has_what_building_and_testing_need(sdist: set[str]) -> None:
    wanted = {
        str(path)
        for path in sources()
        if path.parts[0] in (*FOLDERS, "tests", "docs", "examples", "benchmarks") or str(path) in IN_SDIST
    }
    assert wanted - sdist == set()
    assert set(IN_SDIST) <= sdist


def test_no_leftovers_are_in_the_source_archive(sdist: set[str]) -> None:
    assert [name for name in sdist if name.endswith((".pyc", ".svg~", ".orig")) or "__pycache__" in name] == []
