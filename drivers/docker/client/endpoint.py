"""Where the engine is: from the driver's configuration, ``DOCKER_HOST``, a docker context, or the usual place.

As the ``docker`` command finds it, but for ``ssh://``, which needs a program that tunnels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cameleer.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    from cameleer.drivers.docker.settings import DockerConfig

USUAL: Final = "unix:///var/run/docker.sock"
_LONGEST_PATH: Final = 107
"""Bytes of a socket's path, by the kernel's ``sockaddr_un``."""
_PORT, _TLS_PORT = 2375, 2376
_FORMS: Final = "write unix:///path/of/the.sock or tcp://host:port"


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the engine's connection is encrypted.

    :ivar ca: file of the authority that signed the engine's certificate; empty: those that the system trusts.
    :ivar cert: our certificate's file; empty: we have none.
    :ivar key: its key's file.
    :ivar verify: check the engine's certificate.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: bool = True


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An engine's address.

    :ivar url: ``unix:///run/docker.sock`` or ``tcp://host:2376``.
    :ivar tls: None: not encrypted.
    :ivar source: where it was found: ``driver config``, ``DOCKER_HOST``, ``docker context NAME``, ``default``.
    """

    url: str
    tls: Tls | None = None
    source: str = "default"

    @property
    def is_unix(self) -> bool:
        """Whether it is a socket of this machine."""
        return self.url.startswith("unix://")

    @property
    def path(self) -> str | None:
        """The socket's path; None: it is reached over the network."""
        return self.url.removeprefix("unix://") if self.is_unix else None

    @property
    def host(self) -> str:
        """Name or address over the network."""
        return self._parts()[0]

    @property
    def port(self) -> int:
        """TCP port."""
        return self._parts()[1]

    @property
    def prefix(self) -> str:
        """What goes before each path: an engine behind a proxy has one."""
        return self._parts()[2]

    def _parts(self) -> tuple[str, int, str]:
        if self.is_unix:
            return "", 0, ""
        from urllib.parse import urlsplit

        found = urlsplit(self.url)
        return found.hostname or "", found.port or 0, found.path.rstrip("/")

    def ssl_context(self) -> ssl.SSLContext | None:
        """What a connection is encrypted with; reads the files.

        :raises ConfigError: one of them cannot be used.
        """
        if self.tls is None or self.is_unix:
            return None
        import ssl

        tls = self.tls
        try:
            context = ssl.create_default_context(cafile=tls.ca or None)
        except (OSError, ValueError) as exc:  # ssl's own errors are OSErrors
            raise self._unusable(tls.ca, exc) from exc
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.cert:
            try:
                # without a password it would ask for one on the terminal
                context.load_cert_chain(tls.cert, tls.key or None, password="")
            except (OSError, ValueError) as exc:
                raise self._unusable(f"{tls.cert} with {tls.key}" if tls.key else tls.cert, exc) from exc
        return context

    def _unusable(self, file: str, exc: Exception) -> ConfigError:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        return ConfigError(f"cannot use {file} for {self.url} ({self.source}): {reason}")


def find(config: DockerConfig, env: Mapping[str, str] = os.environ) -> Endpoint:
    """The engine that we are to use; connects to nothing.

    :raises ConfigError: what says so is wrong; the message names the value and where it is.
    """
    if config.endpoint:
        return _from_config(config)
    if config.tls_ca or config.tls_cert or config.tls_key or not config.tls_verify:
        raise ConfigError(
            "drivers.docker: tls_ca, tls_cert, tls_key and tls_verify go with an endpoint, and endpoint is empty"
        )
    if env.get("DOCKER_HOST"):
        return _from_environment(env)
    name, source = _current_context(env)
    return Endpoint(url=USUAL) if name == "default" else _from_context(name, source, env)


def _from_config(config: DockerConfig) -> Endpoint:
    url, encrypted = _normalised(config.endpoint, "drivers.docker.endpoint")
    wanted = bool(config.tls_ca or config.tls_cert or config.tls_key or not config.tls_verify)
    if wanted and url.startswith("unix://"):
        raise ConfigError(f"drivers.docker.endpoint is {config.endpoint!r}: TLS, as tls_… ask for, goes with tcp://")
    if bool(config.tls_cert) != bool(config.tls_key):
        raise ConfigError("drivers.docker: tls_cert and tls_key go together, and one is empty")
    for field in ("tls_ca", "tls_cert", "tls_key"):
        path = getattr(config, field)
        if path and not os.path.exists(path):
            raise ConfigError(f"drivers.docker.{field} is {path!r}: there is no such file")
    tls = Tls(ca=config.tls_ca, cert=config.tls_cert, key=config.tls_key, verify=config.tls_verify)
    return _endpoint(url, tls if wanted or encrypted else None, "driver config")


def _from_environment(env: Mapping[str, str]) -> Endpoint:
    url, encrypted = _normalised(env["DOCKER_HOST"], "DOCKER_HOST")
    verify = bool(env.get("DOCKER_TLS_VERIFY"))
    folder = env.get("DOCKER_CERT_PATH", "")
    tls = None
    if not url.startswith("unix://") and (encrypted or verify or folder):
        tls = _certificates(folder or _config_folder(env), "DOCKER_HOST with DOCKER_TLS_VERIFY", verify or not folder)
        if verify and not tls.ca and not encrypted:
            named = f"DOCKER_CERT_PATH is {folder!r}" if folder else "DOCKER_TLS_VERIFY is set"
            path = os.path.join(folder or _config_folder(env), "ca.pem")
            raise ConfigError(f"{named}: there is no {path} to check the certificate of {url} with")
    return _endpoint(url, tls, "DOCKER_HOST")


def _current_context(env: Mapping[str, str]) -> tuple[str, str]:
    """Name of the current docker context, and what says so."""
    if name := env.get("DOCKER_CONTEXT"):
        return name, "DOCKER_CONTEXT"
    file = os.path.join(_config_folder(env), "config.json")
    found = _json(file)
    name = found.get("currentContext") or "default"
    if not isinstance(name, str):
        raise ConfigError(f"currentContext in {file} is {name!r}, which is no name")
    return name, f"currentContext in {file}"


def _from_context(name: str, source: str, env: Mapping[str, str]) -> Endpoint:
    from hashlib import sha256

    digest = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    folder = os.path.join(_config_folder(env), "contexts")
    file = os.path.join(folder, "meta", digest, "meta.json")
    try:
        found = _json(file, must_exist=True)
    except FileNotFoundError:
        raise ConfigError(f"there is no docker context {name!r} ({source}): no file {file}") from None
    endpoints = found.get("Endpoints")
    docker = endpoints.get("docker") if isinstance(endpoints, dict) else None
    if not isinstance(docker, dict):
        raise ConfigError(f"the docker context {name!r} ({source}) names no engine: {file} has no Endpoints.docker")
    where = f"Host of the docker context {name!r} ({source})"
    host = docker.get("Host") or USUAL
    if not isinstance(host, str):
        raise ConfigError(f"{where} is {host!r}, which is no address")
    url, encrypted = _normalised(host, where)
    tls = None
    if not url.startswith("unix://"):
        verify = not docker.get("SkipTLSVerify")
        tls = _certificates(os.path.join(folder, "tls", digest, "docker"), where, verify)
        if not encrypted and tls == Tls():
            tls = None
    return _endpoint(url, tls, f"docker context {name}")


def _certificates(folder: str, source: str, verify: bool) -> Tls:
    """What there is in a folder, by the names that the docker command uses."""
    ca, cert, key = (
        path if os.path.exists(path := os.path.join(folder, f"{name}.pem")) else "" for name in ("ca", "cert", "key")
    )
    if bool(cert) != bool(key):
        raise ConfigError(f"{source}: {folder} has {'no key.pem to cert' if cert else 'no cert.pem to key'}.pem")
    return Tls(ca=ca, cert=cert, key=key, verify=verify)


def _endpoint(url: str, tls: Tls | None, source: str) -> Endpoint:
    """With the port that is usual."""
    if not url.startswith("unix://"):
        from urllib.parse import urlsplit

        found = urlsplit(url)
        if found.port is None:
            host = found.netloc.rstrip(":")
            url = f"tcp://{host}:{_PORT if tls is None else _TLS_PORT}{found.path}"
    return Endpoint(url=url, tls=tls, source=source)


def _normalised(text: str, source: str) -> tuple[str, bool]:
    """An address as ``unix://`` or ``tcp://``, and whether it says itself that it is encrypted."""
    address = text.strip()
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = ("", address) if address.startswith("/") else ("tcp", address)
    wrong = f"{source} is {_without_password(text)!r}"
    if scheme in ("unix", "http+unix"):
        path = rest or USUAL.removeprefix("unix://")
        if not path.startswith("/"):
            raise ConfigError(f"{wrong}: the socket's path is not absolute; {_FORMS}")
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ConfigError(f"{wrong}: the path of a socket has {_LONGEST_PATH} bytes at most")
        if "\0" in path:
            raise ConfigError(f"{wrong}: the path has a zero byte")
        return f"unix://{path}", False
    if scheme in ("tcp", "http", "https"):
        _check_network(rest, wrong)
        return f"tcp://{rest.rstrip('/')}", scheme == "https"
    if scheme == "ssh":
        raise ConfigError(
            f"{wrong}: ssh:// is not supported, because it needs a program that tunnels; forward the socket with "
            "`ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST`, and use unix:///tmp/docker.sock"
        )
    if scheme in ("npipe", "fd"):
        raise ConfigError(f"{wrong}: {scheme}:// cannot be connected to from here; {_FORMS}")
    raise ConfigError(f"{wrong}, which is no address of an engine; {_FORMS}")


def _check_network(rest: str, wrong: str) -> None:
    from urllib.parse import urlsplit

    try:
        found = urlsplit(f"//{rest}")
        host, port = found.hostname, found.port
    except ValueError as exc:
        raise ConfigError(f"{wrong}: {exc}; {_FORMS}") from exc
    if found.username is not None or found.query or found.fragment:
        raise ConfigError(f"{wrong}: an engine's address has neither a user nor a query; {_FORMS}")
    if not host or any(each.isspace() or not each.isprintable() for each in rest):
        raise ConfigError(f"{wrong}: it names no host; {_FORMS}")
    if port == 0:
        raise ConfigError(f"{wrong}: 0 is no port; {_FORMS}")


def _without_password(text: str) -> str:
    scheme, separator, rest = text.rpartition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}…@{host}" if at and ":" in user else text


def _config_folder(env: Mapping[str, str]) -> str:
    """Of the docker command."""
    if folder := env.get("DOCKER_CONFIG"):
        return folder
    return os.path.join(env.get("HOME") or os.path.expanduser("~"), ".docker")


def _json(file: str, *, must_exist: bool = False) -> dict[str, Any]:
    """An object from a file; empty where there is none that we may read."""
    import msgspec

    try:
        with open(file, "rb") as opened:
            found = msgspec.json.decode(opened.read())
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        if must_exist:
            raise FileNotFoundError(file) from exc
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"cannot read {file}: {getattr(exc, 'strerror', None) or exc}") from exc
    if not isinstance(found, dict):
        raise ConfigError(f"cannot read {file}: it holds no object")
    return found
