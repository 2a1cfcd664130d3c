"""``prism embed`` and ``prism explain``: how a model sees structures, and why it answers as it does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import add_model
from prism_plugin.errors import PrismError

__all__ = ["Explain", "add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add ``prism embed``."""
    embed = commands.add_parser(
        "embed",
        help="describe structures by what a model makes of them",
        description="Write the features of structures after a model's last layer. OUT gets features.npz (names, "
        "crystals: the mean over the atoms; atoms: of each atom, and of which crystal it is), embed.csv and, if the "
        "model knows its training crystals, map.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    embed.add_argument("files", nargs="+", type=Path, metavar="FILE", help="structure file, or folder")
    embed.add_argument("--out", required=True, type=Path, help="folder")
    add_model(embed)


def run(arguments: argparse.Namespace) -> None:
    """Describe the structures, and draw where they lie."""
    import numpy as np

    from prism_plugin.devices import find_device
    from prism_plugin.files import locked, replaced, write_table
    from prism_plugin.prediction import formula_and_size
    from prism_plugin.pretrained import load

    model = load(arguments.model).to(find_device(arguments.device))
    found = list(_structures(arguments.files, model))
    good = [(name, frame) for name, frame, reason in found if not reason]
    if not good:
        raise PrismError("no structure was described" + "".join(f"; {name}: {reason}" for name, _, reason in found[:3]))
    structures = [frame.atoms for _, frame in good]
    per_atom = [one.float().cpu().numpy() for one in model.descriptors(structures, True, arguments.batch_size)]
    crystals = np.stack([one.mean(axis=0) for one in per_atom])
    domain = model.domain
    columns = [] if domain is None else [domain.along(crystals), domain.novelty(crystals)[:, None]]
    numbers = iter(np.concatenate([*columns, np.zeros((len(good), 0))], axis=1).tolist())
    header = ["name", "formula", "atoms", *([] if domain is None else ["x", "y", "novelty"]), "error"]
    rows = [
        [name, "", "", *[""] * (len(header) - 4), reason]
        if reason
        else [name, *formula_and_size(frame.atoms), *[f"{number:.6g}" for number in next(numbers)], ""]
        for name, frame, reason in found
    ]
    with locked(arguments.out / "embed.csv"):
        with replaced(arguments.out / "features.npz") as aside:
            of = np.repeat(np.arange(len(good)), [len(one) for one in per_atom])
            names = np.array([name for name, _ in good])
            np.savez_compressed(
                aside, names=names, crystals=crystals, atoms=np.concatenate(per_atom), crystal_of_atom=of
            )
        write_table(arguments.out / "embed.csv", [header, *rows])
        if domain is not None:
            from prism_plugin.domain_map import plot_map

            plot_map(domain, crystals, arguments.out / "map.png")
    print(f"{len(good)} described, {len(found) - len(good)} failed; features, table, picture: {arguments.out}")


class Explain:
    """``prism explain``."""

    @staticmethod
    def add_parser(commands: Any) -> None:
        """Add the command."""
        explain = commands.add_parser(
            "explain",
            help="say what a prediction is made of, and what the model knows of its like",
            description="For each structure: prediction with its intervals, novelty, the nearest training crystals, "
            "the share of each element, what is doubtful.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        explain.add_argument("files", nargs="+", type=Path, metavar="FILE", help="structure file, or folder")
        add_model(explain)

    @staticmethod
    def run(arguments: argparse.Namespace) -> None:
        """Print it."""
        from prism_plugin.devices import find_device
        from prism_plugin.pretrained import load

        model = load(arguments.model).to(find_device(arguments.device))
        bad = 0
        for name, frame, reason in _structures(arguments.files, model):
            bad += bool(reason)
            print(f"{name}: {reason}" if reason else "\n".join([name, *_explained(frame, model)]), end="\n\n")
        if bad:
            raise PrismError(f"{bad} structures could not be predicted: see above")


def _structures(files: list[Path], model: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield name, frame and, in place of a frame, why a structure cannot be computed."""
    from prism_plugin.data.sources import frames_of, iterate_structures
    from prism_plugin.prediction import examine, reason_in_row

    for found in iterate_structures(files):
        for name, frame in frames_of(*found):
            try:
                if isinstance(frame, PrismError):
                    raise frame
                examine(frame, [model])
            except (ValueError, OSError, MemoryError) as error:
                yield name, None, reason_in_row(name, error)
            else:
                yield name, frame, ""


def _explained(frame: Any, model: Any) -> Iterator[str]:
    """Lines on one structure."""
    import numpy as np
    import torch

    from prism_plugin.domain import LEVELS
    from prism_plugin.evaluation import evaluation
    from prism_plugin.graph.build import build_graph
    from prism_plugin.graph.crystals import batch_graphs
    from prism_plugin.prediction import examine, formula_and_size

    graphs, doubts = examine(frame, [model])
    batch = batch_graphs([graphs.get(model.cutoffs) or build_graph(frame.atoms, *model.cutoffs)]).to(model.device)
    with torch.no_grad(), evaluation(model):
        value = float(model(batch)[0])
        shares = model.feature_dict["readout"].double().cpu().numpy()
        features = model.last_descriptors(batch).double().cpu().numpy()
    unit = f" {model.unit}" if model.unit else ""
    formula, size = formula_and_size(frame.atoms)
    yield f"  {formula}, {size} atoms"
    yield f"  {model.target}: {value:.4f}{unit}"
    if model.domain is not None:
        (novelty,) = model.domain.novelty(features)
        for level, width in zip(LEVELS, model.domain.half_widths(np.array([novelty]))[0], strict=False):
            low, high = value - width, value + width
            yield f"    {100 * level:.0f} % of crystals like the validation crystals: {low:.4f} to {high:.4f}{unit}"
        far = model.domain.far
        yield f"  novelty: {novelty:.2f} (95 % of the validation crystals are below 1, 99 % below {far:.2f})"
        if novelty > far:
            doubts = "; ".join(filter(None, [doubts, "it is far from all training crystals: trust neither"]))
        near = ", ".join(f"{name} at {distance:.2f}" for name, distance in model.domain.nearest(features)[0])
        yield f"    nearest training crystals: {near}"
    symbols = np.array(frame.atoms.get_chemical_symbols())
    parts = ", ".join(f"{one} {shares[symbols == one].mean():.3f}" for one in dict.fromkeys(symbols.tolist()))
    yield f"  output of an atom, mean of each element: {parts}"
    yield f"  to be looked at: {doubts or 'nothing'}"
