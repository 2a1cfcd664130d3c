"""The ``prism`` command.

Every error of the user's making ends in one line that says what is wrong and what to do, and exit status 2.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism_plugin import __version__

__all__ = ["main"]

NAMED_DATA = ("emt-alloys",)


def _named_value(text: str) -> tuple[str, Any]:
    """Read ``name=value``; the value is a Python literal or else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value, for example dim=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prism", description="PRISM: train and use graph networks for crystals.")
    parser.add_argument("--version", action="version", version=f"prism-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model on crystals with a target",
        description="Train PRISM. The run folder gets the model (for matgl.load_model), log, predictions and plots.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    add("--data", required=True, help=f".jsonl or .extxyz file (also .xz, .gz), or one of: {', '.join(NAMED_DATA)}")
    add("--target", required=True, help="key of the number to predict in the data")
    add("--unit", default="", help="its unit; with eV/atom the model can be an ASE energy")
    add("--out", required=True, type=Path, help="run folder")
    add("--resume", action="store_true", help="go on with the interrupted run in --out")
    add("--init", help="start from the weights of this model: a folder, or the name of a shipped one")
    add("--epochs", type=int, default=500, help="passes over the training crystals")
    add("--batch-size", type=int, default=64, help="crystals per update")
    add("--optimizer", default="adamw-schedulefree", help="adamw-schedulefree, adam-onecycle, elra, muon or sgd")
    add("--lr", type=float, help="learning rate; the optimizer's own if not given; elra adapts it by itself")
    add(
        "--option",
        type=_named_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the optimizer, for example --option weight_decay=0.01 with adamw-schedulefree, --option "
        "accumulate=2 with elra; may be repeated",
    )
    add("--seed", type=int, default=0, help="of weights, order, rotations, and the split where the data name none")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--no-rotate", action="store_true", help="switch the random rotation of training crystals off")
    add("--no-normalize", action="store_true", help="do not put mean and spread of the targets into the model")
    add("--batchnorm-batches", type=int, help="training batches for the BatchNorm statistics; all if not given")
    add("--skip-missing", action="store_true", help="leave out rows without the target")
    add(
        "--set",
        type=_named_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constructor argument of PRISM, for example --set dim=128 --set cutoff=6.0; may be repeated",
    )

    demo = commands.add_parser(
        "demo",
        help="train, save, reload and use a model on alloys computed here by ASE's EMT; minutes, no download",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of the demo's runs")
    demo.add_argument("--crystals", type=int, default=1000, help="size of the data set")
    demo.add_argument("--epochs", type=int, default=40, help="passes over the training crystals")
    return parser


def _train(arguments: argparse.Namespace) -> None:
    from prism_plugin.data import read_records, split_records
    from prism_plugin.data.emt_alloys import emt_alloys
    from prism_plugin.pretrained import load_prism
    from prism_plugin.training import TrainingSettings, train
    from prism_plugin.training.run import format_scores

    settings = TrainingSettings(
        target=arguments.target,
        unit=arguments.unit,
        model=dict(arguments.set),
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        options=dict(arguments.option),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        rotate=not arguments.no_rotate,
        seed=arguments.seed,
        normalize=not arguments.no_normalize,
        batchnorm_batches=arguments.batchnorm_batches,
        device=arguments.device,
    )
    if arguments.resume and not (arguments.out / "checkpoints" / "last.ckpt").exists():
        raise ValueError(f"there is no run to resume in {str(arguments.out)!r}; look at --out, or leave --resume out")
    init = None if arguments.init is None else load_prism(arguments.init)
    if arguments.data in NAMED_DATA:
        records = emt_alloys(seed=arguments.seed)
    else:
        records = read_records(arguments.data, arguments.target, arguments.skip_missing)
    summary = train(settings, split_records(records, arguments.seed), arguments.out, arguments.resume, init)
    print(format_scores(summary))
    print(f"model: {arguments.out / 'model'}  (matgl.load_model)\nplots, log, predictions: {arguments.out}")


def _demo(arguments: argparse.Namespace) -> None:
    from prism_plugin.demo import run_demo

    run_demo(arguments.out, arguments.crystals, arguments.epochs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        {"train": _train, "demo": _demo}[arguments.command](arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"prism: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"prism: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
