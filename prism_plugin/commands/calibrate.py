"""``prism calibrate``: measure a model's errors on crystals of one's own, for intervals that hold there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.commands.evaluate import add_chosen, chosen_parts
from prism_plugin.commands.options import add_model
from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    calibrate = commands.add_parser(
        "calibrate",
        help="measure a model's errors on your crystals, for intervals that hold there",
        description="Write a copy of a model whose intervals and novelty are measured on crystals that it was not "
        "trained on, at least 20, such as those that you will predict. Its predictions stay the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_chosen(calibrate)
    calibrate.add_argument("--out", required=True, type=Path, help="folder of the calibrated model")
    add_model(calibrate)


def run(arguments: argparse.Namespace) -> None:
    """Calibrate, and say what the intervals were worth before."""
    from prism_plugin.committee import bounded
    from prism_plugin.data import make_datasets
    from prism_plugin.devices import find_device
    from prism_plugin.domain import LEVELS
    from prism_plugin.pretrained import load, saved_metadata
    from prism_plugin.training.report import check_crystals_of, features_and_errors

    model = load(arguments.model).to(find_device(arguments.device))
    had = model.domain
    if had is None or not had.factors:
        raise PrismError(
            "this model does not know its training crystals, or its answers have no intervals: prism train measures "
            "them, of a number with at least 20 validation crystals"
        )
    if arguments.out.exists():
        raise PrismError(f"{str(arguments.out)!r} exists; give another --out")
    parts = chosen_parts(arguments, model)
    ((name, records),) = parts.items()
    check_crystals_of(model, records)
    dataset = make_datasets(parts, *model.cutoffs, True, None, model.has_waves)[name]
    features, errors = features_and_errors(model, dataset, arguments.batch_size, "describe")
    model.domain = had.calibrated(features, errors)
    model.cpu().save(arguments.out, metadata=dict(saved_metadata(arguments.model)))
    name, unit = bounded([model])
    unit = f" {unit}" if unit else ""
    what = f"mean of {name}" if model.domain_of_atoms else "MAE"
    print(f"{len(errors)} crystals, {what} {abs(errors).mean():.4g}{unit}")
    print(f"{'interval':10}{'coverage before':>18}{'half width before':>20}{'now':>12}")
    before, now = (domain.half_widths(domain.novelty(features)) for domain in (had, model.domain))
    for column, level in enumerate(LEVELS):
        held = (abs(errors) <= before[:, column]).mean()
        print(f"{level:<10.0%}{held:>18.1%}{before[:, column].mean():>20.4g}{now[:, column].mean():>12.4g}")
    print(f"model: {arguments.out}")
