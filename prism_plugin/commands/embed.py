"""``prism embed``: how a model sees structures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain, starmap
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import add_model
from prism_plugin.errors import PrismError

__all__ = ["add_parser", "examined", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    embed = commands.add_parser(
        "embed",
        help="write the features that a model computes for structures, with a map",
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
    from prism_plugin.tables import check_own_output

    check_own_output(arguments.out, "embed.csv", ("name", "formula", "atoms"), ("features.npz", "map.png"))
    model = load(arguments.model).to(find_device(arguments.device))
    found = [(name, frame, reason) for name, frame, _, _, reason in examined(arguments.files, model)]
    good = [(name, frame) for name, frame, reason in found if not reason]
    if not good:
        raise PrismError("no structure was described" + "".join(f"; {name}: {reason}" for name, _, reason in found[:3]))
    structures = [frame.atoms for _, frame in good]
    per_atom = [one.float().cpu().numpy() for one in model.descriptors(structures, True, arguments.batch_size)]
    crystals = np.stack([one.mean(axis=0) for one in per_atom])
    domain = model.domain
    shown = crystals  # on the map; of a potential, which compares atoms, the farthest of each
    if domain is not None and model.domain_of_atoms:
        shown = np.stack([one[domain.farthest(one)] for one in per_atom])
    columns = [] if domain is None else [domain.along(shown)[:, :2], domain.novelty(shown)[:, None]]
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

            plot_map(domain, shown, arguments.out / "map.png")
    print(f"{len(good)} described, {len(found) - len(good)} failed; features, table, picture: {arguments.out}")


def examined(files: list[Path], model: Any) -> Iterator[tuple[str, Any, Any, str, str]]:
    """Yield name, frame, graph, doubts, and in place of these why a structure cannot be computed."""
    from prism_plugin.data.sources import frames_of, iterate_structures
    from prism_plugin.prediction import examine, reason_in_row

    for name, frame in chain.from_iterable(starmap(frames_of, iterate_structures(files))):
        try:
            if isinstance(frame, PrismError):
                raise frame
            graphs, doubts = examine(frame, [model])
        except (ValueError, OSError, MemoryError) as error:
            yield name, None, None, "", reason_in_row(name, error)
        else:
            yield name, frame, graphs[model.cutoffs], doubts, ""
