"""``prism rodflow``: rod flow and stable flow beside an optimizer on small networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
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


def run(arguments: argparse.Namespace) -> None:
    """Track the optimizer and print a summary."""
    from prism_plugin.data import read_records
    from prism_plugin.edge_of_stability import TrackingSettings, track
    from prism_plugin.edge_of_stability.tracker import format_summary

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
        raise PrismError(f"--crystals must be at least 2, got {arguments.crystals}")
    if arguments.target is not None and arguments.data is None:
        raise PrismError("--target names a number in --data: give that, too")
    records = None
    if arguments.data is not None:
        if arguments.target is None:
            raise PrismError("--data needs --target, the key of the number to predict")
        records = read_records(arguments.data, arguments.target)[: arguments.crystals]
    print(format_summary(track(settings, arguments.out, records)))
    print(f"picture: {arguments.out / 'tracking.png'}; tables: {arguments.out}")
