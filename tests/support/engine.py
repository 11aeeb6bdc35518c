"""A real Docker engine of the tests' own, on a socket of its own, with one small image::

python tests/support/engine.py COMMAND…  # runs a command with DOCKER_HOST set, and ends the engine with it
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

IMAGE = "busybox:test"
PATIENCE_S = 30.0
_OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
_BUSYBOX = shutil.which("busybox")

missing = (
    "needs root"
    if os.geteuid() != 0
    else next((f"{name} is not installed" for name in ("dockerd", "busybox", "docker") if not shutil.which(name)), "")
)
needs_engine = pytest.mark.skipif(bool(missing), reason=f"no Docker engine can be started here: {missing}")


class Engine:
    """One ``dockerd``, with its containerd, below one folder.

    :ivar address: for ``DOCKER_HOST``.
    :ivar group: control group, in each hierarchy, of containers that ask for no other.
    :ivar pid: of dockerd; 0 while it does not run.
    """

    def __init__(self, folder: Path, *options: str, bridge: bool = False) -> None:
        """Start nothing yet.

        :param bridge: in a network namespace of its own, where it may have a bridge; see :meth:`inside`.
        """
        self.folder = folder
        self._bridge = bridge
        self.address = f"unix://{folder}/sock"
        self.group = folder.name
        self.pid = 0
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "log").open("ab")
        network = ["--userland-proxy=true"] if self._bridge else ["--bridge=none"]
        self._process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=TERM",  # also where the tests are killed
                *(_OWN_NETWORK if self._bridge else ()),
                "env",
                "--default-signal",  # of whoever started the tests, and so of the containers
                "dockerd",
                f"--data-root={self.folder}/data",
                f"--exec-root={self.folder}/exec",
                f"--pidfile={self.folder}/pid",
                f"--host={self.address}",
                *network,
                "--iptables=false",
                "--ip6tables=false",
                f"--cgroup-parent=/{self.group}",
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.pid = self._process.pid
        deadline = time.monotonic() + PATIENCE_S
        while self.cli("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not answer: {self.log()[-2000:]}")
            time.sleep(0.05)

    def inside(self, *command: str) -> list[str]:
        """The words that run a command in the engine's network namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def cli(self, *words: str, check: bool = True, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run the ``docker`` program against it."""
        return subprocess.run(
            ["docker", *words],
            env={**os.environ, "DOCKER_HOST": self.address},
            input=stdin if stdin is not None else b"",
            capture_output=True,
            check=check,
            timeout=60,
        )

    def out(self, *words: str) -> str:
        """Run it, and return its stdout without the last line's end."""
        return self.cli(*words).stdout.decode().rstrip("\n")

    def load(self, image: str = IMAGE) -> None:
        """Make the small image: busybox, ``/bin/sh``, two users."""
        with tempfile.TemporaryDirectory() as folder:
            tar = Path(folder, "image.tar")
            small_image(tar)
            self.cli("import", str(tar), image)

    def containers(self) -> list[str]:
        """Ids of all containers, also ended ones."""
        return self.out("ps", "--all", "--quiet", "--no-trunc").split()

    def kill(self) -> None:
        """Kill dockerd with SIGKILL, which takes its containerd with it; containers live on under their shims."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pid in self._containerd():
            os.kill(pid, signal.SIGKILL)
        # where nobody reaps orphans, the next dockerd would take a dead containerd for alive
        (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        self.pid = 0

    def freeze(self) -> None:
        """Stop dockerd in its tracks."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Remove all containers and end it; nothing of it is left but its folder."""
        if self._process is None or self._process.poll() is not None:
            return
        self.thaw()
        if found := self.containers():
            self.cli("rm", "--force", "--volumes", *found, check=False)
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        for pid in self._containerd():
            os.kill(pid, signal.SIGKILL)
        self.pid = 0
        for mount in sorted(self._mounts(), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        for group in Path("/sys/fs/cgroup").glob(self.group if self._is_v2() else f"*/{self.group}"):
            for inner in (*group.iterdir(), group):
                if inner.is_dir():
                    inner.rmdir()

    @staticmethod
    def _is_v2() -> bool:
        return Path("/sys/fs/cgroup/cgroup.controllers").exists()

    def _containerd(self) -> list[int]:
        """Its containerd, where it still runs."""
        try:
            pid = int((self.folder / "exec/containerd/containerd.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError):
            return []
        return [pid] if str(self.folder) in words else []

    def _mounts(self) -> list[str]:
        words = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return [each[4] for each in words if each[4].startswith(f"{self.folder}/")]


def small_image(target: Path) -> None:
    """Write a tar of a file system with busybox and two users."""
    assert _BUSYBOX is not None
    names = subprocess.run([_BUSYBOX, "--list"], capture_output=True, check=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(target, "w") as tar:
        root = Path(folder)
        for each in ("bin", "etc", "tmp", "usr", "dev", "proc", "sys"):
            (root / each).mkdir()
        (root / "tmp").chmod(0o1777)
        shutil.copy(_BUSYBOX, root / "bin/busybox")
        for name in names:
            if name != "busybox":
                (root / "bin" / name).symlink_to("busybox")
        (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nnobody:x:65534:\n")
        tar.add(root, arcname=".")


@contextmanager
def running(*options: str, images: Sequence[str] = (IMAGE,), bridge: bool = False) -> Iterator[Engine]:
    """An engine for the time of the context."""
    folder = Path(tempfile.mkdtemp(prefix="cameleer-engine-"))  # short: the path of a socket has 107 bytes at most
    engine = Engine(folder, *options, bridge=bridge)
    try:
        engine.start()
        for image in images:
            engine.load(image)
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with running() as started:
        environment = {**os.environ, "DOCKER_HOST": started.address}
        status = subprocess.run(sys.argv[1:], env=environment, check=False).returncode
    sys.exit(status)
