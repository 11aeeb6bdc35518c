"""Names of groups, from ids that may hold anything.

An id never becomes a path unchecked: what is not a letter, a digit, ``-`` or ``_`` (in a task's name also ``.``) is
written as ``~`` and two hexadecimal digits, which no two ids share.
"""

from __future__ import annotations

import re
from typing import Final

_LONGEST: Final = 200
"""Bytes of a folder's name; the kernel allows 255."""
_DIGEST_DIGITS: Final = 40
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9_-]")
_UNSAFE_BUT_DOT: Final = re.compile(rb"[^A-Za-z0-9_.-]")
_TAKEN: Final = frozenset(
    b"blkio cgroup cpu cpuacct cpuset debug devices dmem freezer hugetlb io irq memory misc net_cls net_prio"
    b" notify_on_release perf_event pids rdma release_agent tasks".split()
)
"""Beginnings of the kernel's own files: a group ``cpu.max`` could not be made beside the file of that name."""


def group_name(alloc: str, task: str) -> str:
    """Name of a task's folder, ``<alloc>.<task>``; different for any two different pairs.

    A long one is cut, and the digest of the whole takes the rest's place after ``~~``.
    """
    return _fit(_escape(alloc, _UNSAFE) + b"." + _escape(task, _UNSAFE_BUT_DOT))


def folder_name(name: str) -> str:
    """Name of the folder of a node, or of one level of a configured parent; different for any two names."""
    return _fit(_escape(name, _UNSAFE_BUT_DOT))


def _escape(text: str, unsafe: re.Pattern[bytes]) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    if not raw:
        return b"~"
    escaped = unsafe.sub(lambda found: b"~%02x" % found[0][0], raw)
    if escaped[:1] == b"." or raw.split(b".", 1)[0] in _TAKEN:
        return b"~%02x" % raw[0] + escaped[1:]
    return escaped


def _fit(name: bytes) -> str:
    if len(name) > _LONGEST:
        from hashlib import sha256

        digest = sha256(name).hexdigest()[:_DIGEST_DIGITS].encode()
        name = name[: _LONGEST - _DIGEST_DIGITS - 2] + b"~~" + digest
    return name.decode("ascii")
