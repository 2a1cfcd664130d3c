"""``prism explain``: what a prediction is made of, and what the model knows of its like."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism_plugin.commands.embed import examined
from prism_plugin.commands.options import add_model
from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    explain = commands.add_parser(
        "explain",
        help="explain a prediction: intervals, nearest training crystals, contributions of the elements",
        description="For each structure: prediction with its intervals, novelty, the nearest training crystals, "
        "the share of each element, what is doubtful.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    explain.add_argument("files", nargs="+", type=Path, metavar="FILE", help="structure file, or folder")
    add_model(explain)


def run(arguments: argparse.Namespace) -> None:
    """Print it."""
    from prism_plugin.devices import find_device
    from prism_plugin.pretrained import load

    model = load(arguments.model).to(find_device(arguments.device))
    bad = 0
    for name, frame, graph, doubts, reason in examined(arguments.files, model):
        bad += bool(reason)
        lines = [f"{name}: {reason}"] if reason else [name, *_explained(frame, graph, doubts, model)]
        print("\n".join(lines), end="\n\n")
    if bad:
        raise PrismError(f"structures that could not be predicted: {bad} (see above)")


def _explained(frame: Any, graph: Any, doubts: str, model: Any) -> Iterator[str]:
    """Lines on one structure."""
    import numpy as np
    import torch

    from prism_plugin.committee import bounded
    from prism_plugin.domain import LEVELS
    from prism_plugin.evaluation import evaluation
    from prism_plugin.graph.crystals import batch_graphs
    from prism_plugin.prediction import formula_and_size

    batch = batch_graphs([graph]).to(model.device)
    with torch.no_grad(), evaluation(model):
        value = float(model(batch)[0])
        shares = model.feature_dict["readout"].double().cpu().numpy()
        features = model.domain_features(batch)
    unit = f" {model.unit}" if model.unit else ""
    formula, size = formula_and_size(frame.atoms)
    yield f"  {formula}, {size} atoms"
    yield f"  {model.target}: {value:.4f}{unit}"
    if model.domain is not None:
        (novelty,) = model.domain.novelty(features)
        name, of_width = bounded([model])
        for level, width in zip(LEVELS, model.domain.half_widths(np.array([novelty]))[0], strict=False):
            low, high = value - width, value + width
            between = f"{low:.4f} to {high:.4f}{unit}"
            if model.domain_of_atoms:
                between = f"{name} at most {width:.2g} {of_width}"
            yield f"    {100 * level:.0f} % of crystals like the validation crystals: {between}"
        far, (own,) = model.domain.far, features
        yield f"  novelty: {novelty:.2f} (95 % of the validation crystals are below 1, 99 % below {far:.2f})"
        if novelty > far:
            far_away = "it is far from all training crystals: trust neither prediction nor interval"
            doubts = "; ".join(filter(None, [doubts, far_away]))
        whose = ""
        if model.domain_of_atoms:
            atom = model.domain.farthest(own)
            own, whose = own[atom], f" (of the farthest atom, {atom}, {frame.atoms.symbols[atom]})"
        near = ", ".join(f"{name} at {distance:.2f}" for name, distance in model.domain.nearest(own[None])[0])
        yield f"    nearest training crystals{whose}: {near}"
    symbols = np.array(frame.atoms.get_chemical_symbols())
    parts = ", ".join(f"{one} {shares[symbols == one].mean():.3f}" for one in dict.fromkeys(symbols.tolist()))
    yield f"  output of an atom, mean of each element: {parts}"
    yield f"  to be looked at: {doubts or 'nothing'}"
