"""The user that a task runs as, looked up once, on the host, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cameleer.drivers.supervisor.protocol import Value
from cameleer.errors import StartError

_DYNAMIC: Final = "nomad-"
"""Before the number of a user that Nomad made up for one task; no account has it."""
_PERSONAL: Final = ("HOME", "USER", "LOGNAME")


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user.

    :ivar groups: all groups, the supplementary ones too; never more than the user has.
    :ivar login: its name; empty for a number that no account has.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    login: str = ""
    home: str = ""

    def fields(self) -> dict[str, Value]:
        """For the task's specification."""
        values: dict[str, Value] = {
            "uid": self.uid,
            "gid": self.gid,
            "groups": [b"%d" % each for each in self.groups],
        }
        for key, value in (("login", self.login), ("home", self.home)):
            if value:
                values[key] = os.fsencode(value)
        return values

    def environment(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """A task's environment without what is our own user's, where this is another; what differs was set for it."""
        if self.uid == os.geteuid():
            return env
        return {key: value for key, value in env.items() if key not in _PERSONAL or os.environ.get(key) != value}


def find(user: str) -> Account:
    """Look up a user: a name, ``UID``, ``UID:GID`` or ``nomad-UID``; with a group of its own that is the only one.

    :raises StartError: there is no such user.
    """
    import pwd

    name, colon, gid = user.partition(":")
    numeric = _is_id(name)
    if colon and not _is_id(gid):
        raise StartError(f"there is no user {user}: a group is given by its number")
    try:
        entry = pwd.getpwuid(int(name)) if numeric else pwd.getpwnam(name)
    except KeyError:
        dynamic = name.removeprefix(_DYNAMIC)
        if not colon and dynamic != name and _is_id(dynamic) and not dynamic.startswith("0"):  # never root
            return Account(uid=int(dynamic), gid=int(dynamic), groups=(int(dynamic),), login=name)
        if numeric and colon:
            return Account(uid=int(name), gid=int(gid), groups=(int(gid),))
        raise StartError(f"there is no user {user}") from None
    if colon:
        only = int(gid)
        return Account(uid=entry.pw_uid, gid=only, groups=(only,), login=entry.pw_name, home=entry.pw_dir)
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(uid=entry.pw_uid, gid=entry.pw_gid, groups=groups, login=entry.pw_name, home=entry.pw_dir)


def _is_id(word: str) -> bool:
    """A number that the kernel takes; its highest means "leave it as it is"."""
    return word.isascii() and word.isdigit() and int(word) < 0xFFFFFFFF
