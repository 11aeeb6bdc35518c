"""Record what an engine answers about its containers, for the tests of the conversion::

    python tests/data/docker/record.py unix:///run/docker.sock OUT NAME=CONTAINER…

For each container ``GET /containers/ID/stats`` without a stream and with one-shot, as it came, in ``OUT/NAME.json``,
and two objects of its stream in ``OUT/NAME-stream.json``; ``OUT/info.json`` has of ``GET /info`` what is used.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from pathlib import Path

USED = ("MemTotal", "KernelVersion", "CgroupVersion", "CgroupDriver", "OSType", "ServerVersion", "Warnings")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def ask(address: str, path: str, lines: int = 0) -> bytes:
    connection = _Connection(address.removeprefix("unix://"))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return b"".join(response.readline() for _ in range(lines)) if lines else response.read()
    finally:
        connection.close()


def main() -> int:
    address, folder, *containers = sys.argv[1:]
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    info = json.loads(ask(address, "/info"))
    (out / "info.json").write_text(json.dumps({key: info.get(key) for key in USED}, indent=1) + "\n")
    for each in containers:
        name, _, container = each.partition("=")
        (out / f"{name}.json").write_bytes(ask(address, f"/containers/{container}/stats?stream=false&one-shot=true"))
        (out / f"{name}-stream.json").write_bytes(ask(address, f"/containers/{container}/stats?stream=true", lines=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
