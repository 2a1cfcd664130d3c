"""Frozen dataclasses of options, whose values pydantic checks; errors say what is wrong, what was given, what to do.

An option is a field of such a class: its type with its bounds, its default and one line that says what it is for. What
reads options (the command line, files, the page of all options) derives from the fields.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import annotated_types
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prism_plugin.errors import PrismError

__all__ = [
    "Flag",
    "Fraction",
    "NonNegative",
    "Number",
    "Positive",
    "Table",
    "Text",
    "Texts",
    "Whole",
    "as_dict",
    "changed",
    "check_values",
    "described",
    "did_you_mean",
    "option",
    "options_class",
    "resumable",
    "wanted",
]

_Class = TypeVar("_Class")


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's, which is all that a saved model may hold."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _whole(value: Any) -> Any:
    value = _plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _several(value: Any) -> Any:
    """Turn lists and arrays into tuples; a text is one text, not several letters."""
    if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
        return value
    return tuple(_plain(one) for one in value)


Whole = Annotated[int, BeforeValidator(_whole), Strict()]
Number = Annotated[float, BeforeValidator(_plain), Strict(), AllowInfNan(False)]
Positive = Annotated[Number, annotated_types.Gt(0)]
NonNegative = Annotated[Number, annotated_types.Ge(0)]
Fraction = Annotated[Number, annotated_types.Ge(0), annotated_types.Lt(1)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_several)]
Table = Mapping[str, Any]


def option(about: str, *, default: Any = None, factory: Callable[[], Any] | None = None, **extra: Any) -> Any:
    """Declare a field.

    Args:
        about: what it is for, in one sentence, with its unit.
        default: its default.
        factory: makes the default, where that can be changed.
        **extra: what readers of options want to know: ``metavar`` of the command line, ``shown`` in place of the
            default, ``place`` (it says where to compute, not what), ``resumable`` (it may change when a run goes on).
    """
    if factory is not None:
        return Field(default_factory=factory, description=about, json_schema_extra=extra or None)
    return Field(default=default, description=about, json_schema_extra=extra or None)


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def options_class(cls: type[_Class]) -> type[_Class]:
    """Make a class of options: frozen, without unknown names, with checked values.

    Its constructor raises :class:`~prism_plugin.errors.PrismError`. A class attribute ``called`` says what one of its
    options is called in messages.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def checked(self: Any, *values: Any, **named: Any) -> None:
        try:
            construct(self, *values, **named)
        except ValidationError as error:
            raise PrismError(_explained(made, error)) from None

    made.__init__ = checked
    return made


def as_dict(options: Any) -> dict[str, Any]:
    """Return options by name."""
    return dataclasses.asdict(options)


def changed(options: _Class, **changes: Any) -> _Class:
    """Return options with some changed, checked again."""
    return type(options)(**{**vars(options), **changes})


def described(cls: type) -> dict[str, tuple[Any, str, dict[str, Any]]]:
    """Return of each field of a class of options its default, what it is for, and what readers want to know."""
    found = {}
    for field in dataclasses.fields(cls):
        info: Any = field.default
        default = {} if info.default_factory is not None else info.default
        found[field.name] = (default, info.description or "", dict(info.json_schema_extra or {}))
    return found


def resumable(cls: type) -> list[str]:
    """Return the names of the options of a class that may change when a run goes on."""
    return [name for name, (*_, extra) in described(cls).items() if {"place", "resumable"} & extra.keys()]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is probably meant, or list all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"


def wanted(hint: Any) -> str:
    """Describe in words what a field accepts."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    optional = len(parts) < len(get_args(hint))
    if get_origin(hint) is not Annotated and optional and len(parts) == 1:
        return wanted(parts[0])
    if get_origin(hint) is Literal:
        return f"one of: {', '.join(map(repr, parts))}"
    if get_origin(hint) is tuple:
        each = wanted(parts[0])
        return f"a tuple, each {each}" if parts[-1] is ... else f"{len(parts)} numbers, each {each}"
    if get_origin(hint) is Annotated:
        kind, *marks = parts
        if get_origin(kind) is not None:
            return wanted(kind)
        return _with_bounds(kind, marks)
    kinds = {str: "a text", bool: "True or False", float: "a number", int: "a whole number"}
    return kinds.get(hint, "a table of named values")


def _with_bounds(kind: type, marks: Iterable[Any]) -> str:
    bounds: dict[type, Any] = {type(mark): mark for mark in marks if isinstance(mark, annotated_types.BaseMetadata)}
    low, above = bounds.get(annotated_types.Ge), bounds.get(annotated_types.Gt)
    below, high = bounds.get(annotated_types.Lt), bounds.get(annotated_types.Le)
    if kind is float and above is not None and above.gt == 0:
        return "a positive number" + (f" of at most {high.le:g}" if high is not None else "")
    words = [f"of at least {low.ge}"] if low is not None else []
    words += [f"below {below.lt}"] if below is not None else []
    words += [f"at most {high.le}"] if high is not None else []
    return " ".join([wanted(kind), " and ".join(words)]).strip()


def check_values(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check named values one by one, without those that are missing; return them in their types.

    Args:
        cls: a class of options.
        values: by name.

    Raises:
        ValueError: if a name is unknown or a value is not what its field wants; says what is wanted, or meant.
    """
    hints = {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if name != "called"}
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise PrismError(f"unknown {_called(cls)} {name!r}; {did_you_mean(name, hints)}")
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise PrismError(_refusal(name, hints[name], value, error.errors()[0])) from None
    return checked


def _called(cls: Any) -> str:
    return getattr(cls, "called", "option")


def _explained(cls: type, error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # of a check that looks at several fields
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        return (
            f"unknown {_called(cls)} {name!r}; {did_you_mean(name, (field.name for field in dataclasses.fields(cls)))}"
        )
    if first["type"] == "missing":
        return f"{name} is missing"
    hint = get_type_hints(cls, include_extras=True)[name]
    value = first["input"]
    return _refusal(name, hint, value, first)


def _refusal(name: str, hint: Any, value: Any, error: Mapping[str, Any]) -> str:
    if get_origin(hint) is collections.abc.Mapping and len(error["loc"]) > 1:
        return (
            f"the value of {error['loc'][-1]!r} in {name} must be {wanted(get_args(hint)[1])}, got {error['input']!r}"
        )
    choices = hint if get_origin(hint) is Literal else None
    for part in get_args(hint):
        choices = part if get_origin(part) is Literal else choices
    if choices is not None:
        return f"unknown {name} {value!r}; choose one of: {', '.join(map(repr, get_args(choices)))}"
    what = wanted(hint)
    one = f"; of one write ({value!r},)" if what.startswith("a tuple") and isinstance(value, str) else ""
    return f"{name} must be {what}, got {value!r}{one}"
