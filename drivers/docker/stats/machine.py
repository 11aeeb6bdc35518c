"""What must be known of the engine's machine to understand the statistics of its containers."""

from __future__ import annotations

from typing import Final

import msgspec

from cameleer.errors import RecoverableError

_NO_IO: Final = ("blkio throttle.read_bps_device", "io.max (rbps)")
"""Parts of the engine's warnings that say that no IO is counted."""
_ONLY_LIMITED_FROM: Final = (6, 10)
"""From this kernel on, version 1 counts IO only of groups that have an IO limit."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one machine.

    :ivar memory_bytes: its memory, which the engine gives as a container's limit where there is none; None: not known.
    :ivar counts_all_io: a container for which no IO is listed did none; else that is not known.
    """

    memory_bytes: int | None = None
    counts_all_io: bool = False


UNKNOWN: Final = Machine()


class _Info(msgspec.Struct, frozen=True, rename="pascal"):
    mem_total: int | None = None
    kernel_version: str | None = None
    cgroup_version: str | None = None
    warnings: list[str] | None = None


def machine(info: object) -> Machine:
    """Take the facts from the answer to ``GET /info``.

    :raises RecoverableError: it is garbled.
    """
    try:
        found = msgspec.convert(info, _Info)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RecoverableError(f"cannot make sense of the engine's answer about itself: {exc}") from exc
    warned = any(part in text for text in found.warnings or () for part in _NO_IO)
    version = found.cgroup_version or "1"
    counts = version == "2" or (version == "1" and _release(found.kernel_version or "") < _ONLY_LIMITED_FROM)
    return Machine(
        memory_bytes=found.mem_total if found.mem_total and found.mem_total > 0 else None,
        counts_all_io=counts and not warned and bool(found.kernel_version),
    )


def _release(kernel: str) -> tuple[int, ...]:
    """``6.18.5-amd64`` as (6, 18); what is no number is 0, so that Windows's is no problem."""
    parts = kernel.partition(" ")[0].split(".")[:2]
    return tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 9 else 0 for part in parts)
