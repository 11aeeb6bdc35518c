"""What is public: the same in the code, in the documentation, and at import."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cameleer
import cameleer.public

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = ROOT / "docs" / "contract.md"


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", CONTRACT.read_text(), re.S | re.M)
    assert found is not None
    return found[1]


def documented_names() -> list[str]:
    rows = [line.split("|")[2] for line in section("Public names").splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def after_import(statement: str) -> set[str]:
    """Modules of a fresh interpreter after an import."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_documented_names_are_the_public_ones() -> None:
    names = documented_names()
    assert len(names) == len(set(names))
    assert set(names) == set(cameleer.public.__all__)


def test_the_list_is_sorted_and_has_no_name_twice() -> None:
    assert cameleer.public.__all__ == sorted(set(cameleer.public.__all__), key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("name", cameleer.public.__all__)
def test_a_public_name_is_there_and_explains_itself(name: str) -> None:
    value = getattr(cameleer, name)
    assert value is getattr(cameleer.public, name)
    if isinstance(value, type) or callable(value):
        assert (value.__doc__ or "").strip()


def test_all_public_names_are_listed_by_dir() -> None:
    assert set(cameleer.public.__all__) <= set(dir(cameleer))


@pytest.mark.parametrize("name", ["NoSuchName", "Life", "OpenDriver", "_private"])
def test_nothing_else_is_public(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'cameleer' has no attribute '{name}'"):
        getattr(cameleer, name)


@pytest.mark.parametrize("package", ["cameleer.drivers.procfs", "cameleer.drivers.supervisor", "cameleer.testing"])
def test_the_public_packages_are_named_and_there(package: str) -> None:
    assert f"`{package}`" in section("Public names")
    module = importlib.import_module(package)
    assert (module.__doc__ or "").strip()
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


def test_every_error_is_documented_with_its_base() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in section("Errors").splitlines()]
    bases = {
        name: set(re.findall(r"`(\w+)`", row[1]))
        for row in rows
        if len(row) == 2
        for name in re.findall(r"`(\w+)`", row[0])
    }
    errors = {
        name: {base.__name__ for base in value.__bases__}
        for name in cameleer.public.__all__
        if isinstance(value := getattr(cameleer, name), type) and issubclass(value, Exception)
    }
    assert bases == {**errors, "DriverError": set()}


@pytest.mark.parametrize("status", cameleer.FinalStatus)
def test_every_final_status_is_documented(status: str) -> None:
    assert f"`{status}`" in section("Tasks")


def test_importing_the_package_imports_nothing_that_costs() -> None:
    found = after_import("import cameleer")
    assert {name for name in found if name.startswith("cameleer")} == {"cameleer"}
    assert not found & {"asyncio", "pluggy", "msgspec", "tenacity", "inspect", "logging", "argparse"}


def test_importing_the_host_waits_with_what_may_not_be_needed() -> None:
    found = after_import("from cameleer import Host")
    later = {"tenacity", "argparse", "tomllib", "difflib", "importlib.metadata", "cameleer.schema"}
    assert not found & later
    ours = {name for name in found if name.startswith(("cameleer.drivers", "cameleer.cli", "cameleer.testing"))}
    assert ours == set()
    assert {name for name in found if name.startswith("cameleer.hooks.")} == {"cameleer.hooks.specs"}
