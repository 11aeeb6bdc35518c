"""``cameleer run`` with an image: the options by themselves, then against a real engine, also on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, PATIENCE_S, Engine, needs_engine, running
from hypothesis import given
from hypothesis import strategies as st

from cameleer.cli.containers import LOOPBACK, Volume, name_of, port, volume
from cameleer.config import Port
from cameleer.errors import ConfigError

Run = Callable[..., subprocess.CompletedProcess[Any]]
Start = Callable[..., Any]
CAMELEER = [sys.executable, "-m", "cameleer.cli"]

# what is written on the command line


@pytest.mark.parametrize(
    ("text", "source", "target", "mode"),
    [
        ("/a:/b", "/a", "/b", ""),
        ("/a:/b:ro", "/a", "/b", "ro"),
        ("/a/../c:/b:rw", "/c", "/b", "rw"),
        (".:/b", os.getcwd(), "/b", ""),
        ("./x:/b", os.path.abspath("x"), "/b", ""),
        ("sub/x:/b", os.path.abspath("sub/x"), "/b", ""),
        ("data:/b", "data", "/b", ""),
        ("data:/b:ro", "data", "/b", "ro"),
        ("/b", "", "/b", ""),
    ],
)
def test_a_volume_is_a_path_or_a_name(text: str, source: str, target: str, mode: str) -> None:
    found = volume(text)
    assert found == Volume(source, target, mode)
    assert found.is_path == source.startswith("/")


@pytest.mark.parametrize("text", ["", "a", "a:b", ":/b", "/a:/b:rx", "/a:", "/a:/b:ro:z", "a:b:/c"])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write SOURCE:TARGET"):
        volume(text)


@pytest.mark.parametrize(
    ("text", "port_asked"),
    [
        ("8080:80", Port(host_port=8080, container_port=80, host_ip=LOOPBACK)),
        ("8080:80/udp", Port(host_port=8080, container_port=80, host_ip=LOOPBACK, protocol="udp")),
        ("0.0.0.0:1:2/tcp", Port(host_port=1, container_port=2, host_ip="0.0.0.0")),
        ("[::1]:1:2", Port(host_port=1, container_port=2, host_ip="::1")),
    ],
)
def test_a_port_is_reached_from_this_machine_alone_unless_asked(text: str, port_asked: Port) -> None:
    assert port(text) == port_asked


@pytest.mark.parametrize(
    "text", ["", "80", ":80", "80:", "0:80", "1:65536", "a:1", "here:1:2", "1:2/ip", "1:2:3:4", "1:²"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        port(text)


@given(
    st.integers(1, 65535), st.integers(1, 65535), st.ip_addresses().map(str), st.sampled_from(["tcp", "udp", "sctp"])
)
def test_every_port_is_read_as_it_is_written(host: int, inner: int, address: str, protocol: str) -> None:
    written = f"[{address}]" if ":" in address else address
    found = port(f"{written}:{host}:{inner}/{protocol}")
    assert (found.host_port, found.container_port, found.protocol) == (host, inner, protocol)
    assert found.host_ip == address


@pytest.mark.parametrize(
    ("image", "name"),
    [("busybox", "busybox"), ("host:5000/a/web:1.2", "web"), ("a/b@sha256:00", "b"), ("localhost/x:y@sha256:00", "x")],
)
def test_the_image_names_what_runs_its_own_command(image: str, name: str) -> None:
    assert name_of(image) == name


BOXES = """
import dataclasses, json
import msgspec
from cameleer import BlockingDriver, BlockingTask, Capabilities, Exit

class Done(BlockingTask):
    def poll(self):
        return Exit(exit_code=0)

    def signal(self, signum):
        pass

class Options(msgspec.Struct, forbid_unknown_fields=True):
    network_mode: str = ""
    pull_policy: str = ""
    keep: bool = False
    volumes: list[str] = []
    other: str = ""

class Boxes(BlockingDriver):
    name = "boxes"
    task_type = Done
    task_schema = Options
    capabilities = Capabilities(fs_isolation="image", honours=frozenset({"image", "mounts", "ports"}))

    def start(self, task):
        open("asked.json", "w").write(json.dumps(dataclasses.asdict(task), default=str))
        return Done(task)
"""


def asked(cameleer: Run, folder: Path, *words: str, **options: Any) -> dict[str, Any]:
    """What a driver of images is asked for."""
    (folder / "boxes.py").write_text(BOXES)
    done = cameleer("run", "--plugin", "./boxes.py", "--driver", "boxes", *words, **options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "asked.json").read_text())
    return found


def test_options_of_containers_reach_the_driver(cameleer: Run, tmp_path: Path) -> None:
    words = ["-v", "here:/a", "-v./x:/b:ro", "--volume=/y:/c", "-p", "80:8080", "--publish=0.0.0.0:53:53/udp"]
    words += ["--network", "none", "--pull=never", "--keep", "--set", "other=x", "--image", "web:1"]
    task = asked(cameleer, tmp_path, *words, "true", "--keep")
    assert (task["command"], task["args"], task["image"]) == ("true", ["--keep"], "web:1")
    assert [(each["source"], each["target"], each["read_only"]) for each in task["mounts"]] == [
        (f"{tmp_path}/x", "/b", True),
        ("/y", "/c", False),
    ]
    assert [
        (each["host_ip"], each["host_port"], each["container_port"], each["protocol"]) for each in task["ports"]
    ] == [
        (LOOPBACK, 80, 8080, "tcp"),
        ("0.0.0.0", 53, 53, "udp"),
    ]
    assert task["driver_config"] == {
        "other": "x",
        "volumes": ["here:/a"],
        "network_mode": "none",
        "pull_policy": "never",
        "keep": True,
    }


def test_a_container_gets_nothing_of_the_callers_but_its_streams(cameleer: Run, tmp_path: Path) -> None:
    task = asked(
        cameleer, tmp_path, "--image", "web", "--env", "SIZE", "--env", "A=b", env={"SIZE": "xl", "COLOUR": "blue"}
    )
    assert (task["command"], task["name"], task["cwd"]) == ("", "web", None)
    assert task["env"] == {"SIZE": "xl", "A": "b"}
    assert (task["terminal"], task["kill_signal"], task["leave_rest"]) == ("none", None, False)
    assert {task[name]["kind"] for name in ("stdin", "stdout", "stderr")} == {"inherit"}


@pytest.mark.parametrize(
    "words",
    [["-p", "80:80"], ["-v", "/a:/b"], ["--keep"], ["--pull", "never"], ["--network", "none"], ["--image", "web"]],
)
def test_an_option_that_the_driver_has_no_use_for_is_refused_and_says_who_has(cameleer: Run, words: list[str]) -> None:
    done = cameleer("run", "--driver", "raw_exec", *words, "true")
    assert done.returncode == 2
    assert "the driver raw_exec has no use for it" in done.stderr
    assert "docker" in done.stderr


def test_a_driver_of_processes_has_no_named_volumes(cameleer: Run) -> None:
    done = cameleer("run", "--driver", "exec", "-v", "data:/a", "true")
    assert done.returncode == 2
    assert "--volume data: the driver exec has paths alone" in done.stderr


@pytest.mark.parametrize(
    "words", [["-p", "80"], ["-v", "a"], ["--pull", "sometimes"], ["-p"], ["--image", "web", "--", ""]]
)
def test_wrong_values_are_wrong_usage(cameleer: Run, words: list[str]) -> None:
    assert cameleer("run", *words).returncode == 2


def test_an_engine_that_is_not_there_is_told_in_one_line(cameleer: Run, tmp_path: Path) -> None:
    done = cameleer("run", "--image", "web", "true", env={"DOCKER_HOST": f"unix://{tmp_path}/sock"})
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert f"{tmp_path}/sock" in done.stderr
    done = cameleer("watch", "docker:web", env={"DOCKER_HOST": f"unix://{tmp_path}/sock"})
    assert done.returncode == 1
    assert done.stderr.startswith("cameleer: cannot watch docker:web: ")


PULLS = """
import asyncio, time
from cameleer import Driver, RunningTask, TaskEvent

class Ended(RunningTask):
    async def wait(self):
        return Exit(exit_code=0)

    async def signal(self, signum):
        pass

class Pulling(Driver):
    name = "pulling"
    task_type = Ended
    capabilities = Capabilities(fs_isolation="image", honours=frozenset({"image"}))

    async def prepare(self, task):
        self.id = task.id
        await asyncio.sleep(0.5)

    async def start(self, task):
        return Ended(task)

    async def events(self):
        for task_id, text in (("x", "other"), (None, "pulling 1 of 5"), (None, "pulling 3 of 5")):
            while not hasattr(self, "id"):
                await asyncio.sleep(0.01)
            yield TaskEvent(task_id=task_id or self.id, message=text, at_ns=time.time_ns())
        await asyncio.sleep(60)
"""


@pytest.mark.pty
def test_the_progress_of_a_pull_is_shown_on_one_line(on_terminal: Start, tmp_path: Path) -> None:
    (tmp_path / "pulling.py").write_text(BOXES + PULLS)
    words = ["--plugin", "./pulling.py", "--driver", "pulling", "--image", "web", "true"]
    started = on_terminal("run", "--quiet", *words)
    assert started.wait() == 0
    assert "\rcameleer: pulling 3 of 5\x1b[K" in started.output
    assert started.output.endswith("\r\x1b[K")
    assert "other" not in started.output


@pytest.mark.parametrize("ref", ["docker:", "docker", "dockr:web"])
def test_what_names_no_container_is_wrong_usage(cameleer: Run, ref: str) -> None:
    assert cameleer("watch", ref).returncode == 2


# against a real engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running() as started:
        yield started


@pytest.fixture
def docker(cameleer: Run, engine: Engine) -> Iterator[Run]:
    """Run a container without a network; whatever is left afterwards is an error."""

    def run(*words: str, env: Mapping[str, str | None] = {}, **options: Any) -> subprocess.CompletedProcess[Any]:
        line = ["run", "--network", "none", "--image", IMAGE, *words]
        return cameleer(*line, env={"DOCKER_HOST": engine.address, **env}, **options)

    yield run
    assert engine.containers() == []


def env_of(engine: Engine) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": engine.address}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


engined = [pytest.mark.root, needs_engine]


class WithEngine:
    """Groups the marks of what needs one."""

    pytestmark = engined


class TestStreams(WithEngine):
    def test_bytes_pass_through_to_the_last_one_and_the_streams_stay_apart(self, docker: Run) -> None:
        data = bytes(range(256)) * 4096
        done = docker("--quiet", "sh", "-c", "cat; echo problem >&2", input=data, text=False)
        assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"problem\n")

    def test_the_images_own_command_runs_where_there_is_none(self, docker: Run, engine: Engine) -> None:
        engine.cli("import", "--change", 'CMD ["echo", "own"]', "-", "own:test", stdin=tar_of(engine))
        try:
            done = docker("--image", "own:test")
            assert (done.returncode, done.stdout) == (0, "own\n")
            assert done.stderr.startswith("cameleer: own:test exited with 0")
        finally:
            engine.cli("rmi", "own:test")

    def test_a_file_is_written_where_the_caller_said(self, docker: Run, tmp_path: Path) -> None:
        with open(tmp_path / "out", "w") as target:
            docker("--quiet", "echo", "hello", stdout=target, stderr=subprocess.PIPE)
        assert (tmp_path / "out").read_text() == "hello\n"


def tar_of(engine: Engine) -> bytes:
    """The small image's files."""
    container = engine.out("create", "--network=none", IMAGE, "true")
    try:
        return engine.cli("export", container).stdout
    finally:
        engine.cli("rm", container)


class TestOptions(WithEngine):
    def test_the_exit_status_is_the_commands(self, docker: Run) -> None:
        assert docker("sh", "-c", "exit 3").returncode == 3
        assert docker("no-such-command").returncode == 127
        assert docker("/etc").returncode == 126
        assert docker("--timeout", "0.5", "sleep", "60").returncode == 124
        assert docker("--image", "no/such:image", "--pull", "never", "true").returncode == 125

    def test_the_summary_and_the_record_are_there(self, docker: Run, tmp_path: Path) -> None:
        busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
        done = docker("--memory", "64MB", "--json", "summary", "--stats-out", "readings", "sh", "-c", busy)
        assert done.returncode == 0, done.stderr
        assert len(done.stderr.splitlines()) <= 6
        assert "(docker)" in done.stderr
        assert "of the limit 64.0 MiB" in done.stderr
        record = json.loads((tmp_path / "summary").read_text())
        assert (record["status"], record["driver"], record["exit_code"]) == ("success", "docker", 0)
        assert record["cpu_seconds"] > 0.05
        assert record["memory_peak_bytes"] > 0
        assert (tmp_path / "readings").read_text().count("\n") >= 1

    def test_volumes_are_the_callers_files(self, docker: Run, tmp_path: Path, engine: Engine) -> None:
        (tmp_path / "in").write_text("hello")
        done = docker("--quiet", "-v", ".:/work", "-v", "./in:/in:ro", "sh", "-c", "cat /in >/work/out; echo x >/in")
        assert (tmp_path / "out").read_text() == "hello"
        assert "ead-only" in done.stderr
        done = docker("--quiet", "-v", "test-data:/d", "sh", "-c", "echo kept >/d/x")
        assert docker("--quiet", "-v", "test-data:/d:ro", "cat", "/d/x").stdout == "kept\n"
        engine.cli("volume", "rm", "test-data")

    def test_user_folder_and_environment(self, docker: Run) -> None:
        words = ["--user", "nobody", "--cwd", "/tmp", "--env", "A=b", "sh", "-c", "echo $(id -un) $(pwd) $A"]
        assert docker("--quiet", *words).stdout == "nobody /tmp b\n"

    def test_a_kept_container_is_named_and_stays(self, docker: Run, engine: Engine) -> None:
        done = docker("--quiet", "--keep", "sh", "-c", "echo kept >/file")
        try:
            (name,) = [line.split()[3] for line in done.stderr.splitlines() if line.endswith("is kept")]
            assert engine.out("ps", "--all", "--format={{.Names}}") == name
            assert engine.cli("cp", f"{name}:/file", "-").returncode == 0
        finally:
            engine.cli("rm", "--force", *engine.containers())

    def test_a_port_leads_to_the_container(self, cameleer: Run, tmp_path: Path) -> None:
        with running(bridge=True) as engine:
            process = subprocess.Popen(
                [*CAMELEER, "run", "--image", IMAGE, "-p", "18080:80", "sh", "-c", "echo hello | nc -l -p 80"],
                env=env_of(engine),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                start_new_session=True,
            )
            try:
                until(lambda: process.poll() is not None or engine.out("ps", "--quiet"))
                bound = engine.out("ps", "--format={{.Ports}}")
                assert bound.startswith("127.0.0.1:18080->80/tcp"), bound
                asking = engine.inside("busybox", "nc", "127.0.0.1", "18080")
                got: list[bytes] = []

                def answered() -> bool:
                    done = subprocess.run(asking, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
                    got.append(done.stdout)
                    return bool(done.stdout)

                until(answered)
                assert got[-1] == b"hello\n"
            finally:
                process.terminate()
                process.communicate(timeout=PATIENCE_S)


class Started:
    """cameleer without a terminal, running a container that has said that it is ready."""

    def __init__(self, engine: Engine, folder: Path, script: str, *own: str) -> None:
        words = ["run", "--network", "none", "--image", IMAGE, *own, "sh", "-c", script]
        self.process = subprocess.Popen(
            [*CAMELEER, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**env_of(engine), "TMPDIR": str(folder)},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", self.process.communicate(timeout=30)
        self.hosts = [path.name.rpartition("-")[2] for path in folder.glob("cameleer-host-*")]

    def clean(self, engine: Engine) -> None:
        """Remove what a test has had left on purpose."""
        engine.cli("rm", "--force", *engine.containers())
        for host in self.hosts:
            for group in Path("/sys/fs/cgroup").glob(f"*/cameleer/docker.*.{host}"):
                for path in (*filter(Path.is_dir, group.iterdir()), group):
                    until(lambda path=path: removed(path))  # type: ignore[misc]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


DEAF = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.1; done"


class TestEnds(WithEngine):
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
    def test_a_signal_is_passed_on(self, engine: Engine, tmp_path: Path, signum: signal.Signals) -> None:
        name = signum.name.removeprefix("SIG")
        started = Started(
            engine, tmp_path, f"trap 'echo heard; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
        )
        started.process.send_signal(signum)
        code, out, err = started.end()
        assert (code, out) == (7, "heard\n"), err
        assert engine.containers() == []

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
    def test_a_container_that_is_deaf_is_killed_after_a_while(
        self, engine: Engine, tmp_path: Path, signum: signal.Signals
    ) -> None:
        started = Started(engine, tmp_path, DEAF)
        began = time.monotonic()
        started.process.send_signal(signum)
        assert started.end()[0] == 137
        assert 4 < time.monotonic() - began < 20
        assert engine.containers() == []

    def test_a_second_sigterm_kills_at_once(self, engine: Engine, tmp_path: Path) -> None:
        started = Started(engine, tmp_path, DEAF)
        for _ in range(2):
            started.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)  # two that come at once are one
        began = time.monotonic()
        assert started.end()[0] == 137
        assert time.monotonic() - began < 4
        assert engine.containers() == []

    def test_a_third_interrupt_kills(self, engine: Engine, tmp_path: Path) -> None:
        started = Started(engine, tmp_path, DEAF)
        for _ in range(3):
            started.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert started.end()[0] == 137
        assert engine.containers() == []

    def test_a_container_ends_when_nobody_reads_its_output(self, engine: Engine, tmp_path: Path) -> None:
        started = Started(engine, tmp_path, "echo ready; yes")  # what came is read: the pipe is full now
        stdout = started.process.stdout
        assert stdout is not None
        stdout.close()
        assert started.process.wait(20) == 137
        assert engine.containers() == []

    def test_nothing_is_left_after_a_kill_of_cameleer(self, engine: Engine, tmp_path: Path) -> None:
        started = Started(engine, tmp_path, "echo ready; sleep 1000")
        (container,) = engine.containers()
        assert engine.out("inspect", "--format={{.State.Running}}", container) == "true"
        started.process.kill()
        started.end()
        until(lambda: engine.containers() == [])

    def test_a_kept_container_stays_after_a_kill_of_cameleer(self, engine: Engine, tmp_path: Path) -> None:
        started = Started(engine, tmp_path, "echo ready; sleep 1000", "--keep")
        reapers = children(started.process.pid)
        started.process.kill()
        started.end()
        try:
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in reapers))
            assert len(engine.containers()) == 1
        finally:
            started.clean(engine)

    def test_a_slow_pull_is_given_up_at_ctrl_c(self, engine: Engine, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # a registry that never answers
            image = f"127.0.0.1:{silent.getsockname()[1]}/x:1"
            process = subprocess.Popen(
                [*CAMELEER, "run", "--image", image, "true"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=env_of(engine),
                start_new_session=True,
            )
            silent.settimeout(PATIENCE_S)
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, err
        assert "Traceback" not in err


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class TestOthers(WithEngine):
    """``watch``, ``gc`` and ``drivers``."""

    def test_containers_are_watched_beside_processes(self, cameleer: Run, engine: Engine, tmp_path: Path) -> None:
        name = f"watched-{os.getpid()}"
        script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1"
        container = engine.out("run", "--detach", "--network=none", f"--name={name}", IMAGE, "sh", "-c", script)
        sleeper = subprocess.Popen(["sleep", "1"])
        try:
            words = ["--interval", "0.2", "--stats-out", "readings", "--json", "-"]
            refs = [f"docker:{name}", str(sleeper.pid), f"docker:{container[:12]}"]
            done = cameleer("watch", *words, *refs, env={"DOCKER_HOST": engine.address})
            assert done.returncode == 0, done.stderr
            records = {each["task_id"]: each for each in map(json.loads, done.stdout.splitlines())}
            assert set(records) == set(refs)
            assert records[f"docker:{name}"]["cpu_seconds"] > 0
            assert f"cameleer: docker:{name} ({name}) ended, watched for" in done.stderr
            assert engine.containers() == [container]
        finally:
            sleeper.kill()
            sleeper.wait()
            engine.cli("rm", "--force", container)

    def test_a_container_that_does_not_exist_is_told(self, cameleer: Run, engine: Engine) -> None:
        done = cameleer("watch", "docker:no-such", env={"DOCKER_HOST": engine.address})
        assert done.returncode == 1
        assert "cannot watch docker:no-such: " in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_what_a_killed_host_and_its_reaper_left_is_collected_and_what_lives_is_not(
        self, cameleer: Run, engine: Engine, tmp_path: Path
    ) -> None:
        env = {"DOCKER_HOST": engine.address, "TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
        dead, live = (Started(engine, tmp_path, "echo ready; sleep 1000") for _ in range(2))
        kept = Started(engine, tmp_path, "echo ready; sleep 1000", "--keep")
        before = set(engine.containers())
        for reaper in children(dead.process.pid):
            os.kill(reaper, signal.SIGKILL)
        for each in (dead, kept):
            each.process.kill()
            each.end()
        try:
            listed = cameleer("gc", env=env)
            assert listed.stdout.count("docker: container") == 1, listed
            assert set(engine.containers()) == before
            removed = cameleer("gc", "--yes", env=env)
            assert removed.returncode == 0, removed.stderr
            assert removed.stdout.count("removed docker: container") == 1
            assert len(engine.containers()) == 2
            assert live.process.poll() is None
        finally:
            live.process.kill()
            live.end()
            until(lambda: len(engine.containers()) == 1)
            kept.clean(engine)  # it was the last one started, and has seen the folders of all

    def test_without_an_engine_the_collection_is_quiet(self, cameleer: Run, tmp_path: Path) -> None:
        env: dict[str, str | None] = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
        if Path("/var/run/docker.sock").exists():
            pytest.skip("an engine is here")
        words = ["gc", "--state-dir", str(tmp_path / "state")]
        (tmp_path / "state").mkdir(mode=0o700)
        done = cameleer(*words, env={**env, "DOCKER_HOST": None, "DOCKER_CONTEXT": None})
        assert (done.returncode, done.stderr) == (0, "")
        done = cameleer(*words, env={**env, "DOCKER_HOST": f"unix://{tmp_path}/sock"})
        assert done.returncode == 0
        assert "cannot look for leftovers of docker" in done.stderr


# on a terminal


def sized(rows: int, columns: int) -> str:
    """A script that ends when the terminal has this size, which an engine of 2020 learns after the start."""
    return f"until [ \"$(stty size 2>/dev/null)\" = '{rows} {columns}' ]; do sleep 0.05; done; echo sized"


class TestTerminal(WithEngine):
    """A container's terminal in place of ours."""

    pytestmark = [*engined, pytest.mark.pty]

    @pytest.fixture
    def on_docker(self, on_terminal: Start, engine: Engine, tmp_path: Path) -> Iterator[Start]:
        def start(*words: str, env: Mapping[str, str | None] = {}, **options: Any) -> Any:
            line = ["run", "--network", "none", "--image", IMAGE, *words]
            surroundings = {"DOCKER_HOST": engine.address, "TMPDIR": str(tmp_path), **env}
            return on_terminal(*line, env=surroundings, **options)

        yield start
        until(lambda: engine.containers() == [])

    def test_the_container_has_a_terminal_of_the_same_size(self, on_docker: Start) -> None:
        script = f"test -t 0 && test -t 1 && test -t 2 && echo all; {sized(30, 100)}"
        started = on_docker("sh", "-c", script, rows=30, columns=100)
        before = started.modes()
        assert started.wait() == 0
        assert started.output.startswith("all\r\nsized\r\n")
        assert "exited with 0" in started.output
        assert started.modes()[:4] == before[:4]

    def test_a_shell_is_used_by_hand(self, on_docker: Start) -> None:
        started = on_docker("--env", "PS1=prompt-here ", "sh")
        started.until("prompt-here")
        started.send("echo $((6 * 7)); exit 5\r")
        started.until("42\r\n")
        assert started.wait() == 5

    def test_ctrl_c_and_ctrl_z_are_the_containers_own(self, on_docker: Start) -> None:
        started = on_docker("sh", "-c", "trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done")
        started.until("ready")
        started.send("\x03")
        started.until("caught\r\n")
        os.kill(started.pid, signal.SIGTERM)
        os.kill(started.pid, signal.SIGTERM)
        started.wait()
        cat = on_docker("sh", "-c", "stty raw -echo; echo ready; dd bs=1 count=3 2>/dev/null | od -An -c")
        cat.until("ready")
        cat.until(lambda: not cat.modes()[3] & termios.ICANON)
        cat.send("\x1a\x03q")
        assert cat.wait() == 0
        assert "032" in cat.output
        assert "003" in cat.output

    def test_the_terminal_follows_the_size_of_ours(self, on_docker: Start) -> None:
        script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
        started = on_docker("sh", "-c", script)
        started.until("ready")
        for rows, columns in ((30, 100), (40, 120)):
            fcntl.ioctl(started.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            started.until(f"{rows} {columns}")
        os.kill(started.pid, signal.SIGKILL)

    def test_the_terminal_is_given_back_whatever_happens(self, on_docker: Start, tmp_path: Path) -> None:
        for words in (["sh", "-c", "exit 3"], ["no-such-command"], ["--timeout", "1", "sleep", "60"]):
            started = on_docker(*words)
            before = started.modes()
            started.wait()
            assert started.modes()[:4] == before[:4]
        started = on_docker("sh", "-c", "echo ready; sleep 60")
        before = started.modes()
        started.until("ready")
        started.until(lambda: not started.modes()[3] & termios.ICANON)
        os.kill(started.pid, signal.SIGTERM)
        os.kill(started.pid, signal.SIGTERM)
        started.wait()
        assert started.modes()[:4] == before[:4]

    def test_much_output_is_complete(self, on_docker: Start) -> None:
        started = on_docker("seq", "20000")
        assert started.wait() == 0
        expected = "".join(f"{number}\r\n" for number in range(1, 20001))
        found = re.sub(r"cameleer: [^\r\n]*\r?\n", "", started.output)  # what is said goes to the same terminal
        wrong = next((at for at, (ours, right) in enumerate(zip(found, expected, strict=False)) if ours != right), 0)
        assert found.startswith(expected), f"wrong from {wrong} on: {found[max(wrong - 20, 0) :][:80]!r}"

    def test_with_a_pipe_there_is_no_terminal(self, session: Start, engine: Engine) -> None:
        bash = session(
            [
                shutil.which("bash") or "bash",
                "--norc",
                "--noprofile",
                "-c",
                " ".join(
                    [
                        *CAMELEER,
                        "run --network none --image",
                        IMAGE,
                        "sh -c 'test -t 1 || echo none; echo err >&2' 2>err | cat",
                    ]
                ),
            ],
            env={"DOCKER_HOST": engine.address},
        )
        assert bash.wait() == 0
        assert "none\r\n" in bash.output
        assert "err" not in bash.output

    def test_the_live_view_is_below_the_containers_terminal(self, on_docker: Start) -> None:
        work = f"{sized(16, 80)}; test -t 0 && test -t 1 && echo all; seq 100; read x; echo got $x"
        started = on_docker("--live", "sh", "-c", work, rows=20)
        before = started.modes()
        started.until(lambda: "memory" in started.screen.text()[18])
        started.until(lambda: started.screen.text()[14] == "100")
        assert "sized" in started.output
        assert "all" in started.output
        started.send("word\r")
        started.until("got word")
        assert started.wait() == 0
        assert "exited with 0" in "".join(started.screen.text())
        assert started.modes()[:4] == before[:4]

    def test_a_kill_of_cameleer_leaves_no_container(self, on_docker: Start, engine: Engine) -> None:
        started = on_docker("sh", "-c", "echo ready; sleep 1000")
        started.until("ready")
        os.kill(started.pid, signal.SIGKILL)
        until(lambda: engine.containers() == [])
