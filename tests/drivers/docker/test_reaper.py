"""Containers of a host that is killed. Each host here is a process that says what its reaper is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, PATIENCE_S, Engine, needs_engine, running

from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.reaper import Reaper
from cameleer.errors import StartRecoverable

HOST = """
import asyncio, json, os, sys
from cameleer.drivers.docker.client.endpoint import Endpoint, Tls
from cameleer.drivers.docker.reaper import Reaper

async def main():
    tls = json.loads(sys.argv[3])
    endpoint = Endpoint(url=sys.argv[1], tls=tls and Tls(**tls), source="the test")
    reaper = Reaper(endpoint, sys.argv[2])
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        verb, *words = json.loads(line)
        if verb == "fork":
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "60"]) if words else os.read(0, 1)
        elif verb == "shut":
            os.closerange(3, 256)
        else:
            await getattr(reaper, verb)(*words)
        print(reaper.pid, flush=True)

asyncio.run(main())
"""


class Host:
    """A process that has a reaper.

    :ivar reaper_pid: of that, as it was at the last word.
    """

    def __init__(self, address: str, host_id: str, tls: dict[str, Any] | None = None) -> None:
        self.id = host_id
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST, address, host_id, json.dumps(tls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.reaper_pid = 0

    def tell(self, verb: str, *words: object) -> None:
        """Have it do something, and wait until that is done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([verb, *words]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        assert answer, f"the host ended at {verb}"
        self.reaper_pid = int(answer) if answer != "None" else self.reaper_pid

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it, and wait for its reaper."""
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        if self.reaper_pid:
            until(lambda: not lives(self.reaper_pid))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def container(engine: Engine, host: Host, name: str, *options: str, verb: str = "create") -> str:
    """Make a container as the driver would; its id."""
    label = f"cameleer.host_id={host.id}"
    words = [verb, *(["--detach"] if verb == "run" else []), "--network=none", f"--label={label}", f"--name={name}"]
    return engine.out(*words, *options, IMAGE, "sleep", "1000")


def names(engine: Engine) -> set[str]:
    return set(engine.out("ps", "--all", "--format={{.Names}}").split())


@pytest.fixture
def host(engine: Engine) -> Iterator[Host]:
    made = Host(engine.address, os.urandom(8).hex())
    yield made
    made.end()
    if found := engine.out("ps", "--all", "--quiet", f"--filter=label=cameleer.host_id={made.id}").split():
        engine.cli("rm", "--force", "--volumes", *found)


pytestmark = [pytest.mark.root, needs_engine]


def test_containers_of_a_killed_host_are_removed_with_their_volumes_and_groups(engine: Engine, host: Host) -> None:
    outer = Path(f"/sys/fs/cgroup/pids/cameleer-test-{host.id}")
    inner = outer / "inner"
    if not outer.parent.is_dir():
        pytest.skip("no cgroup v1 here")
    inner.mkdir(parents=True)
    before = set(engine.out("volume", "ls", "--quiet").split())
    for name in ("runs", "ended", "created"):
        host.tell("watch", f"{host.id}-{name}", [str(inner), str(outer)] if name == "runs" else [])
    container(
        engine, host, f"{host.id}-runs", "--volume=/data", f"--cgroup-parent=/{outer.name}/{inner.name}", verb="run"
    )
    container(engine, host, f"{host.id}-created")
    engine.cli("kill", container(engine, host, f"{host.id}-ended", verb="run"))
    assert set(engine.out("volume", "ls", "--quiet").split()) > before
    host.kill()
    until(lambda: not lives(host.reaper_pid))
    assert not [name for name in names(engine) if name.startswith(host.id)]
    assert set(engine.out("volume", "ls", "--quiet").split()) == before
    assert not outer.exists()


def test_a_container_that_is_still_being_created_is_removed_too(engine: Engine, host: Host) -> None:
    host.tell("watch", f"{host.id}-late")
    host.kill()
    time.sleep(0.5)  # the engine's own time for a create; the reaper has found nothing meanwhile
    assert lives(host.reaper_pid)
    container(engine, host, f"{host.id}-late", verb="run")
    until(lambda: f"{host.id}-late" not in names(engine))
    until(lambda: not lives(host.reaper_pid))


def test_the_containers_of_others_and_those_to_keep_are_left_alone(engine: Engine, host: Host) -> None:
    other = Host(engine.address, f"other{host.id}")
    try:
        for name in ("ours", "taken", "kept"):
            host.tell("watch", f"{host.id}-{name}")
        container(engine, host, f"{host.id}-ours")
        container(engine, host, f"{host.id}-kept", "--label=cameleer.keep=true")
        container(engine, other, f"{host.id}-taken")  # somebody else's, of a name that we wanted
        host.tell("forget", f"{host.id}-taken")
        host.kill()
        until(lambda: not lives(host.reaper_pid))
        assert {f"{host.id}-taken", f"{host.id}-kept"} <= names(engine)
        assert f"{host.id}-ours" not in names(engine)
    finally:
        other.end()
        engine.cli("rm", "--force", f"{host.id}-taken")


def test_what_was_forgotten_is_left_alone_and_then_the_reaper_ends_at_once(engine: Engine, host: Host) -> None:
    host.tell("watch", f"{host.id}-a")
    container(engine, host, f"{host.id}-a")
    host.tell("forget", f"{host.id}-a")
    host.tell("forget", f"{host.id}-a")
    began = time.monotonic()
    host.kill()
    until(lambda: not lives(host.reaper_pid))
    assert time.monotonic() - began < 5
    assert f"{host.id}-a" in names(engine)


def test_a_reaper_that_was_killed_is_started_anew_and_knows_all(engine: Engine, host: Host) -> None:
    host.tell("watch", f"{host.id}-a")
    first = host.reaper_pid
    container(engine, host, f"{host.id}-a")
    os.kill(first, signal.SIGKILL)
    host.tell("watch", f"{host.id}-b")
    assert host.reaper_pid != first
    container(engine, host, f"{host.id}-b")
    host.kill()
    until(lambda: not lives(host.reaper_pid))
    assert not {f"{host.id}-a", f"{host.id}-b"} & names(engine)


def test_signals_to_a_whole_group_do_not_end_it(engine: Engine, host: Host) -> None:
    host.tell("watch", f"{host.id}-a")
    container(engine, host, f"{host.id}-a")
    assert os.getsid(host.reaper_pid) == host.reaper_pid
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(host.reaper_pid, signum)
    host.kill()
    until(lambda: not lives(host.reaper_pid))
    assert f"{host.id}-a" not in names(engine)


def test_a_child_of_the_hosts_that_has_its_descriptors_does_not_hold_it_up(engine: Engine, host: Host) -> None:
    host.tell("watch", f"{host.id}-a")
    container(engine, host, f"{host.id}-a")
    host.tell("fork")  # the child waits for our end of its stdin, with a copy of the socket
    host.kill()
    until(lambda: f"{host.id}-a" not in names(engine))


def test_a_host_that_closes_descriptors_it_does_not_know_lives_on_with_its_containers(
    engine: Engine, host: Host
) -> None:
    host.tell("watch", f"{host.id}-a")
    container(engine, host, f"{host.id}-a")
    host.process.stdin.write('["shut"]\n')  # type: ignore[union-attr]
    host.process.stdin.flush()  # type: ignore[union-attr]
    until(lambda: not any("socket" in each for each in descriptors(host.process.pid)))
    time.sleep(0.5)  # nothing happens, which cannot be waited for
    assert f"{host.id}-a" in names(engine)
    host.kill()
    until(lambda: f"{host.id}-a" not in names(engine))


def descriptors(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except OSError:
            continue
    return found


def test_an_engine_that_is_away_is_asked_again() -> None:
    with running() as engine:
        host = Host(engine.address, "away")
        try:
            host.tell("watch", "away-a")
            container(engine, host, "away-a")
            engine.kill()
            host.kill()
            time.sleep(0.5)  # so long the engine is away
            assert lives(host.reaper_pid)
            engine.start()
            until(lambda: not lives(host.reaper_pid))
            assert names(engine) == set()
        finally:
            host.end()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_engine_behind_tls_is_reached(tmp_path: Path) -> None:
    certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [
        f"--tls{name}={tmp_path}/{file}"
        for name, file in (("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))
    ]
    tls = {"ca": f"{tmp_path}/ca.pem", "cert": f"{tmp_path}/cert.pem", "key": f"{tmp_path}/key.pem", "verify": True}
    with running("--tlsverify", *files, f"--host=tcp://127.0.0.1:{port}") as engine:
        host = Host(f"tcp://127.0.0.1:{port}", "tls", tls)
        try:
            host.tell("watch", "tls-a")
            container(engine, host, "tls-a")
            host.kill()
            until(lambda: names(engine) == set())
        finally:
            host.end()


def certificates(folder: Path) -> None:
    """A key and a certificate of an authority that is its own, for both sides."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test", *extensions, *files]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    (folder / "ca.pem").write_bytes(certificate.read_bytes())


# in this process


async def test_closing_leaves_no_process_and_no_descriptor(engine: Engine) -> None:
    before = descriptors(os.getpid())
    reaper = reaper_of(engine.address)
    assert reaper.pid is None
    await reaper.watch("cameleer-test-a")
    pid = reaper.pid
    assert pid is not None
    await reaper.forget("cameleer-test-a")
    await reaper.close()
    await reaper.close()
    assert not Path(f"/proc/{pid}").exists()
    assert sorted(descriptors(os.getpid())) == sorted(before)


async def test_closing_with_containers_left_removes_them(engine: Engine) -> None:
    reaper = reaper_of(engine.address)
    await reaper.watch("cameleer-test-left")
    engine.cli("create", "--label=cameleer.host_id=here", "--name=cameleer-test-left", "--network=none", IMAGE, "true")
    pid = reaper.pid
    await reaper.close()
    until(lambda: "cameleer-test-left" not in names(engine))
    until(lambda: not Path(f"/proc/{pid}").exists())


async def test_names_that_are_told_at_once_are_all_known(engine: Engine) -> None:
    import asyncio

    reaper = reaper_of(engine.address)
    await asyncio.gather(*(reaper.watch(f"cameleer-test-{number}") for number in range(50)))
    giving_up = asyncio.ensure_future(reaper.watch("cameleer-test-given-up"))
    await asyncio.sleep(0)
    giving_up.cancel()
    await asyncio.gather(*(reaper.forget(f"cameleer-test-{number}") for number in range(50)))
    await reaper.watch("cameleer-test-last")
    await reaper.forget("cameleer-test-last")
    await reaper.forget("cameleer-test-given-up")
    began = time.monotonic()
    await reaper.close()
    assert time.monotonic() - began < 4


async def test_a_python_that_is_not_there_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(StartRecoverable, match="/no/such/python"):
        await reaper_of(engine.address).watch("cameleer-test-a")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartRecoverable, match="died twice"):
        await reaper_of(engine.address).watch("cameleer-test-a")


def reaper_of(address: str) -> Reaper:
    return Reaper(Endpoint(url=address, source="the test"), "here")
