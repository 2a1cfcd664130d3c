"""``prism models``: the models that ship."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_plugin.pretrained import ModelInfo

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    commands.add_parser(
        "models",
        help="list the models that ship: target, unit, error, licence",
        description="List the models that ship with the package. More of one: prism info NAME.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print a table."""
    from prism_plugin.pretrained import COMMITTEE, DEFAULT_MODEL, DEFAULT_POTENTIAL, available_models

    models = available_models()
    rows = [("name", "target", "validation error", "crystals", "elements")]
    rows += [
        (name, one.target, f"{one.mae:.4f} {_unit(one)}", str(one.crystals), str(one.elements))
        for name, one in models.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"what calculators and simulations take: {DEFAULT_POTENTIAL}; predictions: {DEFAULT_MODEL}")
    print(f"committee: {', '.join(COMMITTEE)}")
    print(f"licence: {' | '.join(sorted({one.licence for one in models.values()}))}")


def _unit(model: ModelInfo) -> str:
    """Unit of the error; of a potential that of the forces, of two classes what is counted."""
    return "eV/Å" if model.target == "pes" else model.unit or "taken for the other class"
