"""The harness for tests on cgroup v2: it says what pytest said, ends in time and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uml

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(uml.kernel() is None, reason="user-mode Linux is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif("CAMELEER_TEST_UML" in os.environ, reason="runs in user-mode Linux itself"),
]
SCRIPT = Path(uml.__file__)
INSIDE = """
import os, time
from pathlib import Path
def test_it_is_another_kernel_with_version_2():
    assert os.uname().release.partition(".")[0].isdigit()
    assert "memory" in Path("/sys/fs/cgroup/cgroup.subtree_control").read_text()
def test_it_fails():
    assert os.getpid() == 0
def test_it_hangs():
    print("about to hang", flush=True)
    time.sleep(1000)
"""


def left_in(folder: Path) -> list[str]:
    """Processes of user-mode Linux, as its kernel and as what runs in it, that keep their files here."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"uml_dir={folder}/".encode() in words:
            found.append(pid)
    return found


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the harness keeps its files: a short path, for its sockets."""
    with tempfile.TemporaryDirectory(prefix="own.", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)  # looked up anew
        yield Path(folder)


@pytest.fixture
def inside(tmp_path: Path) -> str:
    file = tmp_path / "test_inside.py"
    file.write_text(INSIDE)
    return str(file)


def test_what_pytest_said_and_its_exit_status_come_out(inside: str, own: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, inside, "-k", "version_2 or fails"], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed, 1 deselected" in done.stdout
    assert left_in(own) == []


def test_a_harness_that_is_terminated_ends_its_guest(inside: str, own: Path) -> None:
    with subprocess.Popen([sys.executable, SCRIPT, inside, "-k", "hangs", "-s"], stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        while b"about to hang" not in harness.stdout.readline():
            assert harness.poll() is None
        assert left_in(own) != []
        harness.terminate()
        harness.stdout.read()
    assert harness.returncode == 128 + signal.SIGTERM
    assert left_in(own) == []


def test_what_hangs_is_killed_and_nothing_is_left_running(
    inside: str, own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert uml.run([inside, "-k", "hangs", "-s"], limit_s=15) == uml.NOT_RUN
    assert "killed after 15 s" in capfd.readouterr().out
    assert left_in(own) == []
