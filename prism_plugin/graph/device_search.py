"""Neighbor search of many structures at once, where the model computes: by nvalchemi-toolkit-ops.

The search on the CPU (:mod:`prism_plugin.graph.neighbors`) takes one structure after the other, and a GPU waits for it.
Here positions go to the device once and the edges are made there; checks and lattices stay on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prism_plugin.devices import send
from prism_plugin.errors import PrismError
from prism_plugin.graph.batching import crystal_of_rows
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.lattice import folded, lattice_translations, reduced_basis, times_matrix
from prism_plugin.graph.structure import TOO_NEAR_AT_MOST, Structure, check_distances

try:
    import warp

    warp.config.quiet = True  # it would tell of its devices
    from nvalchemiops.neighbors.neighbor_utils import NeighborOverflowError
    from nvalchemiops.torch.neighbors import neighbor_list
except ImportError as error:
    raise ImportError(
        "the neighbor search on a device needs nvalchemi-toolkit-ops: pip install 'prism-plugin[device-search]'"
    ) from error

__all__ = ["build_graphs_on_device", "find_neighbors_on_device"]


_FEWEST = 64  # neighbors of an atom that there is room for


def build_graphs_on_device(
    structures: Sequence[Structure], cutoff: float, cell_cutoff: float, device: torch.device, called: str = "structure"
) -> CrystalBatch:
    """Build the graphs of several structures, with one neighbor search for all.

    Args:
        structures: checked structures, at least one.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        device: where the tensors of the batch are to be.
        called: how an error calls one of them.

    Returns:
        What :func:`~prism_plugin.batch_graphs` makes of the graphs of :func:`~prism_plugin.build_graph`, but for the
        order of the edges of one receiver.

    Raises:
        ValueError: if two atoms of a structure lie on top of each other; says of which.
    """
    lattices = np.stack([one.lattice for one in structures])
    pbc = np.stack([one.pbc for one in structures])
    positions = [folded(one.positions, one.lattice, one.pbc) for one in structures]
    reductions = np.stack([reduced_basis(one.lattice, one.pbc) for one in structures])
    cell_images = [lattice_translations(one.lattice, cell_cutoff, one.pbc) for one in structures]
    atoms = np.array([len(one) for one in structures])
    numbers = np.concatenate([one.numbers for one in structures])
    on_device = {
        "atomic_numbers": send(numbers, device),
        "positions": send(np.concatenate(positions), device),
        "lattice": send(lattices, device),
        "pbc": send(pbc, device),
        "reduction": send(reductions, device),
    }
    crystal = crystal_of_rows(atoms, device)
    index, image, distance = find_neighbors_on_device(
        on_device["positions"], on_device["lattice"], on_device["pbc"], on_device["reduction"], crystal, cutoff
    )
    crystal_of_edge = crystal.index_select(0, index[0])
    edges = torch.bincount(crystal_of_edge, minlength=len(structures)).cpu().numpy()
    _check(structures, index, distance, edges, called)
    return CrystalBatch(
        **on_device,
        cell=send(np.stack([one.cell for one in structures]), device),
        edge_index=index,
        edge_image=image.to(torch.int32),
        cell_image=send(np.concatenate(cell_images).astype(np.int32), device),
        sizes=np.stack([atoms, edges, [len(one) for one in cell_images]], axis=1).astype(np.int64),
        elements=tuple(np.unique(numbers).tolist()),
        cutoff=float(cutoff),
        cell_cutoff=float(cell_cutoff),
    )


def find_neighbors_on_device(
    positions: Tensor, lattice: Tensor, pbc: Tensor, reduction: Tensor, crystal: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Find every pair of atoms of one crystal, periodic images included, with 0 < distance <= cutoff.

    Args:
        positions: Cartesian, Å, float64, shape ``(atoms, 3)``.
        lattice: rows in Å, of full rank, float64, shape ``(crystals, 3, 3)``.
        pbc: periodic flags, shape ``(crystals, 3)``.
        reduction: integer matrices to the reduced bases, with zero rows along what is not periodic, shape
            ``(crystals, 3, 3)``.
        crystal: of each atom, ascending, shape ``(atoms,)``.
        cutoff: radius in Å.

    Returns:
        Receiver and sender, shape ``(2, edges)``, images of the senders, shape ``(edges, 3)``, both int64 and in
        ascending order of receiver, sender and image, and the distances, Å, shape ``(edges,)``.
    """
    reduced = torch.where(pbc.unsqueeze(2), reduction.to(lattice.dtype) @ lattice, lattice)
    most = _FEWEST
    while True:
        try:
            pairs, _, shifts = neighbor_list(
                positions.contiguous(),
                cutoff * (1 + 1e-12),  # it leaves out what is exactly that far
                cell=reduced.contiguous(),
                pbc=pbc.contiguous(),
                batch_idx=crystal.to(torch.int32),
                return_neighbor_list=True,
                max_neighbors=most,
            )
            break
        except NeighborOverflowError:  # what it needs is known only then
            most *= 4
    index = pairs.to(torch.int64)
    of_edge = crystal.index_select(0, index[0])
    image = (shifts.to(torch.int64).unsqueeze(2) * reduction.index_select(0, of_edge)).sum(dim=1)
    vector = positions.index_select(0, index[1]) - positions.index_select(0, index[0])
    distance = (vector + times_matrix(image.to(lattice.dtype), lattice, of_edge)).norm(dim=1)
    order = _order(index, image)
    kept = order[distance.index_select(0, order) <= cutoff]
    return index[:, kept], image[kept], distance[kept]


def _order(index: Tensor, image: Tensor) -> Tensor:
    """Order by receiver, sender and image: on a GPU the search finds them in any."""
    order = torch.arange(index.shape[1], device=index.device)
    for key in (image[:, 2], image[:, 1], image[:, 0], index[1], index[0]):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _check(structures: Sequence[Structure], index: Tensor, distance: Tensor, edges: np.ndarray, called: str) -> None:
    """Raise ValueError if two atoms lie on top of each other; only pairs that may do come to the host."""
    near = (distance <= TOO_NEAR_AT_MOST).nonzero().squeeze(1)
    pairs, lengths = index[:, near].cpu().numpy(), distance[near].cpu().numpy()
    of_structure = np.searchsorted(np.cumsum(edges), near.cpu().numpy(), side="right")
    starts = np.cumsum([0, *map(len, structures)])
    for number in np.unique(of_structure):
        mine = of_structure == number
        try:
            check_distances(structures[number].numbers, pairs[:, mine] - starts[number], lengths[mine])
        except PrismError as error:
            raise PrismError(f"{called} {number}: {error}") from error
