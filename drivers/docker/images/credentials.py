"""Who we are to a registry: what the task says, else the driver's configuration, else the user's docker configuration.

Nothing here ever shows a password: not in an error, a log line or a ``repr``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cameleer.drivers.docker.images.image import HUB, ImageName
from cameleer.errors import ConfigError
from cameleer.log import fields, log

if TYPE_CHECKING:
    from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig, Registry

_HUB_ADDRESS: Final = "https://index.docker.io/v1/"
"""What that registry is called in credentials."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """For one registry.

    :ivar header: value of the request's ``X-Registry-Auth``; a secret. Empty: nobody in particular.
    :ivar source: where they come from, for messages.
    """

    header: str = field(default="", repr=False)
    source: str = "none"


def given(image: ImageName, settings: DockerTaskConfig, driver: DockerConfig) -> Credentials | None:
    """What task and driver say; None: nothing.

    :raises ConfigError: a name without a password, or the other way round.
    """
    if settings.auth is not None:
        return _of(settings.auth, image.domain, "driver_config.auth")
    for domain, registry in driver.registries.items():
        if _domain(domain) == image.domain:
            return _of(registry, image.domain, f"drivers.docker.registries.{domain}")
    return None


def of_user(domain: str) -> Credentials:
    """What the user's docker configuration says, its credential helpers included; may wait for one of these.

    A configuration that cannot be read is as none, as for the ``docker`` program: the image may be anybody's.
    """
    source = "the user's docker configuration"
    try:
        from docker import auth

        found = auth.load_config().resolve_authconfig(domain)
    except Exception as exc:  # the SDK lets anything through; its text may quote what a helper wrote
        log.warning("%s cannot be used for %s: %s", source, domain, _reason(exc), extra=fields(driver="docker"))
        return Credentials(source=f"none, as {source} cannot be used ({_reason(exc)})")
    return Credentials(header=_header(found), source=source) if found else Credentials()


def _of(registry: Registry, domain: str, path: str) -> Credentials:
    if not registry.username or not registry.password:
        missing = "password" if registry.username else "username"
        raise ConfigError(f"{path}.{missing} is missing: a registry asks for both")
    server = _HUB_ADDRESS if domain == HUB else domain
    found = {"username": registry.username, "password": registry.password, "serveraddress": server}
    return Credentials(header=_header(found), source=path)


def _header(found: Mapping[str, object]) -> str:
    words = {name.lower(): value for name, value in found.items() if value}
    return base64.urlsafe_b64encode(json.dumps(words).encode()).decode("ascii")


def _domain(text: str) -> str:
    """A registry as images name it: without scheme and path."""
    domain = text.removeprefix("http://").removeprefix("https://").partition("/")[0]
    return HUB if domain == f"index.{HUB}" else domain


def _reason(exc: Exception) -> str:
    text = str(exc.__cause__ or exc)
    return "its credential helper is not installed" if "not installed" in text else type(exc.__cause__ or exc).__name__
