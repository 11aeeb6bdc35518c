"""Containers of a host without a state folder, which nobody would find again: they are removed when it dies.

A tiny process of its own does it (:mod:`cameleer.drivers.docker.reaping`), so also after SIGKILL. It is told each name
before the container is created.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cameleer.bare import start_bare
from cameleer.errors import StartRecoverable

if TYPE_CHECKING:
    from cameleer.drivers.docker.client.endpoint import Endpoint

_PASSED_ON = ("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PATIENCE_S = 5.0


class Reaper:
    """Removes the containers of this host when its process ends; started at the first one, anew if it died.

    :param host_id: whose containers they are; they bear it as the label ``cameleer.host_id``.
    """

    def __init__(self, endpoint: Endpoint, host_id: str) -> None:
        self._endpoint = endpoint
        self._host_id = host_id
        self._names: dict[str, tuple[str, ...]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._told = 0

    @property
    def pid(self) -> int | None:
        """Its process; None before the first container."""
        return None if self._process is None else self._process.pid

    async def watch(self, name: str, folders: Sequence[str] = ()) -> None:
        """Look after a container that is about to be created; returns when the process knows it.

        :param folders: absolute paths of the control groups around it, removed after it in this order, where they are
            empty.
        :raises StartRecoverable: no process can be started now.
        """
        async with self._turn:
            self._names[name] = tuple(folders)
            for _ in range(2):
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        await self._tell_anew() if self._socket is None else await self._tell(name)
                    return
                except (OSError, TimeoutError, ValueError):  # it died, or hangs
                    self._kill()
            del self._names[name]
            raise StartRecoverable("the process that removes containers after a crash died twice")

    async def forget(self, name: str) -> None:
        """A container is gone, or is to stay; twice without error."""
        async with self._turn:
            if self._names.pop(name, None) is None or self._socket is None:
                return
            with suppress(OSError, TimeoutError):  # the next one that is started will not hear of it
                async with asyncio.timeout(_PATIENCE_S):
                    await self._send("forget", name)

    async def close(self) -> None:
        """End the process. Containers that were not forgotten are removed all the same, if need be after this."""
        async with self._turn:
            sock, self._socket = self._socket, None
            process, self._process = self._process, None
            if sock is None or process is None:
                return
            with sock, suppress(OSError, TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await asyncio.get_running_loop().sock_sendall(sock, b"close")
                    while await asyncio.get_running_loop().sock_recv(sock, 64):  # until it has ended
                        pass
            if self._names and process.poll() is None:
                threading.Thread(target=process.wait, name="cameleer-docker-reaper", daemon=True).start()
                return
            _end(process)

    def _start(self) -> socket.socket:
        folder = os.path.dirname(os.path.abspath(__file__))
        self._process, sock = start_bare("reaping", folder, passed_on=_PASSED_ON, new_session=True)
        return sock

    def _kill(self) -> None:
        """End a process that is of no use, before its socket is closed: it must not take that for our end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    # -- what it is told -----------------------------------------------------------------------------------------

    async def _tell_anew(self) -> None:
        """Start it, and tell it everything."""
        self._socket = self._start()
        try:
            await self._send("engine", *(f"{key}={value}" for key, value in self._settings().items()))
            for name in list(self._names):
                await self._tell(name)
        except BaseException:
            self._kill()
            raise

    def _settings(self) -> dict[str, str]:
        endpoint = self._endpoint
        settings = {"host_id": self._host_id}
        if endpoint.path is not None:
            return settings | {"socket": os.path.abspath(endpoint.path)}
        settings |= {"host": endpoint.host, "port": str(endpoint.port), "prefix": endpoint.prefix}
        tls = endpoint.tls
        if tls is not None:
            files = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
            settings |= {key: os.path.abspath(path) for key, path in files.items() if path}
            settings["tls"] = "verify" if tls.verify else "any"
        return settings

    async def _tell(self, name: str) -> None:
        """Tell it a name, and wait until it has read that."""
        self._told += 1
        await self._send("watch", str(self._told), name, *self._names[name])
        assert self._socket is not None
        read = 0
        while read < self._told:  # a call that was cancelled has left its answer
            read = int(await asyncio.get_running_loop().sock_recv(self._socket, 64))

    async def _send(self, *words: str) -> None:
        assert self._socket is not None
        data = "\0".join(words).encode("utf-8", "surrogateescape")
        await asyncio.get_running_loop().sock_sendall(self._socket, data)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Reap a process that has ended; one that hangs is killed."""
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
