"""``prctl``, which Python's library lacks: by the C part of ctypes alone, since the whole costs 3 ms and 0.1 MB more.

Looked up at import, so that it is done once, in the launcher, and not in every supervisor.
"""

from __future__ import annotations

import _ctypes
import errno

_PROGRAM_ITSELF: str = None  # type: ignore[assignment] # as dlopen(3) has it; the stub lacks it
_prctl = _ctypes.dlsym(_ctypes.dlopen(_PROGRAM_ITSELF, 0), "prctl")


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process.

    :raises OSError: the kernel has no such option.
    """
    if _ctypes.call_function(_prctl, (option, value, 0, 0, 0)):
        raise OSError(errno.EINVAL, f"prctl({option}, {value}) failed")
