"""Structured logging: one logger, with the task's id and the driver's name as fields of the record."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("cameleer")

REPEAT_S = 60.0
"""A failure that goes on is logged once with its traceback, then in one line this often, seconds."""


def fields(*, task_id: str = "", driver: str = "") -> dict[str, str]:
    """``extra`` of a log call: every record of ours has ``task_id`` and ``driver``, empty where there is none."""
    return {"task_id": task_id, "driver": driver}


class Repeated:
    """Failures of one kind: the first is logged with its traceback, the others counted and told once a minute."""

    __slots__ = ("_count", "_next_s")

    def __init__(self) -> None:
        self._count = 0
        self._next_s = 0.0

    def report(self, text: str, error: BaseException, *, task_id: str = "", driver: str = "") -> None:
        """Log a failure, or count it."""
        now = time.monotonic()
        extra = fields(task_id=task_id, driver=driver)
        if not self._count:
            log.error("%s: %s", text, error, exc_info=error, extra=extra)
        elif now >= self._next_s:
            log.error("%s: %s (%d times so far)", text, error, self._count + 1, extra=extra)
        else:
            self._count += 1
            return
        self._count += 1
        self._next_s = now + REPEAT_S

    @property
    def active(self) -> bool:
        """Whether it has failed since it last worked."""
        return self._count > 0

    def reset(self) -> None:
        """It works again: the next failure is a new one."""
        self._count = 0
