import os
import subprocess
import sys
from pathlib import Path

import pytest

from cameleer.drivers.procfs import ProcessIdentity, boot_id, process_identity, start_ticks
from cameleer.errors import RecoverableError, TaskNotFound


def test_this_process_is_itself() -> None:
    identity = process_identity(os.getpid())
    assert identity.exists()
    assert identity == ProcessIdentity(pid=os.getpid(), start_ticks=start_ticks(os.getpid()), boot_id=boot_id())


def test_another_start_or_boot_is_another_process() -> None:
    mine = process_identity(os.getpid())
    assert not ProcessIdentity(pid=mine.pid, start_ticks=mine.start_ticks + 1, boot_id=mine.boot_id).exists()
    assert not ProcessIdentity(pid=mine.pid, start_ticks=mine.start_ticks, boot_id="another").exists()


def test_a_zombie_exists_until_it_is_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        identity = process_identity(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert identity.exists()
        process.wait()
        assert not identity.exists()


def test_a_process_that_is_gone_is_not_found() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        pass
    with pytest.raises(TaskNotFound):
        start_ticks(process.pid)


def test_a_garbled_line_is_recoverable(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (x) S 1")
    with pytest.raises(RecoverableError, match="cannot make sense"):
        start_ticks(7, str(tmp_path))


def test_a_missing_boot_id_is_recoverable(tmp_path: Path) -> None:
    with pytest.raises(RecoverableError, match="boot_id"):
        boot_id(str(tmp_path))
