"""The user that a task runs as, looked up once, on the host, before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cameleer.drivers.supervisor.protocol import Value
from cameleer.errors import StartError


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


def find(user: str) -> Account:
    """Look up a user: a name, ``UID`` or ``UID:GID``; with a group of its own that is the only one.

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
