"""Names of images: the modern grammar, and Fn's of 2017."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.docker.images.image import ImageName, compat
from cameleer.errors import ConfigError

HEX = "0123456789abcdef" * 4
D = f"sha256:{HEX}"

Modern = tuple[str, str, str | None, str | None]
TABLE: list[tuple[str, tuple[str, str, str], Modern | str]] = [
    ("mongo", ("", "library/mongo", "latest"), ("docker.io", "library/mongo", None, None)),
    ("mongo:v1", ("", "library/mongo", "v1"), ("docker.io", "library/mongo", "v1", None)),
    ("library/mongo", ("", "library/mongo", "latest"), ("docker.io", "library/mongo", None, None)),
    ("team/app", ("", "team/app", "latest"), ("docker.io", "team/app", None, None)),
    ("team/app:v1", ("", "team/app", "v1"), ("docker.io", "team/app", "v1", None)),
    ("my.reg/app:v1", ("my.reg", "app", "v1"), ("my.reg", "app", "v1", None)),
    ("my.reg:8080/team/app:v2", ("my.reg:8080", "team/app", "v2"), ("my.reg:8080", "team/app", "v2", None)),
    ("my.reg:80/app", ("my.reg:80", "app", "latest"), ("my.reg:80", "app", None, None)),
    ("localhost/app", ("", "localhost/app", "latest"), ("localhost", "app", None, None)),
    ("localhost:5000/app:v1", ("", "localhost:5000/app", "v1"), ("localhost:5000", "app", "v1", None)),
    ("localhost:5000/a/b", ("localhost:5000", "a/b", "latest"), ("localhost:5000", "a/b", None, None)),
    ("a/b/c", ("a", "b/c", "latest"), ("docker.io", "a/b/c", None, None)),
    ("a/b/c/d", ("", "a/b/c/d", "latest"), ("docker.io", "a/b/c/d", None, None)),
    ("my.reg/a/b/c/d:t", ("", "my.reg/a/b/c/d", "t"), ("my.reg", "a/b/c/d", "t", None)),
    ("user/app.web:1", ("user", "app.web", "1"), ("docker.io", "user/app.web", "1", None)),
    ("docker.io/mongo", ("docker.io", "mongo", "latest"), ("docker.io", "library/mongo", None, None)),
    ("index.docker.io/a/b", ("index.docker.io", "a/b", "latest"), ("docker.io", "a/b", None, None)),
    (f"mongo@{D}", ("", "library/mongo", "latest"), ("docker.io", "library/mongo", None, D)),
    (f"mongo:v1@{D}", ("", "library/mongo", "v1"), ("docker.io", "library/mongo", "v1", D)),
    (f"my.reg:80/a/x:t@{D}", ("my.reg:80", "a/x", "t"), ("my.reg:80", "a/x", "t", D)),
    (f"my.reg:80/x@{D}", ("my.reg:80", "x", "latest"), ("my.reg:80", "x", None, D)),
    ("[::1]:5000/a/b", ("[::1]:5000", "a/b", "latest"), ("[::1]:5000", "a/b", None, None)),
    ("Foo/bar", ("", "Foo/bar", "latest"), ("Foo", "bar", None, None)),
    ("UPPER/x/y", ("UPPER", "x/y", "latest"), ("UPPER", "x/y", None, None)),
    ("MyRepo/App", ("", "MyRepo/App", "latest"), "'App' must be of lower case"),
    ("host:5000", ("", "library/host", "5000"), ("docker.io", "library/host", "5000", None)),
    ("", ("", "library/", "latest"), "a part of the name is empty"),
    ("mongo:", ("", "library/mongo", "latest"), "the tag '' must be"),
    (":v1", ("", "library/", "v1"), "a part of the name is empty"),
    ("my.reg:5000/", ("my.reg:5000", "", "latest"), "a part of the name is empty"),
    ("a//b", ("a", "/b", "latest"), "a part of the name is empty"),
    ("x@y@z", ("", "library/x", "latest"), "the digest 'y@z' must be"),
    ("mongo@v1", ("", "library/mongo", "latest"), "the digest 'v1' must be"),
    ("http://my.reg/a/b", ("", "http://my.reg/a/b", "latest"), "a name has no scheme"),
    (HEX, ("", f"library/{HEX}", "latest"), "64 hexadecimal digits are an image's id"),
]
IDS = [text.replace(HEX, "HEX") or "nothing" for text, _, _ in TABLE]


@pytest.mark.parametrize(("text", "modern"), [(text, modern) for text, _, modern in TABLE], ids=IDS)
def test_a_name_is_read_by_the_modern_grammar(text: str, modern: Modern | str) -> None:
    if isinstance(modern, str):
        with pytest.raises(ConfigError, match=re.escape(modern)) as caught:
            ImageName.parse(text)
        assert str(caught.value).startswith(f"TaskConfig.image is {text!r}: ")
    else:
        assert ImageName.parse(text) == ImageName(*modern)


@pytest.mark.parametrize(("text", "seed"), [(text, seed) for text, seed, _ in TABLE], ids=IDS)
def test_the_old_triple_is_as_it_was(text: str, seed: tuple[str, str, str]) -> None:
    assert compat(text) == seed


@pytest.mark.parametrize(
    ("text", "reference", "familiar"),
    [
        ("mongo", "docker.io/library/mongo:latest", "mongo"),
        ("docker.io/library/mongo:v1", "docker.io/library/mongo:v1", "mongo:v1"),
        ("team/app:v1", "docker.io/team/app:v1", "team/app:v1"),
        (f"mongo:v1@{D}", f"docker.io/library/mongo@{D}", f"mongo:v1@{D}"),
        (f"localhost:5000/app@{D}", f"localhost:5000/app@{D}", f"localhost:5000/app@{D}"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c"),
        (f"library/{HEX}", f"docker.io/library/{HEX}:latest", f"library/{HEX}"),
        ("my.reg", "docker.io/library/my.reg:latest", "my.reg"),
    ],
)
def test_a_digest_wins_for_pulling_and_latest_is_only_without_both(text: str, reference: str, familiar: str) -> None:
    name = ImageName.parse(text)
    assert name.reference == reference
    assert name.familiar == familiar


@pytest.mark.parametrize(
    "text",
    [
        "a_b", "a__b", "a--b---c", "0a.b-c_d", "a:" + "T" * 128, "my-reg.example:1/a", "localhost:5000/x",
        "a@sha512:" + "0" * 128, "a@other+x:" + "F" * 32, "[fe80::1]/a", "x" * 237,
    ],
)  # fmt: skip
def test_unusual_names_are_read(text: str) -> None:
    ImageName.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a___b", "a..b", "a._b", "-a", "a-", ".a", "a/", "/a", "a b", "a:b:c", "a:.b", "a:" + "T" * 129, "a:é", "é",
        "my_reg:5000/a", "-x.y/a", "x.y:/a", "x.y:port/a", "[::1/a", "[g::]/a", "x" * 256, "a@", "a@sha256:" + "0" * 63,
        "a@sha256:" + "F" * 64, "a@md5:" + "0" * 31, "a\n", "a:b\n", "docker.io/", "docker.io//a", "localhost/A",
    ],
)  # fmt: skip
def test_wrong_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        ImageName.parse(text)


COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
DOMAINS = st.sampled_from(["localhost", "localhost:5000", "my.reg", "My.Reg:80", "UPPER", "[::1]:5000", "docker.io"])
TAGS = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGESTS = st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(DOMAINS, st.lists(COMPONENTS, min_size=1, max_size=4), TAGS, DIGESTS)
def test_every_good_name_is_read_as_it_was_written(
    domain: str, parts: list[str], tag: str | None, digest: str | None
) -> None:
    path = "/".join(parts)
    if domain == "docker.io" and len(parts) == 1:
        path = f"library/{path}"
    name = ImageName(domain, path, tag, digest)
    assert ImageName.parse(str(name)) == name
    assert ImageName.parse(name.reference).reference == name.reference
    assert ImageName.parse(name.familiar) == name


@given(st.text(max_size=40) | st.text("aA0/:@._-[]", max_size=20))
def test_any_text_is_a_name_or_a_config_error(text: str) -> None:
    compat(text)
    try:
        name = ImageName.parse(text)
    except ConfigError:
        return
    assert ImageName.parse(str(name)) == name
