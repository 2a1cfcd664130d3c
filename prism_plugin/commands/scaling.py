"""``prism scaling``: count the edges of each expert against the number of atoms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import add_model
from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    scaling = commands.add_parser(
        "scaling",
        help="count the edges of each expert against the number of atoms",
        description="Count edges (supplement, Fig. 3, Fig. 4, Eq. 17-19). The folder gets edges.csv, fits.json, "
        "edges.png; the fits are printed. Similarity edges depend on the model, layer by layer; the default model "
        "has the atomistic expert only and none of them: give one that has the similarity expert.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = scaling.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="structures, as for prism predict")
    add("--crystals", type=int, default=3000, help="random crystals of them; 0 takes all")
    add("--seed", type=int, default=0, help="of the choice")
    add("--cutoff", type=float, help="radius of the atomistic edges, Å; the model's if not given")
    add("--cell-cutoff", type=float, help="radius of the cell edges, Å; the model's if not given")
    add("--out", required=True, type=Path, help="folder")
    add_model(scaling)


def run(arguments: argparse.Namespace) -> None:
    """Count, fit and draw."""
    import numpy as np

    from prism_plugin.data.sources import read_structures
    from prism_plugin.devices import find_device
    from prism_plugin.edge_counts import count_edges, fit_edges, format_fits, write_scaling
    from prism_plugin.pretrained import load
    from prism_plugin.tables import check_own_output

    if arguments.seed < 0:
        raise PrismError(f"--seed must be at least 0, got {arguments.seed}")
    check_own_output(arguments.out, "edges.csv", ("atoms", "atomistic"), ("fits.json", "edges.png"))
    model = load(arguments.model).to(find_device(arguments.device))
    structures = list(read_structures(arguments.files))
    if 0 < arguments.crystals < len(structures):
        chosen = np.random.default_rng(arguments.seed).choice(len(structures), arguments.crystals, replace=False)
        structures = [structures[index] for index in chosen]
    counts = count_edges(structures, model, cutoff=arguments.cutoff, cell_cutoff=arguments.cell_cutoff)
    write_scaling(counts, arguments.out)
    print(format_fits(fit_edges(counts)))
    print(f"table, fits, picture: {arguments.out}")
