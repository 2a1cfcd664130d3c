"""The ``prism`` command.

Every error of the user's making ends in one line that says what is wrong and what to do, and exit status 2; a fault of
the program with its traceback and exit status 70. ``--traceback`` shows where an error was raised.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from prism_plugin import __version__
from prism_plugin.commands import (
    calibrate,
    demo,
    download,
    embed,
    evaluate,
    explain,
    info,
    label,
    models,
    predict,
    presets,
    rodflow,
    scaling,
    simulate,
    train,
    upload,
)
from prism_plugin.errors import PrismError
from prism_plugin.imports import uncollected

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, Any] = {
    "train": train,
    "presets": presets,
    "predict": predict,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "embed": embed,
    "explain": explain,
    "scaling": scaling,
    "info": info,
    "models": models,
    "upload": upload,
    "download": download,
    "rodflow": rodflow,
    "label": label,
    **simulate.VERBS,
    "demo": demo,
}


_WITHOUT_MODELS = ("presets", "label")  # what these import takes no seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prism", description="PRISM: train and use graph networks for crystals.")
    parser.add_argument("--version", action="version", version=f"prism-plugin {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add_parser(commands)
    return parser


def _share_cores() -> None:
    """Let idle OpenMP threads sleep sooner, unless the environment says how they wait; before torch is imported.

    By default they spin for milliseconds; where another program has a core, the thread that all wait for gets none.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _import_models() -> None:
    """Import what nearly all commands need, in a process of our own.

    What imports make stays until the end: frozen, the collector does not look through it again, not even when the
    process ends, which would take a second.
    """
    with uncollected():
        import prism_plugin.pretrained  # noqa: F401
    gc.freeze()


def _show_warnings_plainly() -> None:
    """Print what is warned of without the line of code, which is always the one that calls :func:`main`."""
    usual = warnings.formatwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **where: Any) -> str:
        return f"prism: warning: {message}\n" if category is UserWarning else usual(message, category, *place, **where)

    warnings.formatwarning = shown


def _is_read() -> bool:
    """Whether somebody reads the output; else, as of ``| head``, it goes nowhere from now on."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at the end
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Å ends no work
    arguments = _parser().parse_args(argv)
    if argv is None:
        _share_cores()
        _show_warnings_plainly()
    try:
        if argv is None and arguments.command not in _WITHOUT_MODELS:
            _import_models()
        COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _is_read():
            return 141
        print(f"prism: error: {error}", file=sys.stderr)
        return 2
    except (PrismError, ImportError, OSError) as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"prism: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001  # whatever it is, it is ours: say so, without a page of code
        traceback.print_exc()
        print(
            f"prism: internal error: {type(error).__name__}: {error}\nThis is a fault of the program or of a library "
            "below it: please report it with the lines above",
            file=sys.stderr,
        )
        return 70
    except KeyboardInterrupt as error:
        print(f"prism: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "status", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
