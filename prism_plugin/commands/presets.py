"""``prism presets``: list the experiments of the paper and the recipes of the shipped models."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    commands.add_parser(
        "presets",
        help="list the experiments of the paper and the recipes of the shipped models",
        description="Print every row of the supplement's Tables 2, 3 and 4, and the recipes of the shipped models. "
        "Run one: prism train --preset NAME --out RUN; any option can be added, --data FILE --target KEY as well.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from prism_plugin.preset import format_presets

    print(format_presets())
