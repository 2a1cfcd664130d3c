"""The container of crystals: the tensors of several crystals one after the other.

The model computes on a :class:`CrystalBatch`; one crystal is a batch of one, and :class:`CrystalGraph` is the view of
such a batch as a graph. :class:`~prism_plugin.graph.store.GraphStore` holds the same fields in compact types. Moving a
batch moves tensors only; its sizes and elements stay on the host, so that nothing has to ask a device for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prism_plugin.devices import send
from prism_plugin.errors import PrismError
from prism_plugin.graph.batching import EDGES_PER_BATCH, crystal_of_rows, cut, pairs_of_one_element
from prism_plugin.graph.dgl_format import read_heterograph, write_heterograph
from prism_plugin.graph.lattice import LatticeAxes, reduced_bases, shortest_axes, times_matrix
from prism_plugin.graph.neighbors import nearest_edges
from prism_plugin.graph.reciprocal import Waves, make_waves
from prism_plugin.graph.reverse import NeighborTable, neighbor_table, reverse_edges

if TYPE_CHECKING:
    import dgl

__all__ = ["CrystalBatch", "CrystalGraph", "batch_graphs"]


@dataclass(frozen=True, eq=False)
class CrystalBatch:
    """Several crystals in one set of tensors.

    Attributes:
        atomic_numbers: shape ``(atoms,)``, int64.
        positions: Cartesian, Å, shape ``(atoms, 3)``.
        lattice: lattice vectors as rows, Å, shape ``(crystals, 3, 3)``, of full rank (directions that are not periodic
            are filled with unit vectors).
        cell: the true cells, Å, shape ``(crystals, 3, 3)``, float64; whatever a structure has along directions that
            are not periodic, zeros where it has nothing.
        pbc: periodic flags, shape ``(crystals, 3)``.
        reduction: integer matrices to the Minkowski-reduced bases, shape ``(crystals, 3, 3)``.
        edge_index: receiver and sender of the atomistic edges, counted over the batch, shape ``(2, edges)``; receivers
            ascending.
        edge_image: image of the sender in lattice coefficients, shape ``(edges, 3)``.
        cell_image: cell edges as lattice coefficients, shape ``(cell edges, 3)``.
        sizes: number of atoms, edges and cell edges of each crystal, shape ``(crystals, 3)``, on the host.
        elements: atomic numbers of the elements that are there, ascending, on the host.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
    """

    atomic_numbers: Tensor
    positions: Tensor
    lattice: Tensor
    cell: Tensor
    pbc: Tensor
    reduction: Tensor
    edge_index: Tensor
    edge_image: Tensor
    cell_image: Tensor
    sizes: np.ndarray
    elements: tuple[int, ...]
    cutoff: float
    cell_cutoff: float

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.lattice)

    @property
    def cutoffs(self) -> tuple[float, float]:
        """Radii of atomistic and cell edges, Å."""
        return self.cutoff, self.cell_cutoff

    @cached_property
    def atom_crystal(self) -> Tensor:
        """Crystal of each atom, ascending, shape ``(atoms,)``."""
        return crystal_of_rows(self.sizes[:, 0], self.positions.device)

    @cached_property
    def cell_crystal(self) -> Tensor:
        """Crystal of each cell edge, shape ``(cell edges,)``."""
        return crystal_of_rows(self.sizes[:, 2], self.positions.device)

    @cached_property
    def atoms_per_crystal(self) -> Tensor:
        """Number of atoms of each crystal, shape ``(crystals,)``."""
        return send(self.sizes[:, 0], self.positions.device)

    @property
    def volume(self) -> Tensor:
        """Volumes of the true cells, Å^3, shape ``(crystals,)``; NaN where a cell has fewer than three vectors."""
        volume = torch.linalg.det(self.cell).abs()
        return torch.where(volume > 0, volume, torch.nan)

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
    def waves(self) -> Waves:
        """Plane waves for the cell expert in reciprocal space; counted on the host, the same in every layer."""
        return make_waves(self.lattice, self.pbc, self.sizes[:, 0]).to(self.lattice.device)

    @cached_property
    def axes(self) -> LatticeAxes:
        """The shortest lattice vectors, see :func:`~prism_plugin.graph.lattice.shortest_axes`; found on the host.

        Both empty if a crystal is not periodic in three directions.
        """
        if not bool(self.pbc.all()):
            return LatticeAxes(*[self.lattice.new_zeros(0, 0, 3)] * 2)
        lattice, reduction = (tensor.detach().cpu().numpy() for tensor in (self.lattice, self.reduction))
        found = shortest_axes(lattice.astype(np.float64), reduction)
        return LatticeAxes(*map(torch.from_numpy, found)).to(self.lattice.device)

    def nearest(self, number: int) -> CrystalBatch:
        """Return the crystals with the edges of each atom to its nearest neighbors alone.

        Args:
            number: of neighbors; all that are as far as the last one stay as well (within 0.001 Å).
        """
        kept = nearest_edges(self.edge_index[0], self.edge_vector.norm(dim=1), len(self.atomic_numbers), number)
        index = self.edge_index[:, kept]
        sizes = self.sizes.copy()
        sizes[:, 1] = np.bincount(self.atom_crystal.index_select(0, index[0]).cpu().numpy(), minlength=len(self))
        return replace(self, edge_index=index, edge_image=self.edge_image[kept], sizes=sizes)

    def moved(self, positions: Tensor, lattice: Tensor) -> CrystalBatch:
        """Return the same crystals with other positions and lattices, turned or a little strained: waves stay."""
        return _with_counted(replace(self, positions=positions, lattice=lattice), self)

    @cached_property
    def reverse(self) -> Tensor:
        """The edge from the other end of each atomistic edge, ``edges`` where there is none, shape ``(edges,)``."""
        return reverse_edges(self.edge_index, self.edge_image, len(self.atomic_numbers))

    @cached_property
    def neighbors(self) -> NeighborTable:
        """The atomistic edges in a table by their receivers."""
        return neighbor_table(self.edge_index, len(self.atomic_numbers))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CrystalBatch:
        """Move all tensors to a device; positions and lattice also to a floating dtype."""
        moved: dict[str, Any] = {
            field.name: send(getattr(self, field.name), device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        moved["positions"] = moved["positions"].to(dtype)
        moved["lattice"] = moved["lattice"].to(dtype)
        return _with_counted(replace(self, **moved), self)

    def part(self, start: int, stop: int) -> CrystalBatch:
        """Return the crystals from ``start`` up to ``stop``; the tensors are views where they can be."""
        before, after = (self.sizes[:end].sum(axis=0) for end in (start, stop))
        atoms, edges, cells = (slice(int(first), int(last)) for first, last in zip(before, after, strict=True))
        numbers = self.atomic_numbers[atoms]
        return replace(
            self,
            atomic_numbers=numbers,
            positions=self.positions[atoms],
            lattice=self.lattice[start:stop],
            cell=self.cell[start:stop],
            pbc=self.pbc[start:stop],
            reduction=self.reduction[start:stop],
            edge_index=self.edge_index[:, edges] - int(before[0]),
            edge_image=self.edge_image[edges],
            cell_image=self.cell_image[cells],
            sizes=self.sizes[start:stop],
            elements=tuple(np.unique(numbers.cpu().numpy()).tolist()),
        )

    def split(self, most_crystals: int, most_edges: int = EDGES_PER_BATCH) -> Iterator[CrystalBatch]:
        """Cut into consecutive batches of at most so many crystals and edges; a larger crystal is a batch of its own.

        The edges that count are the atomistic ones, and pairs of atoms of one element, which may be similar.
        """
        costs = self.sizes[:, 1] + pairs_of_one_element(self.atomic_numbers.cpu().numpy(), self.sizes[:, 0])
        for start, stop in cut(costs, most_crystals, most_edges):
            yield self.part(start, stop)

    def unbatch(self) -> list[CrystalGraph]:
        """Return the crystals, one graph each."""
        return [CrystalGraph(self.part(number, number + 1)) for number in range(len(self))]

    @staticmethod
    def join(batches: Sequence[CrystalBatch]) -> CrystalBatch:
        """Join batches, at least one, into one.

        Raises:
            ValueError: if there is none, or their cutoffs differ.
        """
        if not batches:
            raise PrismError("cannot batch an empty list of graphs")
        cutoffs = {batch.cutoffs for batch in batches}
        if len(cutoffs) > 1:
            raise PrismError(f"the graphs were built with different cutoffs (atomistic, cell): {sorted(cutoffs)}")
        atoms = np.array([len(batch.atomic_numbers) for batch in batches])
        starts = np.cumsum(atoms) - atoms

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(batch, name) for batch in batches])

        edges = [batch.edge_index + int(start) for batch, start in zip(batches, starts, strict=True)]
        return CrystalBatch(
            **{
                name: joined(name)
                for name in (
                    "atomic_numbers",
                    "positions",
                    "lattice",
                    "cell",
                    "pbc",
                    "reduction",
                    "edge_image",
                    "cell_image",
                )
            },
            edge_index=torch.cat(edges, dim=1),
            sizes=np.concatenate([batch.sizes for batch in batches]),
            elements=tuple(sorted({element for batch in batches for element in batch.elements})),
            cutoff=batches[0].cutoff,
            cell_cutoff=batches[0].cell_cutoff,
        )

    @staticmethod
    def from_dgl(heterograph: dgl.DGLHeteroGraph) -> CrystalBatch:
        """Read a DGL heterograph of :meth:`CrystalGraph.to_dgl`, batched by ``dgl.batch`` or not.

        Raises:
            ValueError: if it is no such graph, or its crystals have different cutoffs.
        """
        found = read_heterograph(heterograph)
        lattice, pbc = found["lattice"], found["pbc"]
        return CrystalBatch(
            **found,
            reduction=reduced_bases(lattice, pbc),
            elements=tuple(np.unique(found["atomic_numbers"].cpu().numpy()).tolist()),
        )


def _with_counted(batch: CrystalBatch, before: CrystalBatch) -> CrystalBatch:
    """Copy what was counted before for a batch with the same edges and waves."""
    for name in ("waves", "reverse", "neighbors", "axes"):
        if name in vars(before):
            vars(batch)[name] = getattr(before, name).to(batch.lattice.device)
    return batch


@dataclass(frozen=True, eq=False)
class CrystalGraph:
    """One crystal (or molecule) as a graph of atoms and a superatom: a view of a batch of one.

    Attributes:
        crystals: the batch, with this crystal alone.
    """

    crystals: CrystalBatch

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.crystals.atomic_numbers)

    @property
    def atomic_numbers(self) -> Tensor:
        """Shape ``(atoms,)``, int64."""
        return self.crystals.atomic_numbers

    @property
    def positions(self) -> Tensor:
        """Cartesian positions, Å, shape ``(atoms, 3)``."""
        return self.crystals.positions

    @property
    def lattice(self) -> Tensor:
        """Lattice vectors as rows, Å, shape ``(3, 3)``, of full rank (see :class:`CrystalBatch`)."""
        return self.crystals.lattice[0]

    @property
    def cell(self) -> Tensor:
        """The true cell, Å, shape ``(3, 3)``, zeros where the structure has no vector."""
        return self.crystals.cell[0]

    @property
    def pbc(self) -> Tensor:
        """Periodic flags, shape ``(3,)``."""
        return self.crystals.pbc[0]

    @property
    def reduction(self) -> Tensor:
        """Integer matrix to the Minkowski-reduced basis, shape ``(3, 3)``."""
        return self.crystals.reduction[0]

    @property
    def edge_index(self) -> Tensor:
        """Receiver and sender of the atomistic edges, shape ``(2, edges)``; receivers ascending."""
        return self.crystals.edge_index

    @property
    def edge_image(self) -> Tensor:
        """Image of the sender in lattice coefficients, shape ``(edges, 3)``."""
        return self.crystals.edge_image

    @property
    def cell_image(self) -> Tensor:
        """Cell edges as lattice coefficients, shape ``(cell edges, 3)``."""
        return self.crystals.cell_image

    @property
    def cutoff(self) -> float:
        """Radius of the atomistic edges, Å."""
        return self.crystals.cutoff

    @property
    def cell_cutoff(self) -> float:
        """Radius of the cell edges, Å."""
        return self.crystals.cell_cutoff

    @property
    def frac_coords(self) -> Tensor:
        """Fractional coordinates, shape ``(atoms, 3)``."""
        return self.positions @ torch.linalg.inv(self.lattice)

    @property
    def edge_vector(self) -> Tensor:
        """Vectors receiver -> sender of the atomistic edges, Å, shape ``(edges, 3)`` (PRISM Eq. 6)."""
        return self.crystals.edge_vector

    @property
    def edge_distance(self) -> Tensor:
        """Lengths of the atomistic edges, Å, shape ``(edges,)`` (PRISM Eq. 5)."""
        return self.edge_vector.norm(dim=1)

    @property
    def cell_vector(self) -> Tensor:
        """Vectors of the cell edges, Å, shape ``(cell edges, 3)``."""
        return self.crystals.cell_vector

    @property
    def cell_distance(self) -> Tensor:
        """Lengths of the cell edges, Å, shape ``(cell edges,)``."""
        return self.cell_vector.norm(dim=1)

    def to_dgl(self) -> dgl.DGLHeteroGraph:
        """Turn into a DGL heterograph; see :mod:`prism_plugin.graph.dgl_format`.

        Raises:
            ImportError: if DGL is not installed.
        """
        atoms = {
            "atomic_number": self.atomic_numbers,
            "position": self.positions,
            "frac_coords": self.frac_coords,
        }
        superatom = {"lattice": self.lattice, "cell": self.cell, "pbc": self.pbc}
        atomistic = {"vector": self.edge_vector, "distance": self.edge_distance, "image": self.edge_image}
        cell = {"vector": self.cell_vector, "distance": self.cell_distance, "image": self.cell_image}
        return write_heterograph(self.edge_index, atoms, superatom, atomistic, cell, self.crystals.cutoffs)

    @staticmethod
    def from_dgl(graph: dgl.DGLHeteroGraph) -> CrystalGraph:
        """Read an unbatched DGL heterograph made by :meth:`to_dgl`.

        Raises:
            ValueError: if the graph is no PRISM heterograph, or a batch of several.
        """
        batch = CrystalBatch.from_dgl(graph)
        if len(batch) != 1:
            raise PrismError(f"the graph is a batch of {len(batch)} crystals; take them apart with dgl.unbatch")
        return CrystalGraph(batch)


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
    return CrystalBatch.join([graph.crystals for graph in graphs])
