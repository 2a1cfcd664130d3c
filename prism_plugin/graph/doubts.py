"""What is doubtful in a structure: not impossible, but nothing that a model can be trusted with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph

__all__ = ["doubts_of"]

# In 5,700 crystals of Materials Project (release 2018.6.1, at most 60 atoms) the shortest distance of a crystal, over
# the sum of the pair's covalent radii, lies between 0.63 (ZrCuF6) and 1.31 (Hg).
_SHORT = 0.6
_LONG = 1.5
# Of 37,384 crystals there 2 in 1,000 have an empty layer of more than 6 Å: single layers, and a surface or two.
_EMPTY = 6.0
_NOBLE = (2, 10, 18, 36, 54, 86)  # nothing holds their atoms at the sum of their radii


def doubts_of(graph: CrystalGraph) -> Mapping[str, str]:
    """Say what is doubtful in a structure.

    Args:
        graph: of :func:`~prism_plugin.build_graph`.

    Returns:
        Sentences by their kind: ``"no neighbor"``, ``"short"``, ``"long"``, ``"empty layer"``.
    """
    crystals = graph.crystals
    numbers = crystals.atomic_numbers.cpu().numpy()
    index = crystals.edge_index.cpu().numpy()
    found: dict[str, str] = {}
    alone = np.bincount(index[0], minlength=len(numbers)) == 0
    if alone.any():
        in_bohr = "; is the lattice in Å?" if alone.all() else ""
        found["no neighbor"] = (
            f"{alone.sum()} of {len(numbers)} atoms without a neighbor within {crystals.cutoff:g} Å: the model does "
            f"not see where they are{in_bohr}"
        )
    if not index.shape[1]:
        return found
    thickness = _empty_layer(crystals)
    if thickness > _EMPTY:
        found["empty layer"] = (
            f"there is an empty layer of {thickness:.1f} Å, as beside a surface, a single layer or a molecule; bulk "
            "crystals have none, and the answer of a property model changes with its thickness (pbc=False across it "
            "leaves it out)"
        )
    radii = covalent_radii[numbers]
    length = graph.edge_distance.detach().cpu().double().numpy()
    ratio = length / (radii[index[0]] + radii[index[1]])
    nearest = int(ratio.argmin())
    pair = "-".join(chemical_symbols[numbers[atom]] for atom in index[:, nearest])
    distance = f"{length[nearest]:.3f} Å"
    if ratio[nearest] < _SHORT:
        found["short"] = f"{pair} are {distance} apart, {ratio[nearest]:.2f} times the sum of their covalent radii"
    if ratio[nearest] > _LONG and not np.isin(numbers, _NOBLE).any():
        found["long"] = (
            f"the nearest atoms, {pair}, are {distance} apart, {ratio[nearest]:.2f} times the sum of their covalent "
            "radii: is the lattice in Å?"
        )
    return found


def _empty_layer(crystals: CrystalBatch) -> float:
    """Thickness (Å) of the thickest layer without the center of an atom, of one crystal.

    It lies between planes that two vectors of the reduced basis span, however the cell is written; only along periodic
    vectors.
    """
    if not crystals.pbc.any():
        return 0.0
    lattice = crystals.lattice[0].detach().cpu().double().numpy()
    periodic = crystals.pbc[0].cpu().numpy()
    reduced = crystals.reduction[0].cpu().double().numpy() @ lattice
    inverse = np.linalg.inv(np.where(periodic[:, None], reduced, lattice))
    fractional = crystals.positions.detach().cpu().double().numpy() @ inverse
    along = np.sort(fractional - np.floor(fractional), axis=0)
    # The columns of the inverse are normal to the planes, and as long as these are near.
    steps = np.diff(along, axis=0, append=along[:1] + 1).max(axis=0) / np.linalg.norm(inverse, axis=0)
    return float(steps[periodic].max())
