"""What ``systemd-run --user --scope -p Delegate=yes cameleer run …`` comes to: a user's group with us alone in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.mode import detect

MODE = detect()
pytestmark = pytest.mark.skipif(
    not (MODE.usable and MODE.version == 2 and MODE.delegated), reason="needs a delegated part of cgroup v2"
)


@pytest.fixture
def scope() -> Iterator[Path]:
    folder = Path(MODE.bases["unified"], f"scope-{os.getpid()}-{os.urandom(4).hex()}")
    folder.mkdir()
    yield folder
    for each in [*reversed(kernel.nested(str(folder))), str(folder)]:
        os.rmdir(each)


@pytest.mark.parametrize(("options", "driver"), [([], "raw_exec"), (["--memory", "64m"], "exec")])
def test_a_command_has_a_group_there(scope: Path, tmp_path: Path, options: list[str], driver: str) -> None:
    summary = tmp_path / "summary"
    done = subprocess.run(
        [sys.executable, "-m", "cameleer.cli", "run", "--json", str(summary), *options, "cat", "/proc/self/cgroup"],
        preexec_fn=lambda: (scope / "cgroup.procs").write_text("0"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(summary.read_text())
    assert (record["driver"], record["memory_measure"]) == (driver, "cgroup")
    assert f"/{scope.name}/cameleer/" in done.stdout
    assert (scope / "cgroup.procs").read_text() == ""
