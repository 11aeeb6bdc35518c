import errno
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import docker
from cameleer.drivers.docker.client.failures import Conflict, EngineGone, Malformed, from_status, translated
from cameleer.errors import DriverError, NotSupported, RecoverableError, TaskNotFound, UnrecoverableError

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (404, b'{"message":"No such container: web"}', TaskNotFound, "stop web: No such container: web"),
        (404, b'{"message":"page not found"}', UnrecoverableError, "stop web: page not found"),
        (404, b"<html>nginx</html>", Malformed, "no engine's (404): b'<html>nginx</html>'"),
        (409, b'{"message":"name in use"}', Conflict, "stop web: name in use"),
        (400, b'{"message":"bad  \\n parameter"}', UnrecoverableError, "stop web: bad parameter"),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", UnrecoverableError, "DOCKER_CERT_PATH"),
        (401, b"", UnrecoverableError, "the engine answered 401"),
        (301, b"", Malformed, "no engine's: 301"),
        (408, b"", RecoverableError, "408"),
        (429, b'{"message":"toomanyrequests"}', RecoverableError, "toomanyrequests"),
        (500, b'{"message":"no space left on device"}', RecoverableError, "no space left on device"),
        (500, b'{"message":"server is shutting down"}', EngineGone, "shutting down"),
        (501, b'{"message":"not on this platform"}', NotSupported, "not on this platform"),
        (502, b"<html>", EngineGone, "<html>"),
        (503, b'{"message":"not ready"}', EngineGone, "not ready"),
    ],
)
def test_a_status_means_an_error(status: int, body: bytes, kind: type[DriverError], text: str) -> None:
    error = from_status(status, body, "stop web")
    assert type(error) is kind
    assert text in str(error)


def test_a_500_is_not_the_engine_gone() -> None:
    assert not isinstance(from_status(500, b'{"message":"registry says no"}', "pull a"), EngineGone)


def test_the_caller_says_what_a_missing_thing_is() -> None:
    error = from_status(404, b'{"message":"No such image"}', "", missing=UnrecoverableError)
    assert type(error) is UnrecoverableError
    assert str(error) == "No such image"


@pytest.mark.parametrize(
    ("exc", "kind", "text"),
    [
        (
            FileNotFoundError(errno.ENOENT, "x"),
            EngineGone,
            "ask: cannot reach the engine at unix:///s: there is no such",
        ),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), EngineGone, "nothing listens there"),
        (ConnectionResetError(errno.ECONNRESET, "x"), EngineGone, "closed the connection"),
        (BrokenPipeError(errno.EPIPE, "x"), EngineGone, "closed the connection"),
        (ConnectionAbortedError("x"), EngineGone, "closed the connection"),
        (PermissionError(errno.EACCES, "x"), EngineGone, "may not open /s: join the group docker or run as root"),
        (TimeoutError(), EngineGone, "has not answered in time"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), EngineGone, "has not answered in time"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), EngineGone, "Name or service not known"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), EngineGone, "Network is unreachable"),
        (OSError(errno.EMFILE, "Too many open files"), RecoverableError, "Too many open files"),
        (ValueError("not JSON"), Malformed, "makes no sense: ValueError: not JSON"),
        (RuntimeError("odd"), RecoverableError, "RuntimeError: odd"),
    ],
)
def test_a_foreign_exception_is_translated(exc: Exception, kind: type[DriverError], text: str) -> None:
    error = translated(exc, "ask", address="unix:///s")
    assert type(error) is kind
    assert text in str(error)


def test_an_error_of_ours_stays_itself() -> None:
    ours = TaskNotFound("gone")
    assert translated(ours, "ask") is ours


def test_a_permission_over_the_network_is_not_the_sockets() -> None:
    error = translated(PermissionError(errno.EACCES, "Permission denied"), "ask", address="tcp://h:1")
    assert "group docker" not in str(error)
    assert "tcp://h:1" in str(error)


def test_a_tls_error_says_whose_fault_it_is() -> None:
    wrong = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    wrong.reason = "WRONG_VERSION_NUMBER"
    assert "does not speak TLS" in str(translated(wrong, "ask", address="tcp://h:1"))
    untrusted = ssl.SSLCertVerificationError(1, "x")
    untrusted.verify_message = "self-signed certificate"
    error = translated(untrusted, "ask", address="tcp://h:1")
    assert type(error) is UnrecoverableError
    assert "not to be trusted: self-signed certificate" in str(error)
    assert type(translated(ssl.SSLEOFError(8, "EOF"), "ask")) is EngineGone


# -- the SDK -------------------------------------------------------------------------------------------------------


def sdk_error(address: str) -> Exception:
    try:
        docker.APIClient(address, version="auto", timeout=1).ping()
    except Exception as exc:  # whatever it raises
        return exc
    raise AssertionError("it answered")


def test_the_sdk_without_an_engine(tmp_path: Path) -> None:
    error = translated(sdk_error(f"unix://{tmp_path}/sock"), "create web")
    assert type(error) is EngineGone
    assert str(error) == "create web: cannot reach the engine: there is no such socket; is the engine running?"


def test_the_sdk_with_an_engine_that_is_silent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/sock")
        assert type(translated(sdk_error(f"unix://{tmp_path}/sock"), "create web")) is EngineGone  # refused
        server.listen()
        error = translated(sdk_error(f"unix://{tmp_path}/sock"), "create web")
    assert type(error) is EngineGone
    assert "create web: the engine has not answered in time" in str(error)


@pytest.mark.parametrize(
    ("status", "explanation", "kind"),
    [
        (404, "No such container: a", TaskNotFound),
        (409, "Conflict. The container name is in use", Conflict),
        (400, "invalid", UnrecoverableError),
        (500, "no space left on device", RecoverableError),
        (503, "", EngineGone),
    ],
)
def test_an_error_of_the_api_keeps_the_engines_words(status: int, explanation: str, kind: type[DriverError]) -> None:
    import requests

    response = requests.Response()
    response.status_code = status
    response.url = f"http://user:{SECRET}@host/v1.41/containers"
    error = translated(docker.errors.APIError("x", response=response, explanation=explanation), "create web")
    assert type(error) is kind
    assert str(error) == f"create web: {explanation or 'the engine answered 503'}"


def test_other_errors_of_what_the_sdk_stands_on() -> None:
    import requests
    import urllib3

    assert type(translated(requests.exceptions.ReadTimeout("Read timed out."), "a")) is EngineGone
    assert type(translated(urllib3.exceptions.ProtocolError("Connection broken"), "a")) is EngineGone
    assert type(translated(requests.exceptions.JSONDecodeError("no", "x", 0), "a")) is Malformed
    assert type(translated(docker.errors.InvalidVersion("old"), "a")) is UnrecoverableError
    assert type(translated(docker.errors.DockerException("odd"), "a")) is RecoverableError


# -- what never shows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"X-Registry-Auth: {SECRET}",
        f"{{'X-Registry-Auth': b'{SECRET}'}}",
        f"Authorization: Basic {SECRET}",
        f"'authorization': 'Bearer {SECRET}'",
        f'{{"password":"{SECRET}","username":"a"}}',
        f"Get https://user:{SECRET}@registry/v2/: denied",
        f'"identitytoken": "{SECRET}"',
        f'bad config {{\\"auths\\":{{\\"r\\":{{\\"password\\":\\"{SECRET}\\"}}}}}}',
        f'\\"auths\\":{{\\"r\\":{{\\"auth\\": \\"{SECRET}\\"}}}}',
        f'{{"password":"with a \\" and {SECRET}","username":"a"}}',
        f'{{"password":"cut short, {SECRET}',
        f'Get "https://bucket/x?X-Amz-Credential={SECRET}%2F20261126&X-Amz-Signature=0": EOF',
        f"Get https://bucket/x?X-Amz-Date=1&X-Amz-Signature={SECRET}: EOF",
        f"Get https://bucket/x?a=1\\u0026x-amz-security-token={SECRET}\\u0026b=2",
        f"Get https://cdn/x?Expires=1&Signature={SECRET}&Key-Pair-Id=2",
    ],
)
def test_a_secret_is_in_no_message(text: str) -> None:
    for error in (
        translated(RuntimeError(text), "pull a"),
        translated(OSError(errno.EIO, text), "pull a"),
        from_status(500, b'{"message":' + repr(text).encode() + b"}", "pull a"),
        from_status(400, text.encode(), "pull a"),
        from_status(404, text.encode()[:70], "pull a"),
    ):
        assert SECRET not in str(error)
        assert "pull a: " in str(error)


def test_what_is_around_a_secret_is_shown() -> None:
    text = r"{\"user\":\"a\",\"password\":\"x y\",\"server\":\"s\"} https://b/x?X-Amz-Signature=1&part=2: EOF"
    shown = r"{\"user\":\"a\",\"password\":…,\"server\":\"s\"} https://b/x?X-Amz-Signature=…&part=2: EOF"
    assert str(from_status(400, text.encode(), "pull a")) == f"pull a: {shown}"


@given(st.integers(300, 599), st.binary(max_size=200), st.text(max_size=20))
def test_any_answer_becomes_an_error_of_bounded_length(status: int, body: bytes, what: str) -> None:
    error = from_status(status, body, what)
    assert isinstance(error, DriverError)
    assert len(str(error)) < 5000


def test_a_message_without_an_end_is_cut() -> None:
    assert len(str(from_status(500, b"x" * 100_000, "pull a"))) < 5000


def test_translating_imports_neither_the_sdk_nor_tls() -> None:
    code = (
        "import sys, cameleer.drivers.docker.client.failures as f, cameleer.drivers.docker.client.endpoint\n"
        "f.translated(OSError(2, 'no'), 'x')\n"
        "print([m for m in ('docker', 'requests', 'urllib3', 'ssl', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every socket")
def test_a_socket_that_we_may_not_open(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/sock")
        server.listen()
        (tmp_path / "sock").chmod(0)
        error = translated(sdk_error(f"unix://{tmp_path}/sock"), "create web")
    assert type(error) is EngineGone
    assert str(error) == "create web: may not open the engine's socket: join the group docker or run as root"
