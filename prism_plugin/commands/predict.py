"""``prism predict``: predict structures of files and write a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import add_model
from prism_plugin.defaults import DEFAULT_MODEL, DEFAULT_POTENTIAL
from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    predict = commands.add_parser(
        "predict",
        help="predict structures of files and write a table",
        description="Predict structures: CIF, POSCAR, whatever ASE reads; .extxyz, .traj, .db, .jsonl frame by frame; "
        "folders of these (not their subfolders). Rows are written as they come: the same command goes on after an "
        "interruption. A bad structure is a row with a reason.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = predict.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="structure file, or folder")
    add("--out", required=True, type=Path, help="the table, CSV; a folder with --forces")
    add_model(predict, several=True)
    add(
        "--forces",
        action="store_true",
        help="of a potential: energies, forces and stresses; OUT is a folder and gets predict.extxyz and predict.csv",
    )
    add("--devices", type=int, default=1, help="processes, each with a GPU of its own with --device cuda")


def run(arguments: argparse.Namespace) -> None:
    """Predict, and say how many were predicted."""
    if arguments.forces:
        counts, table = _predict_forces(arguments)
    else:
        from prism_plugin.prediction import predict_files

        given = {name: getattr(arguments, name) for name in ("out", "device", "devices", "batch_size")}
        counts = predict_files(arguments.files, getattr(arguments, "model", DEFAULT_MODEL), **given)
        table = arguments.out
    how = " (column error; delete such rows to try again)" if counts["failed"] else ""
    print(
        f"{counts['predicted']} predicted, {counts['kept']} were there already, {counts['failed']} failed{how}\n"
        f"table: {table}"
    )
    if not counts["predicted"] + counts["kept"]:
        raise PrismError(f"no structure was predicted: {'see the table' if how else 'there is none in what was given'}")


def _predict_forces(arguments: argparse.Namespace) -> tuple[dict[str, int], Path]:
    from prism_plugin.simulation.relaxation import potential_calculator
    from prism_plugin.simulation.single_points import NAME, predict_forces

    if arguments.devices != 1:
        raise PrismError("--forces works in one process: leave --devices out")
    calculator = potential_calculator(getattr(arguments, "model", DEFAULT_POTENTIAL), arguments.device)
    counts = predict_forces(arguments.files, calculator, arguments.out)
    return {"predicted": counts.pop("done"), **counts}, arguments.out / f"{NAME}.csv"
