"""Foreign errors as ours: what the engine answers, and what sockets, TLS, the SDK and what it stands on raise.

Names and passwords for registries never get into a message.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final

from cameleer.errors import DriverError, NotSupported, RecoverableError, TaskNotFound, UnrecoverableError

_LONGEST_MESSAGE: Final = 4000
_SECRETS: Final = re.compile(
    r"""(://)[^/\s@'"]+@"""
    r"""|(x-(?:amz|goog)-(?:signature|credential|security-token)=|(?:[?&]|\\u0026)sig(?:nature)?=)[^&\s"'\\]+"""
    r"""|\b((?:x-registry-(?:auth|config)|(?:proxy-)?authorization|(?:identity|registry|access|refresh)_?token|password"""
    r"""|(?<=["'])auth(?=\\*["']))\b\\*['"]?\s*[:=]\s*)"""
    r"""(?:b?(\\*["']).*?(?:(?<!\\)\4|$)|(?:(?:basic|bearer)\s+)?[^\s,;)}\]]+)""",
    re.IGNORECASE | re.DOTALL,
)
"""What must not be shown, behind its name: in a URL, or a value, whose quotes may be escaped."""
_SHUTTING_DOWN: Final = ("shutting down", "transport is closing", "containerd.sock", "context canceled")
_FOREIGN: Final = ("docker", "requests", "urllib3")
_UNREACHABLE: Final = {
    errno.ECONNREFUSED: "nothing listens there; is the engine running?",
    errno.ENOENT: "there is no such socket; is the engine running?",
    errno.ENOTSOCK: "it is no socket",
    errno.ECONNRESET: "the engine closed the connection",
    errno.EPIPE: "the engine closed the connection",
    errno.ECONNABORTED: "the engine closed the connection",
}
_OUR_OWN_LIMIT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class EngineGone(RecoverableError):
    """The engine cannot be reached, hangs, is shutting down, or went away in the middle of an answer."""


class Conflict(UnrecoverableError):
    """What was asked for does not go with the state of things: a name that is taken, a container that does not run."""


class Malformed(RecoverableError):
    """What came is no answer of an engine."""


def from_status(status: int, body: bytes, what: str, *, missing: type[DriverError] = TaskNotFound) -> DriverError:
    """The error that an answer means.

    :param body: of the answer; the engine's own message is taken from it.
    :param what: was to be done: ``start the container web``.
    :param missing: where the engine says that there is no such thing.
    """
    message = _message(body)
    if status == 404 and message is None:
        return Malformed(worded(what, f"the answer is no engine's (404): {_shown(body)}"))
    return _by_status(status, message or body.decode(errors="replace"), what, missing)


def translated(exc: BaseException, what: str, *, address: str = "") -> DriverError:
    """What an exception of a socket, of TLS, of the SDK or of what it stands on means; to be raised ``from exc``.

    :param what: was to be done: ``start the container web``.
    :param address: the engine's, for the message.
    """
    if isinstance(exc, DriverError):
        return exc
    status = _status(exc)
    if status is not None:
        said = getattr(exc, "explanation", None)
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said or "")
        return _by_status(status, text, what, TaskNotFound)
    causes = list(_causes(exc))
    for each in causes:
        if isinstance(each, DriverError):
            return each
    for each in causes:
        if (status := _status(each)) is not None:
            return _by_status(status, str(getattr(each, "explanation", None) or ""), what, TaskNotFound)
        if _is(each, "ssl", "SSLError"):
            return _tls(each, what, address)
        if isinstance(each, OSError) and not _is_foreign(each):
            return _os_error(each, what, address)
    return _foreign(exc, causes, what, address)


def closed(what: str, address: str = "") -> EngineGone:
    """The engine closed the connection where an answer, or the rest of one, was to come."""
    return EngineGone(
        worded(what, f"{_engine(address)} closed the connection before its answer was complete: cut short")
    )


def silent(what: str, timeout_s: float, address: str = "") -> EngineGone:
    """The engine did not answer in time."""
    return EngineGone(worded(what, f"{_engine(address)} has not answered within {timeout_s:g} s"))


def malformed(what: str, reason: str, data: bytes | bytearray = b"") -> Malformed:
    """What came makes no sense; its first bytes are shown."""
    return Malformed(worded(what, f"{reason}: {_shown(data)}" if data else reason))


def _by_status(status: int, message: str, what: str, missing: type[DriverError]) -> DriverError:
    said = " ".join(message.split())
    text = worded(what, said or f"the engine answered {status}")
    lower = said.lower()
    if status == 404:
        return UnrecoverableError(text) if lower in ("", "page not found") else missing(text)
    if status == 409:
        return Conflict(text)
    if status == 501:
        return NotSupported(text)
    if status in (408, 429):
        return RecoverableError(text)
    if status in (502, 503, 504) or (status >= 500 and any(each in lower for each in _SHUTTING_DOWN)):
        return EngineGone(text)
    if status >= 500:
        return RecoverableError(text)
    if status < 400:
        return Malformed(worded(what, f"the answer is no engine's: {status} {said}"))
    if "http request to an https server" in lower:
        text += "; the driver's tls_ca, tls_cert and tls_key, or DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, say how"
    return UnrecoverableError(text)


def _os_error(exc: OSError, what: str, address: str) -> DriverError:
    code = exc.errno
    engine = _engine(address)
    if code in _OUR_OWN_LIMIT:
        return RecoverableError(worded(what, f"cannot connect to {engine}: {exc.strerror}"))
    if code in (errno.EACCES, errno.EPERM) and not address.startswith("tcp://"):
        where = address.removeprefix("unix://") or "the engine's socket"
        return EngineGone(worded(what, f"may not open {where}: join the group docker or run as root"))
    if code in _UNREACHABLE:
        return EngineGone(worded(what, f"cannot reach {engine}: {_UNREACHABLE[code]}"))
    if isinstance(exc, ConnectionError):
        return EngineGone(worded(what, f"{engine} closed the connection"))
    if isinstance(exc, TimeoutError):
        return EngineGone(worded(what, f"{engine} has not answered in time"))
    return EngineGone(worded(what, f"cannot reach {engine}: {exc.strerror or exc or type(exc).__name__}"))


def _tls(exc: BaseException, what: str, address: str) -> DriverError:
    engine = _engine(address)
    text = str(getattr(exc, "reason", None) or exc)
    if _is(exc, "ssl", "SSLCertVerificationError"):
        reason = getattr(exc, "verify_message", "") or text
        return UnrecoverableError(worded(what, f"the certificate of {engine} is not to be trusted: {reason}"))
    if _is(exc, "ssl", "SSLEOFError"):
        return EngineGone(worded(what, f"{engine} closed the connection"))
    if text in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return UnrecoverableError(worded(what, f"{engine} does not speak TLS"))
    if "ALERT" in text.upper() and any(each in text.upper() for each in ("CERT", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        return UnrecoverableError(worded(what, f"{engine} does not accept our certificate, or lack of one: {text}"))
    return EngineGone(worded(what, f"the TLS connection to {engine} failed: {text}"))


def _foreign(exc: BaseException, causes: list[BaseException], what: str, address: str) -> DriverError:
    """Exceptions of the SDK and what it stands on, without any of the system's behind them."""
    for each in causes:
        names = {kind.__name__ for kind in type(each).__mro__ if kind.__module__.partition(".")[0] in _FOREIGN}
        if names & {"Timeout", "TimeoutError", "ReadTimeout", "ConnectTimeout"}:
            return EngineGone(worded(what, f"{_engine(address)} has not answered in time"))
        if names & {"ProtocolError", "ConnectionError", "NewConnectionError", "ChunkedEncodingError", "IncompleteRead"}:
            return EngineGone(worded(what, f"{_engine(address)} closed the connection: {each}"))
        if names & {"DecodeError", "ContentDecodingError", "JSONDecodeError", "InvalidJSONError", "StreamParseError"}:
            return Malformed(worded(what, f"the engine's answer makes no sense: {each}"))
        if names & {"TLSParameterError", "InvalidVersion", "NullResource", "InvalidArgument", "InvalidRepository"}:
            return UnrecoverableError(worded(what, str(each)))
    if isinstance(exc, ValueError | TypeError | LookupError | RecursionError):
        return Malformed(worded(what, f"the engine's answer makes no sense: {type(exc).__name__}: {exc}"))
    return RecoverableError(worded(what, f"{type(exc).__name__}: {exc}"))


def _status(exc: BaseException) -> int | None:
    """The status of an answer that the SDK, or requests, made an exception of."""
    if not _is_foreign(exc):
        return None
    status = getattr(getattr(exc, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_foreign(exc: BaseException) -> bool:
    return type(exc).__module__.partition(".")[0] in _FOREIGN


def _is(exc: BaseException, module: str, name: str) -> bool:
    """Whether it is of a class that need not be imported for this."""
    return any(kind.__name__ == name and kind.__module__ == module for kind in type(exc).__mro__)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """It, and all that is behind it: urllib3 and requests hand the first on as an argument."""
    waiting: list[object] = [exc]
    seen: set[int] = set()
    while waiting and len(seen) < 50:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]


def _message(body: bytes) -> str | None:
    """The engine's own message; None: it is no answer of an engine's."""
    import msgspec

    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    said = found.get("message") if isinstance(found, dict) else None
    return said if isinstance(said, str) else None


def _engine(address: str) -> str:
    return f"the engine at {address}" if address else "the engine"


def worded(what: str, reason: str) -> str:
    """A message of bounded length, without secrets; ``what`` was to be done."""
    text = f"{what}: {reason}" if what else reason
    text = _SECRETS.sub(lambda found: f"{found[1] or found[2] or found[3]}…{'@' if found[1] else ''}", text)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _shown(data: bytes | bytearray) -> str:
    return f"{bytes(data[:80])!r}{'…' if len(data) > 80 else ''}"
