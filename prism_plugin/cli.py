"""The ``prism`` command.

Every error of the user's making ends in one line that says what is wrong and what to do, and exit status 2;
``--traceback`` shows where it was raised.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from prism_plugin import __version__
from prism_plugin.commands import demo, evaluate, info, label, predict, presets, rodflow, scaling, train

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": train,
    "presets": presets,
    "predict": predict,
    "evaluate": evaluate,
    "scaling": scaling,
    "info": info,
    "rodflow": rodflow,
    "label": label,
    "demo": demo,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prism", description="PRISM: train and use graph networks for crystals.")
    parser.add_argument("--version", action="version", version=f"prism-plugin {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        COMMANDS[arguments.command].run(arguments)
    except (ValueError, ImportError, OSError) as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"prism: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"prism: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
