"""The folders of a task: its own, and what it sees in a root of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

from cameleer.config import TaskConfig
from cameleer.drivers.supervisor.account import Account
from cameleer.drivers.supervisor.confinement import Bind
from cameleer.errors import ConfigError, StartError

PATHS: Final = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/run/resolvconf", "/sbin", "/usr")
"""What a task sees of the host by default."""
_LAYOUT: Final = (("alloc", 0o777), ("local", 0o777), ("secrets", 0o700), ("tmp", 0o1777))
_OURS: Final = ("/proc", "/dev")


def make_layout(task: TaskConfig, account: Account | None) -> None:
    """Make the folders that are missing in the task's own.

    :raises StartError: one cannot be made, or is something else.
    """
    if task.task_dir is None:
        return
    for name, mode in _LAYOUT:
        path = os.path.join(task.task_dir, name)
        try:
            os.mkdir(path, 0o700)
            _hand_over(path, mode, account)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise StartError(f"{path} is no folder") from None
        except OSError as exc:
            raise StartError(f"cannot make the task's folder {path}: {exc.strerror}") from exc


def _hand_over(path: str, mode: int, account: Account | None) -> None:
    """Give a folder to its user, and not what somebody has put in its place meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if account is not None and os.geteuid() == 0:
            os.fchown(fd, account.uid, account.gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def variables(task: TaskConfig, *, own_root: bool) -> dict[str, str]:
    """Variables that say where the folders are."""
    if own_root:
        return {"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets"}
    if task.task_dir is None:
        return {}
    folder = os.path.abspath(task.task_dir)
    return {
        "NOMAD_ALLOC_DIR": _alloc(task),
        "NOMAD_TASK_DIR": f"{folder}/local",
        "NOMAD_SECRETS_DIR": f"{folder}/secrets",
    }


def binds(task: TaskConfig, paths: Mapping[str, str], account: Account | None = None) -> list[Bind]:
    """All that a task's own root is made of, in the order in which it must be.

    :param paths: host to root; empty: the default.
    :param account: whose the folders in memory are.
    :raises ConfigError: a path is not absolute, or where it cannot be.
    """
    wanted = paths or {path: path for path in PATHS}
    found = []
    for source, target in sorted(wanted.items(), key=lambda each: each[1]):
        path = _check(f"chroot_paths[{source!r}]", target)
        if path.split("/")[1] in dict(_LAYOUT):
            raise ConfigError(
                f"driver_config.chroot_paths[{source!r}] is {target!r}: that is the task's own folder; use mounts"
            )
        if not os.path.isabs(source):
            raise ConfigError(f"driver_config.chroot_paths has {source!r}: it must be an absolute path")
        if os.path.lexists(source):
            found.append(Bind(kind="link", source=source, target=path))
    found += _folders(task, account, {each.target.split("/")[1] for each in found})
    for position, mount in enumerate(sorted(task.mounts, key=lambda each: each.target)):
        path = _check(f"mounts[{position}].target", mount.target)
        if mount.propagation not in ("", "private"):
            raise ConfigError(f"TaskConfig.mounts[{position}].propagation is {mount.propagation!r}: use 'private'")
        if not os.path.exists(mount.source):
            raise StartError(f"TaskConfig.mounts[{position}].source is {mount.source!r}: there is no such path")
        found.append(
            Bind(
                kind="ro" if mount.read_only else "rw",
                source=os.path.abspath(mount.source),
                target=path,
            )
        )
    return found


def _folders(task: TaskConfig, account: Account | None, taken: set[str]) -> list[Bind]:
    """The task's own folder: what is in it stands at the top of the root."""
    if task.task_dir is None:
        owner = "" if account is None else f",uid={account.uid},gid={account.gid}"
        return [
            Bind(kind="tmp", target=f"/{name}", mode=f"{mode:o}{owner}") for name, mode in _LAYOUT if name not in taken
        ]
    found = []
    names = [name for name, _ in _LAYOUT]
    for name in [*names, *sorted(set(os.listdir(task.task_dir)) - set(names))]:
        path = _alloc(task) if name == "alloc" else os.path.join(os.path.abspath(task.task_dir), name)
        kind = os.lstat(path).st_mode
        is_plain = stat.S_ISDIR(kind) or stat.S_ISREG(kind)  # a link, which the task may have made, is not followed
        if is_plain and name not in taken and f"/{name}" not in _OURS:
            found.append(Bind(kind="own", source=path, target=f"/{name}"))
    return found


def _alloc(task: TaskConfig) -> str:
    shared = None if task.alloc_dir is None else os.path.join(os.path.abspath(task.alloc_dir), "alloc")
    if shared is not None and os.path.isdir(shared):
        return shared
    return os.path.join(os.path.abspath(task.task_dir or ""), "alloc")


def _check(field: str, target: str) -> str:
    """Where that is, with one slash in front.

    :raises ConfigError: it cannot be there.
    """
    path = "/" + os.path.normpath(target).lstrip("/")
    if not os.path.isabs(target) or path.strip("/") == "" or ".." in target.split("/"):
        raise ConfigError(f"{field} is {target!r}: it must be an absolute path below the root")
    if any(path == each or path.startswith(f"{each}/") for each in _OURS):
        raise ConfigError(f"{field} is {target!r}: {path} is the task's own")
    return path
