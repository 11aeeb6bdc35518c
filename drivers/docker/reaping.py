"""The process that removes a host's containers once the host has died, also by SIGKILL.

Run as ``python -I -S -c "…; main(FD, HOST)"``. It imports nothing but the C parts of Python's library before there is
work, since every host without a state folder has one. On its socket it is told the names of containers before they are
created, and again when they are gone. It acts when the host's process has ended, or says that it closes.

It removes what bears the label of the host, and nothing else: a name may belong to somebody else's container.
"""

# ruff: noqa: SIM105 # contextlib would be one more import
from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the C part of signal, which has no stub
import _socket
import errno
import posix
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ssl import SSLContext
    from typing import Any

_IGNORED = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGXFSZ", "SIGIO")
_PACKET = 1 << 18
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_UNDER_WAY_S = 10.0
"""A container that is not there may be: the engine goes on creating when the host is gone, seconds."""
_GIVE_UP_S = 120.0
"""How long an engine that does not answer is asked again, seconds."""
_ANSWER_S = 10.0
_MOST_BYTES = 1 << 26
_OK, _REMOVED, _ABSENT = 200, 204, 404
_KEEP = "cameleer.keep"
"""Label of containers that are never removed."""


def main(fd: int, host_pid: int) -> None:
    """Serve until the host is gone, then remove what it left.

    :param fd: our end of the socket.
    :param host_pid: the process that started us.
    """
    posix.set_inheritable(fd, False)
    for name in _IGNORED:
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    left = _Left()
    left.listen(_socket.socket(fileno=fd), host_pid)
    if left.names:
        left.reap()
    posix._exit(0)


class _Left:
    """What would be left if the host died now.

    :ivar names: containers, each with the groups around it.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self._settings: dict[str, str] = {}
        self._engine: _Engine | None = None

    # -- what the host says --------------------------------------------------------------------------------------

    def listen(self, requests: _socket.socket, host_pid: int) -> None:
        """Return when the host has ended, or closes."""
        fd = requests.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        try:
            host = posix.pidfd_open(host_pid)
        except OSError:  # no such call, or no such process: the end of the socket must do
            host = -1
        else:
            poll.register(host, select.POLLIN)
        gone = posix.getppid() != host_pid
        while not gone:
            ready = [each for each, _ in poll.poll()]
            gone = host in ready
            if fd in ready:
                verb = self._read(requests)
                if verb == "close" or (not verb and host < 0):
                    return
                if not verb:  # a process that closed what it did not know lives on, and so do its containers
                    poll.unregister(fd)
        requests.setblocking(False)
        try:
            while self._read(requests):
                pass
        except BlockingIOError:
            pass

    def _read(self, requests: _socket.socket) -> str:
        """Take one packet; what kind it was, empty at the end."""
        try:
            packet = requests.recv(_PACKET)
        except ConnectionError:
            packet = b""
        verb, *fields = packet.decode("utf-8", "surrogateescape").split("\0")
        if verb == "watch":
            self.names[fields[1]] = fields[2:]
            try:
                requests.send(fields[0].encode())
            except OSError:  # the host is gone already
                pass
        elif verb == "forget":
            self.names.pop(fields[0], None)
        elif verb == "engine":
            pairs = (field.partition("=") for field in fields)
            self._settings = {key: value for key, _, value in pairs}
            self._engine = _Engine(self._settings)
        return verb

    # -- removing ------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Remove the containers and the groups around them, as often as it takes."""
        engine = self._engine
        assert engine is not None  # told before any name
        began, answered = time.monotonic(), 0.0
        folders: list[str] = []
        pause_s, again = _FIRST_PAUSE_S, True
        while True:
            try:
                removed, again = self._round(engine)
            except (OSError, ValueError, LookupError):  # it does not answer, or nonsense
                removed = set()
            else:
                answered = answered or time.monotonic()
            now = time.monotonic()
            over = now - began > _GIVE_UP_S or (not again and now - answered > _UNDER_WAY_S)
            for name in list(self.names) if over else removed & self.names.keys():
                folders += self.names.pop(name)
            folders = [folder for folder in folders if not _rmdir(folder)]
            if over or not (again or self.names or folders):
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _round(self, engine: _Engine) -> tuple[set[str], bool]:
        """Remove what there is; the names of what is gone, and whether something would not go."""
        removed, again = set(), False
        for container in engine.containers(self._settings["host_id"]):
            names = {name.lstrip("/") for name in container["Names"] or ()}
            if _KEEP in container["Labels"]:
                for name in names:
                    self.names.pop(name, None)
            elif engine.remove(container["Id"]):
                removed |= names
            else:
                again = True
        return removed, again


def _rmdir(path: str) -> bool:
    """Remove a group; whether it is gone."""
    try:
        posix.rmdir(path)
    except OSError as exc:
        return exc.errno not in (errno.EBUSY, errno.ENOTEMPTY)
    return True


class _Engine:
    """The engine, in HTTP/1.0: a connection for each request, ended by the engine.

    :param settings: ``socket``, else ``host``, ``port`` and ``prefix``; ``host_id``; with TLS also ``tls`` and what of
        ``ca``, ``cert``, ``key`` there is.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._prefix = settings.get("prefix", "")
        self._tls = _tls(settings) if "tls" in settings else None

    def containers(self, host_id: str) -> list[Any]:
        """All containers of a host, also ended ones.

        :raises OSError: the engine does not answer.
        :raises ValueError: the answer is none.
        """
        import json
        from urllib.parse import quote

        filters = quote(json.dumps({"label": [f"cameleer.host_id={host_id}"]}))
        status, body = self._request("GET", f"/containers/json?all=1&filters={filters}")
        if status != _OK:
            raise ValueError(status)
        found: list[Any] = json.loads(body)
        return found

    def remove(self, container: str) -> bool:
        """Kill and remove a container with its anonymous volumes; whether it is gone."""
        return self._request("DELETE", f"/containers/{container}?force=1&v=1")[0] in (_REMOVED, _ABSENT)

    def _request(self, method: str, path: str) -> tuple[int, bytes]:
        connection = self._connect()
        host = self._settings.get("host", "docker")
        try:
            connection.sendall(f"{method} {self._prefix}{path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answer = bytearray()
            while len(answer) < _MOST_BYTES and (data := connection.recv(1 << 16)):
                answer += data
        finally:
            connection.close()
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        return int(head.split(None, 2)[1]), body

    def _connect(self) -> Any:
        import socket

        path = self._settings.get("socket")
        if path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(_ANSWER_S)
            connection.connect(path)
            return connection
        host = self._settings["host"]
        connection = socket.create_connection((host, int(self._settings["port"])), _ANSWER_S)
        return connection if self._tls is None else self._tls.wrap_socket(connection, server_hostname=host)


def _tls(settings: Mapping[str, str]) -> SSLContext:
    """Our side of an encrypted connection; made before there is work, since its files may go."""
    import ssl

    context = ssl.create_default_context(cafile=settings.get("ca"))
    if settings["tls"] != "verify":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "cert" in settings:
        context.load_cert_chain(settings["cert"], settings.get("key"), password="")  # else it would ask for one
    return context
