from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[Any]]
CAMELEER = [sys.executable, "-m", "cameleer.cli"]
BUSY = "import time; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


def summary_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = done.stderr.splitlines()
    assert lines, done
    assert lines[0].startswith("cameleer: "), done.stderr
    return lines


def measured(cameleer: Run, tmp_path: Path, *words: str) -> dict[str, Any]:
    cameleer("run", "--quiet", "--json", str(tmp_path / "summary"), *words)
    found = json.loads((tmp_path / "summary").read_text())
    assert isinstance(found, dict)
    return found


# streams


def test_the_streams_are_the_callers_to_the_last_byte(cameleer: Run) -> None:
    data = bytes(range(256)) * 4096
    done = cameleer("run", "--quiet", "cat", input=data, text=False)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


def test_sorting_a_file_into_another_works_as_without_it(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("b\na\n")
    with open(tmp_path / "in") as source, open(tmp_path / "out", "w") as target:
        done = cameleer("run", "sort", stdin=source, stdout=target, stderr=subprocess.PIPE)
    assert (tmp_path / "out").read_text() == "a\nb\n"
    assert summary_of(done)[0].startswith("cameleer: sort exited with 0")


def test_the_command_gets_the_very_descriptors(cameleer: Run, tmp_path: Path) -> None:
    show = "import os, json; fds = sorted(os.listdir('/proc/self/fd'), key=int)[:-1]  # the last one is listdir's own\n"
    show += "json.dump({fd: os.readlink('/proc/self/fd/' + fd) for fd in fds}, open('report', 'w'))"
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        cameleer("run", sys.executable, "-c", show, stdout=out, stderr=err)
    report = json.loads((tmp_path / "report").read_text())
    assert report == {"0": "/dev/null", "1": str(tmp_path / "out"), "2": str(tmp_path / "err")}


def test_a_reader_that_has_seen_enough_ends_the_command_as_ever(tmp_path: Path) -> None:
    command = " ".join(["set -o pipefail;", *CAMELEER, "run --quiet yes | head -1; echo $?"])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "y\n141\n"


@pytest.mark.parametrize("closing", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(closing: str) -> None:
    done = subprocess.run(["bash", "-c", " ".join([*CAMELEER, "run true", closing])], timeout=30, check=False)
    assert done.returncode == 0


# exit status


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["--timeout", "0.2", "sleep", "30"], 124),
        (["--timeout", "30", "true"], 0),
        (["no-such-command-anywhere"], 127),
        (["./no-such-file"], 127),
        (["/"], 126),
        (["--driver", "nope", "true"], 2),
        (["--memory", "many", "true"], 2),
        (["--no-such-option", "true"], 2),
        (["--timeout"], 2),
        ([], 2),
        (["--cwd", "/no/such/folder", "true"], 2),
        (["--config", "/no/such/file", "true"], 2),
        (["--plugin", "/no/such/file.py", "true"], 125),
        (["--driver", "mock", "--set", "start_error=broken", "x"], 125),
        (["--driver", "mock", "--set", "no_such_setting=1", "x"], 2),
        (["--stats-out", "/no/such/folder/file", "true"], 2),
    ],
)
def test_the_exit_status(cameleer: Run, words: list[str], code: int) -> None:
    done = cameleer("run", *words)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("cameleer: ")
    if code in (2, 125, 126, 127):
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_a_file_that_may_not_be_executed_is_126(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert cameleer("run", "./script").returncode == 126


def test_a_command_that_was_never_started_has_a_record_too(cameleer: Run, tmp_path: Path) -> None:
    record = measured(cameleer, tmp_path, "no-such-command-anywhere")
    assert (record["status"], record["exit_code"]) == ("error", 127)
    assert "no-such-command-anywhere" in record["error"]


# options


def test_quiet_says_nothing(cameleer: Run) -> None:
    assert cameleer("run", "--quiet", "sh", "-c", "echo out; exit 3").stderr == ""


def test_the_environment_is_the_callers(cameleer: Run) -> None:
    done = cameleer("run", "sh", "-c", 'echo "$COLOUR $SIZE"', env={"COLOUR": "blue", "SIZE": "xl"})
    assert done.stdout == "blue xl\n"


def test_variables_can_be_set_and_the_rest_left_out(cameleer: Run) -> None:
    words = ["--clean-env", "--env", "SIZE=a=b", "--env", "COLOUR", "--env", "UNKNOWN", "/usr/bin/env"]
    done = cameleer("run", *words, env={"COLOUR": "blue", "OTHER": "x"})
    assert sorted(done.stdout.split()) == ["COLOUR=blue", "SIZE=a=b"]


def test_the_folder_is_the_callers_or_another(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    assert cameleer("run", "pwd").stdout.strip() == str(tmp_path)
    assert cameleer("run", "--cwd", "inner", "pwd").stdout.strip() == str(tmp_path / "inner")


def test_a_limit_that_the_driver_cannot_hold_is_refused_and_says_who_can(cameleer: Run) -> None:
    for option, value in (("--memory", "1g"), ("--cpus", "1"), ("--pids", "5"), ("--cpu-mhz", "100")):
        done = cameleer("run", "--driver", "raw_exec", option, value, "true")
        assert done.returncode == 2
        assert done.stderr.startswith(f"cameleer: {option}: the driver raw_exec holds no such limit; ")
        assert "exec" in done.stderr.split(";")[1]


def test_an_image_needs_a_driver_for_it(cameleer: Run) -> None:
    done = cameleer("run", "--image", "debian", "--no-plugins=docker", "true")
    assert done.returncode == 2
    assert "--image" in done.stderr
    assert "docker" in done.stderr


def test_a_plugin_file_brings_a_driver_that_can_be_chosen_and_its_limits(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from cameleer import BlockingDriver, BlockingTask, Capabilities, Exit

            class Done(BlockingTask):
                def poll(self):
                    return Exit(exit_code=self.config.resources.pids)

                def signal(self, signum):
                    pass

            class Mine(BlockingDriver):
                name = "mine"
                task_type = Done
                capabilities = Capabilities(honours=frozenset({"pids"}))

                def start(self, task):
                    return Done(task)
            """)
    )
    done = cameleer("run", "--plugin", "mine.py", "--driver", "mine", "--pids", "7", "x")
    assert done.returncode == 7, done.stderr
    assert "cpu      not measured" in done.stderr


def test_a_plugin_file_brings_hooks(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "from cameleer import hookimpl\n\n@hookimpl\ndef exited(request):\n"
        "    open('seen', 'w').write(request.result.status)\n"
    )
    assert cameleer("run", "--plugin", "./hooks.py", "true").returncode == 0
    assert (tmp_path / "seen").read_text() == "success"


def test_the_configuration_file_reaches_the_driver(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[telemetry]\ncollection_intervall = 3\n")
    done = cameleer("run", "--config", "c.toml", "true")
    assert done.returncode == 2
    assert "collection_interval" in done.stderr


# what is said at the end


def test_the_summary_has_at_most_six_lines_on_stderr_and_nothing_on_stdout(cameleer: Run) -> None:
    done = cameleer("run", "true")
    assert done.stdout == ""
    assert len(summary_of(done)) <= 6
    assert "true exited with 0" in done.stderr
    for word in ("cpu", "memory", "faults", "io", "switches", "elapsed"):
        assert word in done.stderr


def test_a_command_of_fifty_milliseconds_has_a_true_summary(cameleer: Run, tmp_path: Path) -> None:
    record = measured(cameleer, tmp_path, sys.executable, "-c", BUSY.format(seconds=0.05))
    assert 0.05 <= record["cpu_seconds"] < 0.5
    assert record["wall_seconds"] >= 0.05
    assert record["readings"] >= 2
    assert record["status"] == "success"
    assert record["cpu_percent_peak"] is None or record["wall_seconds"] > 0.5


def test_a_busy_second_is_a_second_of_cpu(cameleer: Run, tmp_path: Path) -> None:
    record = measured(cameleer, tmp_path, sys.executable, "-c", BUSY.format(seconds=1.2))
    assert record["cpu_seconds"] == pytest.approx(1.22, abs=0.1)
    assert record["cpu_seconds"] == pytest.approx(record["cpu_user_seconds"] + record["cpu_system_seconds"], abs=1e-6)
    assert record["cpu_percent_average"] == pytest.approx(100 * record["cpu_seconds"] / record["wall_seconds"])
    assert record["cpu_percent_peak"] <= 120


def test_touched_memory_is_in_the_peak(cameleer: Run, tmp_path: Path) -> None:
    work = "import time; block = bytearray(100 << 20); time.sleep(0.4)"
    record = measured(cameleer, tmp_path, sys.executable, "-c", work)
    assert 100 << 20 <= record["memory_peak_bytes"] <= 125 << 20
    assert record["memory_measure"] in ("pss", "max_rss", "cgroup")


def test_every_reading_is_written_with_its_age(cameleer: Run, tmp_path: Path) -> None:
    done = cameleer("run", "--quiet", "--stats-out", "readings", "sleep", "0.5")
    assert done.returncode == 0
    readings = [json.loads(line) for line in (tmp_path / "readings").read_text().splitlines()]
    times = [each["at_ns"] for each in readings]
    assert times == sorted(times)
    assert len(readings) >= 4
    assert all(each["cpu"]["total_ns"] is not None for each in readings)
    assert len({each["task_id"] for each in readings}) == 1


def test_an_interval_of_ones_own_is_kept(cameleer: Run, tmp_path: Path) -> None:
    cameleer("run", "--quiet", "--interval", "100ms", "--stats-out", "readings", "sleep", "1")
    times = [json.loads(line)["at_ns"] for line in (tmp_path / "readings").read_text().splitlines()]
    assert 6 <= len(times) <= 13


def test_readings_go_to_stdout_or_a_descriptor(cameleer: Run) -> None:
    done = cameleer("run", "--quiet", "--stats-out", "-", "--json", "fd:2", "true")
    assert all(json.loads(line)["cpu"] for line in done.stdout.splitlines())
    assert json.loads(done.stderr)["status"] == "success"


def test_a_full_disk_for_the_readings_is_told_once_and_the_task_goes_on(cameleer: Run) -> None:
    done = cameleer("run", "--stats-out", "/dev/full", "sh", "-c", "sleep 0.5; echo done")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.count("No space left on device") == 1


def test_a_full_disk_for_the_summary_does_not_change_the_exit_status(cameleer: Run) -> None:
    done = cameleer("run", "--quiet", "--json", "/dev/full", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert done.stderr == "cameleer: --json /dev/full: No space left on device\n"


# what is left running


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def test_what_is_left_running_is_named_and_left_alone(cameleer: Run) -> None:
    named = "until grep -q sleep /proc/$!/comm; do :; done"  # the shell's child has become it
    done = cameleer("run", "sh", "-c", f"sleep 60 >/dev/null 2>&1 & echo $!; {named}")
    pid = int(done.stdout)
    try:
        assert f"left     still running: {pid} (sleep)" in done.stderr
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_what_is_left_running_is_ended_on_demand(cameleer: Run) -> None:
    done = cameleer("run", "--kill-rest", "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    assert not alive(int(done.stdout))


# signals without a terminal


class Started:
    """cameleer without a terminal, running a command that has said that it is ready."""

    def __init__(self, tmp_path: Path, script: str, *own: str) -> None:
        self.process = subprocess.Popen(
            [*CAMELEER, "run", *own, "sh", "-c", f"{script} & wait" if script.startswith("sleep") else script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_command_answers_as_it_likes(tmp_path: Path, signum: signal.Signals) -> None:
    name = signum.name.removeprefix("SIG")
    started = Started(tmp_path, f"trap 'echo heard; exit 7' {name}; echo ready; while :; do sleep 0.05; done")
    started.process.send_signal(signum)
    code, out, err = started.end()
    assert (code, out) == (7, "heard\n"), err
    assert "exited with 7" in err


def test_a_signal_that_the_command_does_not_catch_ends_it(tmp_path: Path) -> None:
    started = Started(tmp_path, "echo ready; exec sleep 60")
    started.process.send_signal(signal.SIGTERM)
    code, _, err = started.end()
    assert code == 143
    assert "killed by SIGTERM" in err


def test_a_second_sigterm_kills(tmp_path: Path) -> None:
    script = "trap 'echo heard' TERM; echo ready; while :; do sleep 0.05; done"
    started = Started(tmp_path, script)
    started.process.send_signal(signal.SIGTERM)
    assert started.process.stdout is not None
    assert started.process.stdout.readline() == "heard\n"
    started.process.send_signal(signal.SIGTERM)
    assert started.end()[0] == 137


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_takes_long_is_given_up_at_a_signal(tmp_path: Path, signum: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
            import asyncio
            from cameleer import Driver, RunningTask

            class Task(RunningTask):
                async def wait(self): ...
                async def signal(self, signum): ...

            class Slow(Driver):
                name = "slow"
                task_type = Task

                async def start(self, task):
                    print("starting", flush=True)
                    await asyncio.sleep(60)
            """)
    )
    process = subprocess.Popen(
        [*CAMELEER, "run", "--plugin", "./slow.py", "--driver", "slow", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert "Traceback" not in err


def test_the_command_gets_the_callers_limits_although_ours_are_raised(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = min(111, hard)
    seen = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    ours = f"cat /proc/$PPID/limits >&2; exec {sys.executable} -c '{seen}'"  # the parent is the supervisor
    done = subprocess.run(
        [*CAMELEER, "run", "--quiet", "sh", "-c", ours],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == [str(soft), str(hard)]
    raised = next(line.split()[3:5] for line in done.stderr.splitlines() if line.startswith("Max open files"))
    assert raised == [str(hard), str(hard)]


def test_the_command_has_a_session_of_its_own_without_a_terminal(cameleer: Run) -> None:
    done = cameleer("run", "--quiet", sys.executable, "-c", "import os; print(os.getsid(0) == os.getpgrp())")
    assert done.stdout == "True\n"


# cost


def imported(*words: str) -> set[str]:
    """Modules in the process after a run."""
    show = f"import sys; from cameleer.cli.main import main; main({['run', '--quiet', *words]!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", show],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        timeout=30,
        check=True,
    )
    return set(done.stdout.split())


def test_nothing_is_imported_that_the_run_does_not_need() -> None:
    found = imported("true")
    assert "cameleer.drivers.raw_exec" in found
    unwanted = {
        "cameleer.cli.live",
        "cameleer.cli.view",
        "cameleer.cli.completion",
        "cameleer.cli.containers",
        "cameleer.cli.through",
        "cameleer.cli.capable",
        "cameleer.drivers.docker",
        "cameleer.drivers.mock",
        "cameleer.hooks.stats_hook",
        "cameleer.public",
        "cameleer.drivers.cgroup.limits",
        "cgroupspy",
        "tenacity",
        "tomllib",
        "difflib",
    }
    assert not found & unwanted


def test_a_run_costs_at_most_fourteen_bare_interpreters(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)  # compiled once, as after an installation

    def cpu_s(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], env=env, capture_output=True, check=True, stdin=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    run = ("-m", "cameleer.cli", "run", "--", "true")
    cpu_s(*run)
    pairs = [(cpu_s("-c", "pass"), cpu_s(*run)) for _ in range(9)]
    bare, whole = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    assert whole <= 14 * bare, f"{whole / bare:.1f} times"


def test_readings_of_a_stopped_host_leave_no_folder(cameleer: Run, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    cameleer("run", "--quiet", "true", env={"TMPDIR": str(tmp_path / "tmp")})
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_json_file_is_made_with_the_callers_umask(cameleer: Run, tmp_path: Path) -> None:
    cameleer("run", "--quiet", "--json", "summary", "true", umask=0o027)
    assert stat.S_IMODE((tmp_path / "summary").stat().st_mode) == 0o640
