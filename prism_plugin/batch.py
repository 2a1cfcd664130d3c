"""Crystal graphs -> one batch, and back.

A :class:`CrystalBatch` is what the model computes on: the tensors of several crystals one after the other, with the
number of each atom's crystal. Moving it moves tensors only; no graph library is involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from prism_plugin.graph import CrystalGraph
from prism_plugin.lattice import ImageTable, image_table, times_matrix

__all__ = ["CrystalBatch", "batch_graphs"]


@dataclass(frozen=True)
class CrystalBatch:
    """Several crystals in one set of tensors.

    Attributes:
        atomic_numbers: shape ``(atoms,)``.
        positions: Å, shape ``(atoms, 3)``.
        lattice: rows in Å, shape ``(crystals, 3, 3)``.
        pbc: shape ``(crystals, 3)``.
        atom_crystal: crystal of each atom, ascending, shape ``(atoms,)``.
        edge_index: receiver and sender of the atomistic edges, counted over the batch, shape ``(2, edges)``.
        edge_image: shape ``(edges, 3)``.
        cell_crystal: crystal of each cell edge, shape ``(cell edges,)``.
        cell_image: shape ``(cell edges, 3)``.
        reduction: shape ``(crystals, 3, 3)``.
        cutoff: Å. cell_cutoff: Å.
    """

    atomic_numbers: Tensor
    positions: Tensor
    lattice: Tensor
    pbc: Tensor
    atom_crystal: Tensor
    edge_index: Tensor
    edge_image: Tensor
    cell_crystal: Tensor
    cell_image: Tensor
    reduction: Tensor
    cutoff: float
    cell_cutoff: float

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.lattice)

    @property
    def atoms_per_crystal(self) -> Tensor:
        """Number of atoms of each crystal, shape ``(crystals,)``."""
        return torch.bincount(self.atom_crystal, minlength=len(self))

    @property
    def edge_vector(self) -> Tensor:
        """Vectors receiver -> sender of the atomistic edges, Å, shape ``(edges, 3)`` (PRISM Eq. 6)."""
        receiver, sender = self.edge_index
        crystal = self.atom_crystal.index_select(0, receiver)
        shift = times_matrix(self.edge_image.to(self.lattice.dtype), self.lattice, crystal)
        return self.positions.index_select(0, sender) + shift - self.positions.index_select(0, receiver)

    @property
    def cell_vector(self) -> Tensor:
        """Vectors of the cell edges, Å, shape ``(cell edges, 3)``."""
        return times_matrix(self.cell_image.to(self.lattice.dtype), self.lattice, self.cell_crystal)

    @cached_property
    def images(self) -> ImageTable:
        """What the search for minimum images needs, the same in every layer."""
        return image_table(self.lattice, self.reduction)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CrystalBatch:
        """Move all tensors to a device; positions and lattice also to a floating dtype."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        moved["positions"] = moved["positions"].to(dtype)
        moved["lattice"] = moved["lattice"].to(dtype)
        return replace(self, **moved)

    def unbatch(self) -> list[CrystalGraph]:
        """Give the crystals back, one graph each."""
        atoms = self.atoms_per_crystal
        starts = torch.cumsum(atoms, 0) - atoms
        edge_crystal = self.atom_crystal[self.edge_index[0]]
        graphs = []
        for crystal in range(len(self)):
            of_atoms = self.atom_crystal == crystal
            of_edges = edge_crystal == crystal
            graphs.append(
                CrystalGraph(
                    atomic_numbers=self.atomic_numbers[of_atoms],
                    positions=self.positions[of_atoms],
                    lattice=self.lattice[crystal],
                    pbc=self.pbc[crystal],
                    edge_index=(self.edge_index[:, of_edges] - starts[crystal]).to(torch.int32),
                    edge_image=self.edge_image[of_edges],
                    cell_image=self.cell_image[self.cell_crystal == crystal],
                    reduction=self.reduction[crystal],
                    cutoff=self.cutoff,
                    cell_cutoff=self.cell_cutoff,
                )
            )
        return graphs


def batch_graphs(graphs: Sequence[CrystalGraph]) -> CrystalBatch:
    """Join crystal graphs into one batch.

    Args:
        graphs: at least one graph; all must have the same cutoffs.

    Raises:
        TypeError: if there is something else among them.
        ValueError: if the list is empty or the cutoffs differ.
    """
    graphs = list(graphs)
    foreign = [type(graph).__name__ for graph in graphs if not isinstance(graph, CrystalGraph)]
    if foreign:
        raise TypeError(f"can only batch CrystalGraphs, got {foreign[0]}; make them with build_graph(structure)")
    if not graphs:
        raise ValueError("cannot batch an empty list of graphs")
    cutoffs = {(graph.cutoff, graph.cell_cutoff) for graph in graphs}
    if len(cutoffs) > 1:
        raise ValueError(f"the graphs were built with different cutoffs (atomistic, cell): {sorted(cutoffs)}")
    atoms = torch.tensor([len(graph) for graph in graphs])
    edges = torch.tensor([graph.edge_index.shape[1] for graph in graphs])
    cells = torch.tensor([len(graph.cell_image) for graph in graphs])
    crystals = torch.arange(len(graphs))
    starts = torch.cumsum(atoms, 0) - atoms
    return CrystalBatch(
        atomic_numbers=torch.cat([graph.atomic_numbers for graph in graphs]),
        positions=torch.cat([graph.positions for graph in graphs]),
        lattice=torch.stack([graph.lattice for graph in graphs]),
        pbc=torch.stack([graph.pbc for graph in graphs]),
        atom_crystal=torch.repeat_interleave(crystals, atoms),
        edge_index=torch.cat([graph.edge_index for graph in graphs], dim=1).long()
        + torch.repeat_interleave(starts, edges),
        edge_image=torch.cat([graph.edge_image for graph in graphs]),
        cell_crystal=torch.repeat_interleave(crystals, cells),
        cell_image=torch.cat([graph.cell_image for graph in graphs]),
        reduction=torch.stack([graph.reduction for graph in graphs]),
        cutoff=graphs[0].cutoff,
        cell_cutoff=graphs[0].cell_cutoff,
    )
