"""What a host keeps on disk, so that another finds its tasks again: its id, a lock, one file per task.

The folder belongs to one host at a time. Files are written beside and renamed, so a kill at any moment leaves the old
or the new one. Only the owner can read them: a handle holds the task's environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from cameleer.config import TaskConfig
from cameleer.errors import ConfigError, RecoverableError
from cameleer.log import fields, log
from cameleer.task import TaskHandle

_PREFIX = "cameleer-host-"
_START_S = 60.0
"""No start takes longer to say whose its folders are."""
_CLOCK_S = 0.02
"""How far the times of folders may be behind: the kernel takes them from its ticks."""


def default_state_dir() -> Path:
    """Where a long-running host keeps its state: ``/run/cameleer`` for root, else below ``$XDG_RUNTIME_DIR``."""
    if os.geteuid() == 0:
        return Path("/run/cameleer")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "cameleer" if runtime else _private_root() / f"cameleer-{os.geteuid()}"


def _private_root() -> Path:
    return Path(os.environ.get("TMPDIR") or "/tmp")


def abandoned_private_dirs() -> list[Path]:
    """Private state folders of this user whose host is gone: it was killed."""
    found = []
    for path in sorted(_private_root().glob(f"{_PREFIX}{os.geteuid()}-*")):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            fd = os.open(path / "host.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it goes away this very moment
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(path)
        except BlockingIOError:
            pass  # its host lives
        finally:
            os.close(fd)
    return found


class Starts:
    """Tells folders of starts that may be going on, in a host, from what an earlier host of the same id left over."""

    def __init__(self) -> None:
        self._opened_at = time.time()

    def may_own(self, folder: str) -> bool:
        """Whether this may be the folder of a start going on: made since we are there, and lately; or it has gone."""
        try:
            made_at = os.stat(folder).st_mtime
        except OSError:
            return True
        return made_at > max(self._opened_at - _CLOCK_S, time.time() - _START_S)


class StateDir:
    """The state folder of one host.

    :param path: None: a private temporary one, which keeps no handles and goes with the host.
    :raises ConfigError: the folder cannot be used, or another host uses it.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.keeps_handles = path is not None
        self.path = (
            Path(path) if path is not None else _private_root() / f"{_PREFIX}{os.geteuid()}-{os.urandom(6).hex()}"
        )
        self._handles = self.path / "handles"
        try:
            self.path.mkdir(mode=0o700, parents=self.keeps_handles, exist_ok=self.keeps_handles)
            if self.keeps_handles:
                self._check_owner()
                self._handles.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self.path / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise ConfigError(f"cannot use the state folder {self.path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(
                f"the state folder {self.path} is in use by another host: give each host a folder of its own"
            ) from None
        for half_written in self._handles.glob("*.new") if self.keeps_handles else ():  # by a host that was killed
            half_written.unlink(missing_ok=True)

    def _check_owner(self) -> None:
        found = self.path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ConfigError(
                f"cannot use the state folder {self.path}: it belongs to user {found.st_uid} with mode "
                f"{found.st_mode & 0o777:o}, and must be yours and writable by nobody else"
            )

    def host_id(self) -> str:
        """The id that tells this host's tasks from another's: kept here.

        A private folder has it in its name, so what a host left behind that was killed can be found by that.

        :raises ConfigError: it cannot be kept: the disk is full.
        """
        if self.path.name.startswith(_PREFIX):
            return self.path.name.rpartition("-")[2]
        path = self.path / "host_id"
        try:
            kept = path.read_text().strip()
        except FileNotFoundError:
            kept = ""
        if not kept:
            kept = os.urandom(8).hex()
            self._keep(path, kept.encode())
        return kept

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            self._write(path, data)
        except OSError as exc:
            raise ConfigError(f"cannot use the state folder {self.path}: {exc.strerror}") from exc

    def node(self) -> tuple[str, str] | None:
        """Id and name of the node that the last host here was given; they are in the names of its groups."""
        try:
            return msgspec.json.decode((self.path / "node").read_bytes(), type=tuple[str, str])
        except (OSError, msgspec.MsgspecError):
            return None

    def keep_node(self, node_id: str, node_name: str) -> None:
        """Keep them, so that whoever finds this folder finds what its host left.

        :raises ConfigError: they cannot be kept: the disk is full.
        """
        if self.node() != (node_id, node_name):
            self._keep(self.path / "node", msgspec.json.encode((node_id, node_name)))

    def _file(self, task_id: str) -> Path:
        return self._handles / f"{hashlib.sha256(task_id.encode()).hexdigest()[:32]}.json"

    def write(self, handle: TaskHandle) -> None:
        """Keep a handle, atomically.

        :raises RecoverableError: the disk is full, or the folder is gone.
        """
        if not self.keeps_handles:
            return
        try:
            self._write(self._file(handle.config.id), encode_handle(handle))
        except OSError as exc:
            raise RecoverableError(f"cannot keep the handle of task {handle.config.id}: {exc}") from exc

    def _write(self, path: Path, data: bytes) -> None:
        beside = path.with_suffix(".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            os.rename(beside, path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def remove(self, task_id: str) -> None:
        """Forget a handle."""
        if self.keeps_handles:
            self._file(task_id).unlink(missing_ok=True)

    def handles(self) -> list[TaskHandle]:
        """All handles that are kept; one that cannot be read is left where it is, and named in the log."""
        found = []
        for path in sorted(self._handles.glob("*.json")) if self.keeps_handles else ():
            try:
                found.append(decode_handle(path.read_bytes()))
            except (OSError, msgspec.MsgspecError, ConfigError) as exc:
                log.error("cannot read the handle %s: %s", path.name, exc, extra=fields())
        return found

    def close(self, *, remove: bool) -> None:
        """Let go of the folder.

        :param remove: a private folder goes too; nothing of a task is left in it.
        """
        if remove and not self.keeps_handles:
            import shutil

            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def encode_handle(handle: TaskHandle) -> bytes:
    """A handle as JSON. Descriptors and inherited streams are written as such; nobody opens them again."""
    return msgspec.json.encode(handle)


def decode_handle(data: bytes) -> TaskHandle:
    """Read a handle, also one of a newer version that has more fields.

    :raises msgspec.MsgspecError: it is no handle.
    """
    return msgspec.json.decode(data, type=TaskHandle, dec_hook=_decode)


def _decode(kind: type, value: Any) -> Any:
    raise NotImplementedError(f"a handle holds no {kind}")


__all__ = [
    "Starts",
    "StateDir",
    "TaskConfig",
    "abandoned_private_dirs",
    "decode_handle",
    "default_state_dir",
    "encode_handle",
]
