from __future__ import annotations

import contextlib
import datetime
import traceback
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer import ConfigError
from cameleer.driver import NoSettings
from cameleer.schema import Setting, check_schema, decode, describe, duration_s

SECRET = "hunter2-do-not-show"


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    server: str
    password: str = ""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 443


class Settings(msgspec.Struct, kw_only=True):
    image: str = "busybox"
    retries: int = 3
    ratio: float = 0.5
    privileged: bool = False
    pull: Literal["always", "missing", "never"] = "missing"
    args: list[str] = []
    capabilities: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    registry: Registry | None = None
    mirrors: list[Registry] = []
    by_name: dict[str, Registry] = {}
    hint: int | None = None
    names: Annotated[list[str], msgspec.Meta(max_length=2)] = []


class Needy(msgspec.Struct, kw_only=True):
    optional: str = "x"
    needed: str


class Window(msgspec.Struct):
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Outer(msgspec.Struct):
    window: Window = msgspec.field(default_factory=Window)


def refused(data: Any, schema: type = Settings) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(schema, data, "driver_config")
    return str(caught.value)


def test_nothing_written_is_all_defaults() -> None:
    assert decode(Settings, {}, "x") == Settings()
    assert decode(NoSettings, {}, "x") == NoSettings()


def test_what_was_written_is_read() -> None:
    found = decode(
        Settings,
        {
            "image": "debian",
            "retries": 5,
            "ratio": 2,
            "privileged": True,
            "pull": "never",
            "args": ["a", "b"],
            "capabilities": ["chown"],
            "labels": {"a": "b"},
            "registry": {"server": "r", "port": 5000},
            "mirrors": [{"server": "m"}],
            "by_name": {"one": {"server": "o"}},
        },
        "x",
    )
    assert found == Settings(
        image="debian",
        retries=5,
        ratio=2.0,
        privileged=True,
        pull="never",
        args=["a", "b"],
        capabilities=("chown",),
        labels={"a": "b"},
        registry=Registry(server="r", port=5000),
        mirrors=[Registry(server="m")],
        by_name={"one": Registry(server="o")},
    )
    assert isinstance(found.ratio, float)


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("retries", "5", 5),
        ("retries", " -5 ", -5),
        ("retries", "+5", 5),
        ("retries", 5.0, 5),
        ("retries", 2**63 - 1, 2**63 - 1),
        ("ratio", "0.25", 0.25),
        ("ratio", "1e3", 1000.0),
        ("ratio", 1, 1.0),
        ("privileged", "true", True),
        ("privileged", "FALSE", False),
        ("image", 8, "8"),
        ("image", 8.0, "8"),
        ("image", 0.5, "0.5"),
        ("image", True, "true"),
        ("labels", {"a": 1}, {"a": "1"}),
        ("args", [1, "b"], ["1", "b"]),
    ],
)
def test_numbers_and_truth_values_may_be_text(name: str, written: Any, read: Any) -> None:
    assert getattr(decode(Settings, {name: written}, "x"), name) == read


def test_null_is_unset() -> None:
    assert decode(Settings, {"retries": None, "hint": None, "labels": {"a": None}}, "x") == Settings()
    assert "needed is missing" in refused({"needed": None}, Needy)


def test_a_list_of_maps_is_one_map() -> None:
    found = decode(
        Settings,
        {"labels": [{"a": "1"}, {"b": "2"}, {"a": "3"}], "registry": [{"server": "r"}, {"port": 1}]},  # HCL's blocks
        "x",
    )
    assert found.labels == {"a": "3", "b": "2"}
    assert found.registry == Registry(server="r", port=1)
    assert decode(Settings, {"registry": [{"server": "r"}]}, "x").registry == Registry(server="r")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"retires": 5}, "driver_config has the unknown key 'retires': did you mean 'retries'?"),
        ({"zzz": 5}, "driver_config has the unknown key 'zzz': use "),
        ({"registry": {"sever": "r"}}, "driver_config.registry has the unknown key 'sever': did you mean 'server'?"),
        ({"registry": {}}, "driver_config.registry.server is missing"),
        ({"registry": "r"}, "driver_config.registry is 'r': it must be a map"),
        ({"retries": "five"}, "driver_config.retries is 'five': it must be a whole number"),
        ({"retries": 0.5}, "driver_config.retries is 0.5: it must be a whole number"),
        ({"retries": True}, "driver_config.retries is True"),
        ({"retries": 2**63}, f"driver_config.retries is {2**63}"),
        ({"retries": "9" * 5000}, "driver_config.retries is '999"),
        ({"retries": "٣"}, "driver_config.retries is '٣'"),
        ({"retries": "+-3"}, "driver_config.retries is '+-3'"),
        ({"retries": "1_000"}, "driver_config.retries is '1_000'"),
        ({"ratio": "nan"}, "driver_config.ratio is 'nan': it must be a number"),
        ({"ratio": float("inf")}, "driver_config.ratio is inf"),
        ({"privileged": 1}, "driver_config.privileged is 1: it must be true or false"),
        ({"privileged": "yes"}, "driver_config.privileged is 'yes'"),
        ({"image": []}, "driver_config.image is a list: it must be text"),
        ({"image": datetime.date(2026, 1, 2)}, "driver_config.image is datetime.date(2026, 1, 2)"),
        ({"pull": "sometimes"}, "driver_config.pull is 'sometimes': it must be one of 'always', 'missing', 'never'"),
        ({"args": "a b"}, "driver_config.args is 'a b': it must be a list"),
        ({"args": ["a", {}]}, "driver_config.args[1] is a map"),
        ({"labels": ["a"]}, "driver_config.labels is a list: it must be a map"),
        ({"labels": {5: "a"}}, "driver_config.labels has the key 5: it must be text"),
        ({"mirrors": [{"server": "a", "port": 0}]}, "driver_config.mirrors[0].port is 0: it must be at least 1"),
        ({"by_name": {"one": {"server": "a", "port": "99999"}}}, "driver_config.by_name.one.port is '99999'"),
        ({"names": ["a", "b", "c"]}, "driver_config.names is a list: it must be of a length of at most 2"),
        ("image=x", "driver_config is 'image=x': it must be a map of settings"),
    ],
)
def test_an_error_gives_path_and_value(data: Any, words: str) -> None:
    assert refused(data).startswith(words)


def test_a_schema_without_keys_says_so() -> None:
    assert refused({"a": 1}, NoSettings) == "driver_config has the unknown key 'a': there is nothing to set here"


def test_a_required_key_has_no_default() -> None:
    assert refused({}, Needy) == "driver_config.needed is missing: it has no default"
    assert decode(Needy, {"needed": "y"}, "x") == Needy(needed="y")


def test_a_long_value_is_cut() -> None:
    assert len(refused({"retries": "x" * 10_000})) < 300


@pytest.mark.parametrize(
    "data",
    [
        {"registry": {"server": "r", "password": [SECRET]}},
        {"registry": {"server": "r", "password": {"value": SECRET}}},
        {"mirrors": [{"server": "r", "passwrd": SECRET}]},
        {"registry": [SECRET]},
        {"args": [{"x": SECRET}]},
        {"retries": {"x": SECRET}},
    ],
)
def test_a_secret_is_not_shown(data: Any) -> None:
    assert SECRET not in refused(data)


@pytest.mark.parametrize(
    "name", ["password", "db_pass", "API_TOKEN", "client_secret", "auth", "ssh_key", "credentials", "registries"]
)
def test_a_number_that_is_wrong_and_secret_is_not_shown_in_the_trace_either(name: str) -> None:
    schema = msgspec.defstruct("Keys", [(name, int, 0)])
    with pytest.raises(ConfigError, match=name) as caught:
        decode(schema, {name: SECRET}, "auth_config")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_schemas_own_check_speaks_with_the_path() -> None:
    assert decode(Outer, {"window": {"low": 1}}, "x").window.low == 1
    with pytest.raises(ConfigError, match=r"^x\.window: low is above high$"):
        decode(Outer, {"window": {"low": 2}}, "x")


def test_renamed_fields_go_by_their_written_names() -> None:
    class Camel(msgspec.Struct, rename="camel"):
        must_have: int

    assert decode(Camel, {"mustHave": 1}, "x").must_have == 1
    assert "did you mean 'mustHave'" in refused({"must_have": 1}, Camel)


@pytest.mark.parametrize(
    "kind",
    [
        Any,
        bytes,
        datetime.datetime,
        set[str],
        dict[int, str],
        int | str,
        list[bytes],
        Literal[1, 2],
        dict[str, Any],
        None,
    ],
)
def test_a_schema_of_other_types_is_refused_with_the_field(kind: Any) -> None:
    schema = msgspec.defstruct("Odd", [("field", kind)])
    with pytest.raises(ConfigError, match=r"Odd\.field"):
        check_schema(schema)


def test_a_schema_must_be_a_plain_struct() -> None:
    for wrong in (dict, msgspec.defstruct("A", [("x", int)], array_like=True), msgspec.defstruct("T", [], tag="t")):
        with pytest.raises(ConfigError, match="Struct"):
            check_schema(wrong)


def test_what_may_be_none_needs_a_default() -> None:
    with pytest.raises(ConfigError, match=r"Half\.field may be None: give it a default"):
        check_schema(msgspec.defstruct("Half", [("field", int | None)]))


def test_the_schemas_of_the_library_are_good() -> None:
    from cameleer.drivers.mock import MockConfig, MockOptions

    for schema in (NoSettings, MockConfig, MockOptions, Settings, Needy):
        check_schema(schema)


def test_a_schema_is_described() -> None:
    described = {setting.name: setting for setting in describe(Settings)}
    assert described["image"] == Setting(name="image", type="str", required=False, default="busybox")
    assert described["args"] == Setting(name="args", type="list[str]", required=False, default=[])
    assert described["capabilities"].type == "list[str]"
    assert described["labels"].type == "map[str, str]"
    assert described["hint"] == Setting(name="hint", type="int", required=False, default=None)
    assert described["pull"].choices == ("always", "missing", "never")
    assert described["mirrors"].type == "list[block]"
    assert described["by_name"].type == "map[str, block]"
    assert described["registry"].type == "block"
    assert described["registry"].keys == described["mirrors"].keys
    assert [(key.name, key.required) for key in described["registry"].keys] == [
        ("server", True),
        ("password", False),
        ("port", False),
    ]
    assert describe(Needy)[1] == Setting(name="needed", type="str", required=True)


def test_a_description_becomes_json_and_back() -> None:
    text = msgspec.json.encode(describe(Settings))
    assert msgspec.json.decode(text, type=tuple[Setting, ...]) == describe(Settings)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.dictionaries(st.sampled_from(Settings.__struct_fields__) | st.text(max_size=5), plain, max_size=4))
def test_whatever_is_written_is_read_or_refused(data: dict[str, Any]) -> None:
    found = decoded(data)
    if found is not None:
        assert msgspec.convert(msgspec.to_builtins(found), Settings) == found


def decoded(data: dict[str, Any]) -> Settings | None:
    try:
        return decode(Settings, data, "x")
    except ConfigError:
        return None


@given(st.builds(Settings))
def test_what_is_written_out_is_read_back(settings: Settings) -> None:
    assert decode(Settings, msgspec.to_builtins(settings), "x") == settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("0", 0.0),
        ("0s", 0.0),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("2", 2.0),
        (2, 2.0),
        (0.25, 0.25),
    ],
)
def test_durations_are_text_or_seconds(text: object, seconds: float) -> None:
    assert duration_s(text, "x") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "s", "1x", "-1s", "1s-", "1 s", "1s 2s", "nan", "inf", None, True, [], -1, float("nan"), float("inf")]
)
def test_what_is_no_duration_is_named(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        duration_s(value, "telemetry.collection_interval")
    shown = "a list" if value == [] else repr(value)
    assert str(caught.value).startswith(f"telemetry.collection_interval is {shown}: use a duration")


@given(hours=st.integers(0, 99), minutes=st.integers(0, 999), ms=st.integers(0, 10**6))
def test_the_parts_of_a_duration_add_up(hours: int, minutes: int, ms: int) -> None:
    expected = hours * 3600 + minutes * 60 + ms / 1000
    assert duration_s(f"{hours}h{minutes}m{ms}ms", "x") == pytest.approx(expected)


@given(st.text(max_size=8))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert duration_s(text, "x") >= 0
