from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cameleer.cli.drivers import table
from cameleer.driver import Capabilities
from cameleer.opened import DriverInfo
from cameleer.plugins import RefusedPlugin

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def package(tmp_path: Path) -> dict[str, str | None]:
    """An installed package with a hook plugin that adds commands, and a broken one; the environment to find it."""
    site = tmp_path / "site"
    info = site / "stranger-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[cameleer.hooks]\ngreeting = stranger_greets\nbroken = stranger_breaks\n"
        "[cameleer.drivers]\nbroken_driver = stranger_breaks:Driver\n"
    )
    (site / "stranger_breaks.py").write_text("raise RuntimeError('broken on purpose')\n")
    (site / "stranger_greets.py").write_text(
        "from cameleer import hookimpl\n\n"
        "def configure(parser):\n    parser.add_argument('name')\n\n"
        "def run(options):\n    print('hello', options.name)\n    return 4\n\n"
        "@hookimpl\ndef cli_commands():\n"
        "    return [('greet', 'greet somebody', configure, run), ('run', 'taken', configure, run), 'nonsense']\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_a_plugins_command_runs_with_its_own_options(cameleer: Run, package: dict[str, str | None]) -> None:
    done = cameleer("greet", "you", env=package)
    assert (done.returncode, done.stdout) == (4, "hello you\n")
    assert "'run', and that name is taken" in done.stderr
    assert "'nonsense'" in done.stderr
    assert "broken on purpose" in done.stderr


def test_a_plugins_command_is_in_the_help(cameleer: Run, package: dict[str, str | None]) -> None:
    done = cameleer("--help", env=package)
    assert done.returncode == 0
    assert "greet       greet somebody" in done.stdout
    assert "greet" not in cameleer("--no-plugins", "--help", env=package).stdout


def test_a_builtin_command_loads_no_plugin(cameleer: Run, package: dict[str, str | None]) -> None:
    for words in (["run", "--quiet", "true"], ["completion", "bash"], ["watch", "x"]):
        assert "broken on purpose" not in cameleer(*words, env=package).stderr


def test_disabled_plugins_are_never_imported(cameleer: Run, package: dict[str, str | None]) -> None:
    assert "broken on purpose" not in cameleer("--no-plugins=broken", "greet", "you", env=package).stderr
    assert cameleer("--no-plugins", "greet", "you", env=package).returncode == 2
    assert cameleer("greet", "you", env={**package, "CAMELEER_NO_PLUGINS": "all"}).returncode == 2


def test_an_unknown_command_names_the_nearest(cameleer: Run) -> None:
    done = cameleer("wacht")
    assert done.returncode == 2
    assert "did you mean 'watch'" in done.stderr


def test_without_a_command_the_help_is_shown_as_wrong_usage(cameleer: Run) -> None:
    done = cameleer()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: cameleer" in done.stderr


def test_the_version(cameleer: Run) -> None:
    assert cameleer("--version").stdout.startswith("cameleer 0.")


@pytest.mark.parametrize("name", ["run", "watch", "drivers", "gc", "completion"])
def test_every_command_has_help(cameleer: Run, name: str) -> None:
    for words in ([name, "--help"], ["help", name]):
        done = cameleer(*words)
        assert done.returncode == 0
        assert f"usage: cameleer {name}" in done.stdout
        assert "examples:" in done.stdout


def test_a_reader_of_the_help_may_leave_early() -> None:
    command = f"{sys.executable} -m cameleer.cli run --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""


def test_the_trace_shows_every_call_and_tracebacks(cameleer: Run) -> None:
    done = cameleer("run", "--quiet", "true", env={"CAMELEER_TRACE": "1"})
    assert "cameleer: raw_exec.start took" in done.stderr
    done = cameleer("run", "--config", "/no/such/file", "true", env={"CAMELEER_TRACE": "1"})
    assert "Traceback" in done.stderr


# drivers


def test_drivers_are_listed_with_health_abilities_and_origin(cameleer: Run, package: dict[str, str | None]) -> None:
    done = cameleer("drivers", env=package)
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "healthy" in rows["raw_exec"]
    assert "stats" in rows["raw_exec"]
    assert "cameleer" in rows["raw_exec"]
    assert "broken_driver" in done.stdout
    assert "stranger 1.2" in done.stdout
    assert "broken on purpose" in done.stdout


def test_drivers_as_json_have_the_promised_keys(cameleer: Run, package: dict[str, str | None]) -> None:
    done = cameleer("drivers", "--json", env=package)
    found = json.loads(done.stdout)
    assert {each["name"] for each in found} >= {"raw_exec", "mock"}
    for each in found:
        assert set(each) == {"name", "health", "health_description", "capabilities", "distribution", "version"}
        assert isinstance(each["capabilities"]["stats"], bool)
    assert "broken_driver" in done.stderr


def test_a_driver_that_is_not_healthy_says_why() -> None:
    info = DriverInfo(
        name="docker", health="undetected", health_description="no engine", capabilities=Capabilities(exec=True)
    )
    refused = RefusedPlugin(name="x", group="cameleer.drivers", reason="it is odd", distribution="odd", version="1")
    text = table([info], [refused])
    assert text[1].split() == ["docker", "undetected", "(handed", "over)", "exec"]
    assert text[2].strip() == "no engine"
    assert text[3] == "refused: the driver 'x' (from odd 1) was refused: it is odd"


# gc


def test_nothing_left_over_is_said(cameleer: Run, tmp_path: Path) -> None:
    done = cameleer("gc", env={"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "nothing is left over\n")


def test_the_folder_of_a_killed_host_is_listed_and_removed_with_yes(cameleer: Run, tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "cameleer.cli", "run", "sh", "-c", "echo $$; exec sleep 60"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert cameleer("gc", "--yes", env=env).stdout == "nothing is left over\n"  # its host lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.read()  # the task ends with its host
    process.stdout.close()
    listed = cameleer("gc", env=env)
    assert "state folder" in listed.stdout
    assert list((tmp_path / "tmp").iterdir())
    removed = cameleer("gc", "--yes", env=env)
    assert removed.returncode == 0
    assert "removed state folder" in removed.stdout
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_killed_host_left_of_a_task_is_collected_at_once_with_its_group(cameleer: Run, tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    host = subprocess.Popen(
        [sys.executable, "-m", "cameleer.cli", "run", "sh", "-c", "echo $PPID $$; exec sleep 60"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert host.stdout is not None
    supervisor, task = map(int, host.stdout.readline().split())
    places = Path(f"/proc/{task}/cgroup").read_text()
    host.send_signal(signal.SIGSTOP)  # neither may end the task
    deadline = time.monotonic() + 30
    while Path(f"/proc/{host.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "the host does not stop"
        time.sleep(0.01)
    os.kill(supervisor, signal.SIGKILL)
    host.kill()
    host.wait()
    removed = cameleer("gc", "--yes", env=env)
    host.stdout.read()  # it holds this open
    host.stdout.close()
    assert removed.returncode == 0, removed.stderr
    assert f"process {task} (" in removed.stdout
    assert ("removed raw_exec: group" in removed.stdout) == ("cameleer" in places)
    assert list(tmp_path.iterdir()) == []


# watch


def test_watching_ends_with_the_process_and_covers_the_time_of_watching(cameleer: Run, tmp_path: Path) -> None:
    busy = "import time; end = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", busy])
    try:
        words = ["--interval", "0.2", "--json", "-", "--stats-out", "readings", str(process.pid)]
        done = cameleer("watch", *words)
    finally:
        process.wait()
    assert done.returncode == 0, done.stderr
    assert "ended, watched for" in done.stderr
    record = json.loads(done.stdout)
    assert record["task_id"] == str(process.pid)
    assert 0.05 < record["cpu_seconds"] < 2.6
    assert record["cpu_percent_average"] > 0
    readings = [json.loads(line) for line in (tmp_path / "readings").read_text().splitlines()]
    assert len(readings) >= 5
    assert {each["task_id"] for each in readings} == {str(process.pid)}


def test_several_processes_have_a_summary_each(cameleer: Run) -> None:
    sleepers = [subprocess.Popen(["sleep", "1"]) for _ in range(2)]
    try:
        done = cameleer("watch", "--interval", "0.1", *(str(each.pid) for each in sleepers), env={})
    finally:
        for each in sleepers:
            each.wait()
    for each in sleepers:
        assert f"cameleer: {each.pid} (" in done.stderr


def test_a_process_that_does_not_exist_is_told(cameleer: Run) -> None:
    done = cameleer("watch", "4194305")
    assert done.returncode == 1
    assert "cannot watch 4194305" in done.stderr


@pytest.mark.parametrize("words", [[], ["x"], ["-5"], ["0"], ["1", "--interval", "no"]])
def test_wrong_usage_of_watch(cameleer: Run, words: list[str]) -> None:
    assert cameleer("watch", *words).returncode == 2
