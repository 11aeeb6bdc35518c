"""A registry of images of the tests' own, on loopback; and a way to it that a test can hold up."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from engine import Engine

USER = "tester"
PASSWORD = "correct horse"
_HASH = "$2b$04$cR0s0cOs0bXyw7f8HV1ghuX3xeMAhzlRYSJJ4ORU6zIlSpgtetKO."  # of the password: a test's, and no secret
_PROGRAM = shutil.which("docker-registry")
_PATIENCE_S = 30.0

needs_registry = pytest.mark.skipif(_PROGRAM is None, reason="docker-registry is not installed")

_CONFIG = """\
version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: {folder}/data
http:
  addr: 127.0.0.1:{port}
"""
_AUTH = """\
auth:
  htpasswd:
    realm: tests
    path: {folder}/htpasswd
"""


class Registry:
    """One registry.

    :ivar address: as images name it.
    """

    def __init__(self, folder: Path, *, auth: bool = False) -> None:
        self.folder = folder
        self._auth = auth
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, also again on the same port, and wait until it answers."""
        assert _PROGRAM is not None
        self.folder.mkdir(exist_ok=True)
        (self.folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        config = self.folder / "config.yml"
        config.write_text((_CONFIG + (_AUTH if self._auth else "")).format(folder=self.folder, port=self.port))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_PROGRAM, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": "/bin"}
            )
        deadline = time.monotonic() + _PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the registry does not answer: {self.log()[-2000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self.address}/v2/", timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def requests(self, words: str) -> int:
        """Requests so far of which a line of its access log has these words."""
        return sum(words in line and line.startswith("127.0.0.1 - ") for line in self.log().splitlines())

    def freeze(self) -> None:
        """Stop it in its tracks: it takes connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def push(self, engine: Engine, image: str, name: str, *, keep: bool = True) -> str:
        """Put an image of an engine there, under this name and tag; its whole name.

        :param keep: the engine keeps the image under its own name, and with it its layers.
        """
        whole = f"{self.address}/{name}"
        engine.cli("tag", image, whole)
        (self.folder / "docker").mkdir(exist_ok=True)
        user_config(self.folder / "docker", self.address)
        engine.cli("--config", str(self.folder / "docker"), "push", whole)
        engine.cli("rmi", whole, *([] if keep else [image]))
        return whole


def user_config(folder: Path, address: str, password: str = PASSWORD) -> None:
    """Write a docker configuration as the user's, with credentials for a registry."""
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))


@contextmanager
def serving(folder: Path, *, auth: bool = False) -> Iterator[Registry]:
    """A registry for the time of the context."""
    registry = Registry(folder, auth=auth)
    try:
        registry.start()
        yield registry
    finally:
        registry.stop()


def large_image(engine: Engine, image: str, folder: Path, size: int) -> None:
    """Make an image of so many bytes that cannot be compressed."""
    (folder / "large").write_bytes(os.urandom(size))
    with tarfile.open(folder / "large.tar", "w") as tar:
        tar.add(folder / "large", arcname="large")
    engine.cli("import", str(folder / "large.tar"), image)


class HeldUp:
    """A way to a registry that lets so many bytes of each connection through, and no more until it is cut or let go.

    So it is layers that are held up: the engine does not always give up a request for something small.

    :ivar address: as images name it.
    :ivar full: set when no more is let through.
    :ivar held: connections of the engine's that are open and wait.
    """

    def __init__(self, registry: Registry, let_through: int) -> None:
        self.address = ""
        self.full = asyncio.Event()
        self._registry = registry
        self._let_through = let_through
        self._go_on = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self.held = 0
        self.server: asyncio.Server | None = None

    def let_go(self) -> None:
        """Let everything through."""
        self._go_on.set()

    def cut(self) -> None:
        """Close all connections, and take no more."""
        if self.server is not None:
            self.server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        """Close all connections, and wait for that."""
        self.cut()
        while self._writers:
            await asyncio.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of the engine's."""
        self._writers.add(writer)
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._registry.port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, ours))
                    group.create_task(self._copy(theirs, writer, counted=True))
            finally:
                ours.transport.abort()
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False) -> None:
        passed = 0
        while data := await reader.read(16384):
            if counted and not self._go_on.is_set():
                passed += len(data)
                if passed > self._let_through:
                    self.full.set()
                    self.held += 1
                    try:
                        await self._go_on.wait()
                    finally:
                        self.held -= 1
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # ends the other direction too


@asynccontextmanager
async def held_up(registry: Registry, let_through: int) -> AsyncIterator[HeldUp]:
    """A way to a registry for the time of the context."""
    way = HeldUp(registry, let_through)
    way.server = server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    way.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield way
    finally:
        await way.close()
