"""Names of images, by the grammar that engines and registries use now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cameleer.errors import ConfigError

HUB: Final = "docker.io"
"""The registry of a name that has none."""

_OLD_HUB: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_LONGEST: Final = 255
_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_DIGEST_DIGITS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ImageName:
    """An image's name in full.

    :ivar domain: of the registry, with its port: ``docker.io``, ``localhost:5000``.
    :ivar path: of the repository: ``library/busybox``.
    :ivar tag: None: none was given.
    :ivar digest: ``sha256:…``; None: none was given.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a name: ``busybox``, ``team/app:v1``, ``host:5000/app@sha256:…``.

        :raises ConfigError: it is none; says what is wrong with it.
        """
        if _ID.fullmatch(text):
            raise _wrong(text, "64 hexadecimal digits are an image's id, and no name")
        rest, at, digest = text.partition("@")
        if at:
            _check_digest(text, digest)
        name, tag = _split_tag(rest)
        if tag is not None and not _TAG.fullmatch(tag):
            raise _wrong(text, f"the tag {tag!r} must be up to 128 letters, digits, '_', '.' and '-'")
        domain, path = _split_domain(text, name)
        if len(domain) + 1 + len(path) > _LONGEST:
            raise _wrong(text, f"a name has at most {_LONGEST} characters")
        return cls(domain, path, tag, digest if at else None)

    @property
    def name(self) -> str:
        """Domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def version(self) -> str:
        """What is pulled of the repository: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    @property
    def reference(self) -> str:
        """What is pulled, in full."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.version}"

    @property
    def familiar(self) -> str:
        """As people write it: without ``docker.io`` and ``library`` where it is read the same way without them."""
        short = self.path.removeprefix(_OFFICIAL)
        path = self.path if "/" in short or _ID.fullmatch(short) else short
        first, slash, _ = path.partition("/")
        return str(self) if self.domain != HUB or (slash and _is_domain(first)) else self._with(path)

    def __str__(self) -> str:
        return self._with(self.name)

    def _with(self, name: str) -> str:
        return name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def compat(text: str) -> tuple[str, str, str]:
    """Registry, repository and tag as Fn read them in 2017, its mistakes included; nothing is refused.

    The digest is thrown away; a name of three parts has a registry whatever its first part is, one of two only if it
    has a dot anywhere, and a longer one never.
    """
    name, tag = _split_tag(text.partition("@")[0])
    parts = name.split("/")
    registry = ""
    if len(parts) == 1:
        name = _OFFICIAL + name
    elif len(parts) == 3 or (len(parts) == 2 and "." in name):
        registry, _, name = name.partition("/")
    return registry, name, tag or "latest"


def _split_tag(text: str) -> tuple[str, str | None]:
    name, colon, tag = text.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (text, None)


def _split_domain(text: str, name: str) -> tuple[str, str]:
    if "://" in text:
        raise _wrong(text, "a name has no scheme")
    domain, slash, path = name.partition("/")
    if not slash or not _is_domain(domain):
        domain, path = HUB, name
    elif not _DOMAIN.fullmatch(domain):
        raise _wrong(text, f"{domain!r} is no registry's address")
    if domain == _OLD_HUB:
        domain = HUB
    if domain == HUB and "/" not in path:
        _check_path(text, path)
        path = _OFFICIAL + path
    _check_path(text, path)
    return domain, path


def _is_domain(first: str) -> bool:
    """Whether a name's first part is a registry's address, and none of the path."""
    return first == "localhost" or "." in first or ":" in first or first != first.lower()


def _check_path(text: str, path: str) -> None:
    for part in path.split("/"):
        if _COMPONENT.fullmatch(part):
            continue
        if not part:
            raise _wrong(text, "a part of the name is empty")
        if _COMPONENT.fullmatch(part.lower()):
            raise _wrong(text, f"{part!r} must be of lower case")
        raise _wrong(text, f"{part!r} must be lower-case letters and digits, joined by '.', '_', '__' or '-'")


def _check_digest(text: str, digest: str) -> None:
    algorithm, _, digits = digest.partition(":")
    wanted = _DIGEST_DIGITS.get(algorithm)
    if not _DIGEST.fullmatch(digest):
        raise _wrong(text, f"the digest {digest!r} must be like 'sha256:' and hexadecimal digits")
    if wanted is not None and (len(digits) != wanted or digits != digits.lower()):
        raise _wrong(text, f"a digest of {algorithm} has {wanted} hexadecimal digits of lower case")


def _wrong(text: str, reason: str) -> ConfigError:
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return ConfigError(f"TaskConfig.image is {shown!r}: {reason}")
