"""Reading settings: of drivers, of tasks, wherever they come from.

A schema is a msgspec Struct made of what HCL, TOML and msgpack can all carry: ``str``, ``int``, ``float``, ``bool``,
lists, maps with text keys and nested Structs (blocks), each required or with a default. ``Literal`` texts and
``Annotated[…, msgspec.Meta(…)]`` narrow them. What was written is read kindly: numbers and truth values as text and
the other way about, null as unset, a list of maps (HCL's blocks) as one map. What does not fit is a ``ConfigError``
that names the path and the value; a value under a key that sounds like a secret is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from cameleer.errors import ConfigError

if TYPE_CHECKING:
    from msgspec import inspect

T = TypeVar("T")

_SECRET_WORDS: Final = ("pass", "pwd", "secret", "token", "auth", "credential", "key", "registries")
_LONGEST_SHOWN: Final = 100
_INT64: Final = range(-(2**63), 2**63)
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Setting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key of a schema, described for documentation and for other programs; JSON-able.

    :ivar type: ``str``, ``int``, ``float``, ``bool``, ``block``, ``list[…]`` or ``map[str, …]`` of these.
    :ivar default: as it would be written; None: unset.
    :ivar choices: the only texts that it may be; empty: any.
    :ivar keys: of the block, or of the blocks in the list or map.
    """

    name: str
    type: str
    required: bool
    default: object = None
    choices: tuple[str, ...] = ()
    keys: tuple[Setting, ...] = ()


def decode(schema: type[T], data: Mapping[str, Any], path: str) -> T:
    """Read settings as the type that describes them.

    :param schema: see :func:`check_schema`.
    :param path: where the settings stand, for messages: ``driver_config``.
    :raises ConfigError: a key is unknown (the nearest one is named), one is missing, or a value does not fit.
    """
    if not data and isinstance(schema, type) and issubclass(schema, msgspec.Struct) and _all_default(schema):
        return schema()
    return _block(_struct_type(schema), data, path)  # type: ignore[no-any-return]


def check_schema(schema: type) -> None:
    """Check that a schema is made of what can be written everywhere.

    :raises ConfigError: it is no msgspec Struct, or one of its fields has a type that HCL, TOML and msgpack do not
        share; names the field.
    """
    _check(_struct_type(schema), schema.__name__)


def describe(schema: type) -> tuple[Setting, ...]:
    """Describe the keys of a schema.

    :raises ConfigError: see :func:`check_schema`.
    """
    check_schema(schema)
    return tuple(_setting(field) for field in _struct_type(schema).fields)


def duration_s(value: object, path: str) -> float:
    """Read a duration: seconds as a number, or text in Go's manner: ``500ms``, ``10m``, ``1m30s``, ``1.5h``.

    :raises ConfigError: it is none, or negative.
    """
    seconds: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", value)
        if parts and "".join(number + unit for number, unit in parts) == value:
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        else:
            seconds = _float(value)
    if seconds is None or not 0 <= seconds < float("inf"):
        raise ConfigError(f"{path} is {_shown(value, path)}: use a duration such as '500ms', '1m30s', or seconds")
    return seconds


def _all_default(schema: type[msgspec.Struct]) -> bool:
    """Whether no key must be given; quick, for the most frequent case: a task without settings."""
    defaults = schema.__struct_defaults__
    return len(defaults) == len(schema.__struct_fields__) and msgspec.NODEFAULT not in defaults


def _struct_type(schema: type) -> inspect.StructType:
    from msgspec import inspect

    try:
        found = inspect.type_info(schema)
    except (TypeError, NameError) as exc:  # a type that msgspec has no use for; a name that is not there at run time
        raise ConfigError(f"the schema {getattr(schema, '__name__', schema)!r} cannot be read: {exc}") from exc
    if not isinstance(found, inspect.StructType):
        raise ConfigError(f"the schema is {schema!r}: it must be a msgspec.Struct")
    return found


def _check(kind: inspect.Type, path: str) -> None:
    from msgspec import inspect

    match kind:
        case inspect.StructType():
            if kind.array_like or kind.tag is not None:
                raise ConfigError(f"the schema {path} is array-like or tagged: use a plain Struct")
            for field in kind.fields:
                inner, optional = _unset(field.type)
                if optional and field.required:
                    raise ConfigError(f"the schema's {path}.{field.encode_name} may be None: give it a default")
                _check(inner, f"{path}.{field.encode_name}")
        case inspect.ListType() | inspect.VarTupleType():
            _check(kind.item_type, f"{path}[]")
        case inspect.DictType(key_type=inspect.StrType()):
            _check(kind.value_type, f"{path}[]")
        case inspect.LiteralType() if all(isinstance(choice, str) for choice in kind.values):
            pass
        case inspect.StrType() | inspect.IntType() | inspect.FloatType() | inspect.BoolType():
            pass
        case _:
            raise ConfigError(
                f"the schema's {path} is a {type(kind).__name__.removesuffix('Type')}: "
                "use str, int, float, bool, list, dict with text keys, a nested Struct, or one of these or None"
            )


def _unset(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    """Take ``| None`` off a type; the second value says whether it was there."""
    from msgspec import inspect

    if isinstance(kind, inspect.Metadata):
        return _unset(kind.type)
    if isinstance(kind, inspect.UnionType):
        others = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
        if len(others) == 1 < len(kind.types):
            return others[0], True
    return kind, False


def _setting(field: inspect.Field) -> Setting:
    from msgspec import inspect

    name, innermost = _type_name(_unset(field.type)[0])
    default: object = None
    if field.default_factory is not msgspec.NODEFAULT:
        default = _plain(field.default_factory())
    elif field.default is not msgspec.NODEFAULT:
        default = _plain(field.default)
    return Setting(
        name=field.encode_name,
        type=name,
        required=field.required,
        default=default,
        choices=tuple(map(str, innermost.values)) if isinstance(innermost, inspect.LiteralType) else (),
        keys=tuple(map(_setting, innermost.fields)) if isinstance(innermost, inspect.StructType) else (),
    )


def _plain(default: object) -> object:
    return msgspec.json.decode(msgspec.json.encode(default))


def _type_name(kind: inspect.Type) -> tuple[str, inspect.Type]:
    """Name a type as users know it; the second value is what its lists and maps hold in the end."""
    from msgspec import inspect

    match kind:
        case inspect.ListType() | inspect.VarTupleType():
            name, innermost = _type_name(kind.item_type)
            return f"list[{name}]", innermost
        case inspect.DictType():
            name, innermost = _type_name(kind.value_type)
            return f"map[str, {name}]", innermost
        case inspect.StructType():
            return "block", kind
        case inspect.LiteralType():
            return "str", kind
    return type(kind).__name__.removesuffix("Type").lower(), kind


def _block(kind: inspect.StructType, data: object, path: str) -> Any:
    written = _map(data, path, "a map of settings")
    fields = {field.encode_name: field for field in kind.fields}
    values = {}
    for key, value in written.items():
        field = fields.get(key)
        if field is None:
            raise _unknown(path, key, fields)
        if value is not None:
            values[key] = _value(_unset(field.type)[0], value, f"{path}.{key}")
    for key, field in fields.items():
        if field.required and key not in values:
            raise ConfigError(f"{path}.{key} is missing: it has no default")
    try:
        return msgspec.convert(values, kind.cls)
    except msgspec.ValidationError as exc:  # from the schema's own __post_init__: all else was checked
        raise ConfigError(f"{path}: {exc.__cause__ or exc}") from exc.__cause__


def _value(kind: inspect.Type, value: Any, path: str) -> Any:
    from msgspec import inspect

    good: Any = None
    rule = ""
    match kind:
        case inspect.StructType():
            return _block(kind, value, path)
        case inspect.DictType():
            written = _map(value, path, "a map")
            good = {k: _value(kind.value_type, v, f"{path}.{k}") for k, v in written.items() if v is not None}
        case inspect.ListType() | inspect.VarTupleType():
            rule = "a list"
            if isinstance(value, (list, tuple)):
                good = [_value(kind.item_type, each, f"{path}[{index}]") for index, each in enumerate(value)]
        case inspect.LiteralType():
            rule = "one of " + ", ".join(repr(choice) for choice in kind.values)
            text = _text(value)
            good = text if text in kind.values else None
        case inspect.StrType():
            good, rule = _text(value), "text"
        case inspect.BoolType():
            good, rule = {"true": True, "false": False}.get(str(value).lower()), "true or false"
        case inspect.IntType():
            good, rule = _int(value), "a whole number of at most 64 bits"
        case inspect.FloatType():
            good, rule = _float(value), "a number"
        case _:
            _check(kind, path)
    broken = rule if good is None else _broken_limit(kind, good)
    if broken is not None:
        raise ConfigError(f"{path} is {_shown(value, path)}: it must be {broken}")
    return good


def _map(data: object, path: str, rule: str) -> Mapping[str, Any]:
    """A map as it is, or a list of maps as one: blocks of the same name, of which a later one wins."""
    parts = data if isinstance(data, (list, tuple)) else [data]
    merged: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, Mapping):
            raise ConfigError(f"{path} is {_shown(data, path)}: it must be {rule}")
        for key, value in part.items():
            if not isinstance(key, str):
                raise ConfigError(f"{path} has the key {key!r}: it must be text")
            merged[key] = value
    return merged


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) else None


def _int(value: object) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        if not text.isascii() or not text.lstrip("+-").isdigit() or len(text) > 20:
            return None
        value = int(text) if text[1:].isdigit() or text.isdigit() else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value in _INT64 else None


def _float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _secret(path: str) -> bool:
    return any(word in path.lower() for word in _SECRET_WORDS)


def _shown(value: object, path: str) -> str:
    """A value for a message; only what is surely no secret, and not all of what is long."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, (list, tuple)):
        return "a list"
    if _secret(path):
        return "wrong (not shown)"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _unknown(path: str, key: str, known: Mapping[str, object]) -> ConfigError:
    if not known:
        return ConfigError(f"{path} has the unknown key {key!r}: there is nothing to set here")
    from cameleer.settings import unknown_key

    return unknown_key(path, key, known)


def _broken_limit(kind: Any, value: Any) -> str | None:
    """The limit of a type's ``msgspec.Meta`` that a value breaks."""
    length = len(value) if isinstance(value, (str, list, dict)) else 0
    for name, broken, rule in (
        ("gt", lambda limit: value <= limit, "above {}"),
        ("ge", lambda limit: value < limit, "at least {}"),
        ("lt", lambda limit: value >= limit, "below {}"),
        ("le", lambda limit: value > limit, "at most {}"),
        ("multiple_of", lambda limit: value % limit != 0, "a multiple of {}"),
        ("min_length", lambda limit: length < limit, "of a length of at least {}"),
        ("max_length", lambda limit: length > limit, "of a length of at most {}"),
        ("pattern", lambda limit: re.search(limit, value) is None, "text like {}"),
    ):
        limit = getattr(kind, name, None)
        if limit is not None and broken(limit):
            return rule.format(limit)
    return None
