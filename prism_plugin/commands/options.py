"""Options of the command line, made from the fields of option classes, and those that several commands share."""

from __future__ import annotations

import argparse
import ast
import collections.abc
from collections.abc import Collection, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from prism_plugin.defaults import DEFAULT_MODEL, DEFAULT_POTENTIAL
from prism_plugin.schema import described
from prism_plugin.settings import DataOptions

__all__ = [
    "TABLE_FLAGS",
    "add_model",
    "add_options",
    "add_parts",
    "named_value",
    "table_values",
]

# Tables are given as repeated NAME=VALUE.
TABLE_FLAGS = {"model": "--set", "options": "--option", "weights": "--weight"}


def named_value(text: str) -> tuple[str, Any]:
    """Read ``name=value``; the value is a Python literal or else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value, for example dim=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def add_options(group: Any, cls: type, names: Collection[str], more: Mapping[str, str] | None = None) -> None:
    """Add the options of some fields; the parser leaves out what is not given (``argument_default=SUPPRESS``).

    Args:
        group: a parser or a group of one.
        cls: the class of options.
        names: of its fields, in this order.
        more: further help by name, such as examples, or what is taken "if not given" in place of the default.
    """
    fields = described(cls)
    hints = get_type_hints(cls, include_extras=True)
    for name in names:
        default, about, extra = fields[name]
        kind = _kind(hints[name])
        shown = extra.get("shown", default)
        about += (more or {}).get(name, "")
        if kind is dict:
            group.add_argument(
                TABLE_FLAGS[name], dest=name, type=named_value, action="append", metavar="NAME=VALUE", help=about
            )
            continue
        if kind is bool:
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            shown = {True: "yes", False: "no"}[default]
        else:
            how = {"type": kind, "metavar": extra.get("metavar", name.upper())}
        if shown not in ("", None) and "if not given" not in about:
            about += f" (default: {shown})"
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, help=about.replace("%", "%%"), **how)


def _kind(hint: Any) -> type:
    """Return what a field's text is read as on a command line."""
    kinds = (bool, int, float, str)
    if get_origin(hint) is collections.abc.Mapping:
        return dict
    if hint in kinds:
        return hint
    parts = get_args(hint)
    if any(isinstance(part, str) for part in parts):  # choices
        return str
    found = [_kind(part) for part in parts if (isinstance(part, type) or get_args(part)) and part is not type(None)]
    return next(kind for kind in (bool, int, float, dict, str) if kind in found)


def table_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make tables of the repeated options ``--set``, ``--option`` and ``--weight``."""
    return {name: dict(value) if name in TABLE_FLAGS else value for name, value in given.items()}


def add_parts(parser: Any) -> None:
    """Add the options that say which rows of the data are taken, and for what."""
    add = parser.add_argument
    add("--fold", type=int, help="of a Matbench task, 0 to 4")
    add(
        "--splits",
        metavar="FILE",
        help='JSON with the names of each part: {"train": [...], "val": [...], "test": [...]}',
    )
    add("--skip-missing", action="store_true", help="leave out rows without the target")
    add_options(parser, DataOptions, ("energy_key", "forces_key", "stress_key"))


def add_model(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the options that say which model computes, and where."""
    add = parser.add_argument
    about = "folder of a model (RUN/model), name of a shipped one, or OWNER/NAME on the Hub"
    if several:
        about += "; repeated: mean and standard deviation of several, as committee stands for those of formation energy"
        about += f"; {DEFAULT_MODEL} if not given, and of forces {DEFAULT_POTENTIAL}"
        add("--model", action="append", default=argparse.SUPPRESS, help=about)
    else:
        add("--model", default=DEFAULT_MODEL, help=about)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--batch-size", type=int, default=64, help="most crystals that are predicted together")
