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
    add(
        "--optimizer",
        default="adamw-schedulefree",
        help="adamw-schedulefree, adam-onecycle, elra, muon, rod-flow or sgd",
    )
    add("--lr", type=float, help="learning rate; the optimizer's own if not given; elra adapts it by itself")
    add(
        "--option",
        type=_named_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the optimizer, for example --option weight_decay=0.01 with adamw-schedulefree, --option "
        "accumulate=2 with elra, like=adam with rod-flow (docs/rod_flow.md); may be repeated",
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

    _add_rodflow(commands)
    demo = commands.add_parser(
        "demo",
        help="train, save, reload and use a model on alloys computed here by ASE's EMT; minutes, no download",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of the demo's runs")
    demo.add_argument("--crystals", type=int, default=1000, help="size of the data set")
    demo.add_argument("--epochs", type=int, default=40, help="passes over the training crystals")
    return parser


def _add_rodflow(commands: Any) -> None:
    rodflow = commands.add_parser(
        "rodflow",
        help="run rod flow and stable flow beside an optimizer on small networks, and draw how they follow it",
        description="Track an optimizer at the edge of stability. The folder gets a table (CSV) and a summary (JSON) "
        "of every network and tracking.png: loss, effective sharpness with its threshold, distance of both flows. "
        "The learning rate is that of the EMA convention, in which momentum is a mean of gradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = rodflow.add_argument
    add(
        "--optimizer",
        default="adam",
        help="gd, heavy-ball, nesterov, scalar-rmsprop, rmsprop, scalar-adam, adam, scalar-nadam or nadam",
    )
    add("--network", action="append", help="toy, mlp, cnn, vit or prism; may be repeated; mlp, cnn, vit if not given")
    add("--out", required=True, type=Path, help="folder; networks that it has already are not computed again")
    add("--steps", type=int, default=400, help="optimizer steps that are tracked, after 10 of warm-up")
    add("--lr", type=float, help="learning rate; that of a table, which meets the edge, if not given")
    add("--beta1", type=float, help="of the momentum; that of the table if not given")
    add("--beta2", type=float, help="of the second moment; that of the table if not given")
    add("--form", default="signed", help="of the rod: signed, or outer, the papers' covariance of rank one")
    add("--substeps", type=int, default=2, help="Euler steps of the flows per optimizer step")
    add("--no-floor", action="store_true", help="no rounding noise on the rod, so that a closed one never opens")
    add("--sharpness-every", type=int, default=10, help="steps between two computations of the sharpness; 0 is never")
    add("--dtype", default="float64", help="float64 or float32")
    add("--seed", type=int, default=0, help="of weights and noise")
    add("--data", help="crystals for --network prism (.jsonl or .extxyz); alloys computed by EMT if not given")
    add("--target", help="key of the number to predict in --data")
    add("--crystals", type=int, default=32, help="how many of --data, from the first on")


def _rodflow(arguments: argparse.Namespace) -> None:
    from prism_plugin.data import read_records
    from prism_plugin.tracking import TrackingSettings, track
    from prism_plugin.tracking.run import format_summary

    settings = TrackingSettings(
        optimizer=arguments.optimizer,
        networks=tuple(arguments.network or ("mlp", "cnn", "vit")),
        steps=arguments.steps,
        lr=arguments.lr,
        beta1=arguments.beta1,
        beta2=arguments.beta2,
        form=arguments.form,
        substeps=arguments.substeps,
        floor=not arguments.no_floor,
        sharpness_every=arguments.sharpness_every,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    if arguments.crystals < 2:
        raise ValueError(f"--crystals must be at least 2, got {arguments.crystals}")
    if arguments.target is not None and arguments.data is None:
        raise ValueError("--target names a number in --data: give that, too")
    records = None
    if arguments.data is not None:
        if arguments.target is None:
            raise ValueError("--data needs --target, the key of the number to predict")
        records = read_records(arguments.data, arguments.target)[: arguments.crystals]
    print(format_summary(track(settings, arguments.out, records)))
    print(f"picture: {arguments.out / 'tracking.png'}; tables: {arguments.out}")


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
        {"train": _train, "rodflow": _rodflow, "demo": _demo}[arguments.command](arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"prism: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"prism: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
