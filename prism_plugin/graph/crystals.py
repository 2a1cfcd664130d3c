"""Crystal graphs -> one batch, and back.

A :class:`CrystalBatch` is what the model computes on: the tensors of several crystals one after the other, with the
number of each atom's crystal. Moving it moves tensors only; no graph library is involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_plugin.graph.lattice import times_matrix
from prism_plugin.graph.reciprocal import Waves, make_waves
from prism_plugin.graph.reverse import reverse_edges
from prism_plugin.nn.minimum_image import ImageTable, image_table

if TYPE_CHECKING:
    import dgl

__all__ = ["CrystalBatch", "CrystalGraph", "batch_graphs"]


@dataclass(frozen=True)
class CrystalGraph:
    """One crystal (or molecule) as a graph of atoms and a superatom.

    Attributes:
        atomic_numbers: shape ``(atoms,)``, int64.
        positions: Cartesian, Å, shape ``(atoms, 3)``, float64.
        lattice: lattice vectors as rows, Å, shape ``(3, 3)``, float64, of full rank (directions that are not periodic
            are filled with unit vectors).
        pbc: periodic flags, shape ``(3,)``.
        edge_index: atomistic edges, shape ``(2, edges)``: receiver, sender; receivers ascending.
        edge_image: image of the sender in lattice coefficients, shape ``(edges, 3)``.
        cell_image: cell edges as lattice coefficients, shape ``(cell edges, 3)``.
        reduction: integer matrix to the Minkowski-reduced basis, shape ``(3, 3)``.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
    """

    atomic_numbers: Tensor
    positions: Tensor
    lattice: Tensor
    pbc: Tensor
    edge_index: Tensor
    edge_image: Tensor
    cell_image: Tensor
    reduction: Tensor
    cutoff: float
    cell_cutoff: float

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)

    @property
    def frac_coords(self) -> Tensor:
        """Fractional coordinates, shape ``(atoms, 3)``."""
        return self.positions @ torch.linalg.inv(self.lattice)

    @property
    def edge_vector(self) -> Tensor:
        """Vectors receiver -> sender of the atomistic edges, Å, shape ``(edges, 3)`` (PRISM Eq. 6)."""
        receiver, sender = self.edge_index.long()
        return self.positions[sender] + self.edge_image.to(self.lattice.dtype) @ self.lattice - self.positions[receiver]

    @property
    def edge_distance(self) -> Tensor:
        """Lengths of the atomistic edges, Å, shape ``(edges,)`` (PRISM Eq. 5)."""
        return self.edge_vector.norm(dim=1)

    @property
    def cell_vector(self) -> Tensor:
        """Vectors of the cell edges, Å, shape ``(cell edges, 3)``."""
        return self.cell_image.to(self.lattice.dtype) @ self.lattice

    @property
    def cell_distance(self) -> Tensor:
        """Lengths of the cell edges, Å, shape ``(cell edges,)``."""
        return self.cell_vector.norm(dim=1)

    def to_dgl(self) -> dgl.DGLHeteroGraph:
        """Turn into a DGL heterograph; see :mod:`prism_plugin.graph.dgl_write`.

        Raises:
            ImportError: if DGL is not installed.
        """
        from prism_plugin.graph.dgl_write import to_dgl

        return to_dgl(self)

    @staticmethod
    def from_dgl(graph: dgl.DGLHeteroGraph) -> CrystalGraph:
        """Read an unbatched DGL heterograph made by :meth:`to_dgl`.

        Raises:
            ValueError: if the graph is no PRISM heterograph, or a batch of several.
        """
        from prism_plugin.graph.dgl_read import from_dgl

        return from_dgl(graph)


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

    @cached_property
    def waves(self) -> Waves:
        """Plane waves for the cell expert in reciprocal space; counted on the host, the same in every layer."""
        return make_waves(self.lattice, self.pbc, self.atom_crystal).to(self.lattice.device)

    @cached_property
    def reverse(self) -> Tensor:
        """The edge from the other end of each atomistic edge, ``edges`` where there is none, shape ``(edges,)``."""
        return reverse_edges(self.edge_index, self.edge_image, len(self.atomic_numbers))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CrystalBatch:
        """Move all tensors to a device; positions and lattice also to a floating dtype."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        moved["positions"] = moved["positions"].to(dtype)
        moved["lattice"] = moved["lattice"].to(dtype)
        batch = replace(self, **moved)
        if "waves" in self.__dict__:  # counted before, perhaps by a worker process
            batch.__dict__["waves"] = self.waves.to(device)
        if "reverse" in self.__dict__:
            batch.__dict__["reverse"] = self.reverse.to(device)
        return batch

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
