"""The one layer of retries, by tenacity.

It is entered only after a failure: entering it for every reading would cost twice the reading, and importing it four
times an empty interpreter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from cameleer.errors import UnrecoverableError

if TYPE_CHECKING:
    from tenacity.wait import wait_base

T = TypeVar("T")

LONGEST_WAIT_S = 5.0


def is_recoverable(error: BaseException) -> bool:
    """Whether trying again may help: every error but an unrecoverable one, or a cancellation."""
    return isinstance(error, Exception) and not isinstance(error, UnrecoverableError)


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    failure: Exception | None = None,
    wait: wait_base | None = None,
    failed: Callable[[Exception], None] | None = None,
) -> T:
    """Try until it succeeds or cannot, waiting 1, 2, 4, 5, 5… s in between.

    The count starts anew with each call, so after each success. A cancellation ends the wait at once.

    :param failure: the first attempt has failed already, with this error.
    :param wait: tenacity's wait strategy in place of the default one.
    :param failed: told of each recoverable failure, the given one not included.
    :raises UnrecoverableError: an attempt raised it.
    """
    from tenacity import AsyncRetrying, retry_if_exception, wait_exponential

    pending = [failure] if failure is not None else []

    async def once() -> T:
        if pending:
            raise pending.pop()
        try:
            return await attempt()
        except Exception as error:
            if failed is not None and is_recoverable(error):
                failed(error)
            raise

    policy = AsyncRetrying(
        wait=wait if wait is not None else wait_exponential(multiplier=1, max=LONGEST_WAIT_S),
        retry=retry_if_exception(is_recoverable),
        sleep=asyncio.sleep,
        reraise=True,
    )
    return await policy(once)
