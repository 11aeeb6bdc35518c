"""What is kept of a container in its task's handle."""

from __future__ import annotations

from typing import Any

import msgspec

from cameleer.errors import RecoverableError


class State(msgspec.Struct, frozen=True, kw_only=True):
    """``driver_state`` of a task.

    :ivar container: its id; empty: its host was killed before it knew.
    :ivar parent: what finds the group around it; None: there is none.
    :ivar local: its group is on this machine.
    :ivar endpoint: address of its engine; empty: not known.
    """

    container: str = ""
    parent: dict[str, Any] | None = None
    local: bool = False
    endpoint: str = ""

    @classmethod
    def of(cls, kept: bytes) -> State:
        """From a handle.

        :raises RecoverableError: it was written by another version.
        """
        if not kept:
            return cls()
        try:
            return msgspec.json.decode(kept, type=cls)
        except msgspec.DecodeError as exc:
            raise RecoverableError(f"the handle's driver_state cannot be read: {exc}") from exc

    def kept(self) -> bytes:
        """For the handle."""
        return msgspec.json.encode(self)
