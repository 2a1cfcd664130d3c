"""DGL heterograph -> crystals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph
from prism_plugin.graph.lattice import reduced_bases

if TYPE_CHECKING:
    import dgl
from prism_plugin.graph.dgl_write import ATOMISTIC, CELL, TO_ATOM, TO_SUPERATOM

__all__ = ["batch_from_dgl", "from_dgl"]


def batch_from_dgl(heterograph: dgl.DGLHeteroGraph) -> CrystalBatch:
    """Read a heterograph of :func:`to_dgl`, batched or not.

    Raises:
        ValueError: if it is no such graph, or its crystals have different cutoffs.
    """
    needed = {ATOMISTIC, CELL, TO_SUPERATOM, TO_ATOM}
    kinds = getattr(heterograph, "canonical_etypes", None)
    if kinds is None or set(kinds) != needed:
        raise ValueError(
            f"not a PRISM heterograph: {type(heterograph).__name__} with edge types {kinds}; make it with "
            "CrystalGraph.to_dgl() and dgl.batch"
        )
    atoms, superatoms = heterograph.nodes["atom"].data, heterograph.nodes["superatom"].data
    held = {*atoms, *superatoms, *heterograph.edges["atomistic"].data}
    missing = {"atomic_number", "position", "lattice", "pbc", "cutoffs", "image"} - held
    if missing:
        raise ValueError(f"the heterograph lacks the features {sorted(missing)}; make it with CrystalGraph.to_dgl()")
    cutoffs = torch.unique(superatoms["cutoffs"], dim=0)
    if len(cutoffs) > 1:
        raise ValueError(f"the graphs were built with different cutoffs (atomistic, cell): {cutoffs.tolist()}")
    sender, receiver = heterograph.edges(etype="atomistic")
    order = torch.argsort(receiver, stable=True)
    crystal_of_atom = heterograph.edges(etype="to_superatom")
    atom_crystal = torch.empty(len(atoms["position"]), dtype=torch.long)
    atom_crystal[crystal_of_atom[0].long()] = crystal_of_atom[1].long()
    return CrystalBatch(
        atomic_numbers=atoms["atomic_number"],
        positions=atoms["position"],
        lattice=superatoms["lattice"],
        pbc=superatoms["pbc"].bool(),
        atom_crystal=atom_crystal,
        edge_index=torch.stack([receiver, sender]).long()[:, order],
        edge_image=heterograph.edges["atomistic"].data["image"][order],
        cell_crystal=heterograph.edges(etype="cell")[0].long(),
        cell_image=heterograph.edges["cell"].data["image"],
        reduction=reduced_bases(superatoms["lattice"], superatoms["pbc"].bool()),
        cutoff=float(cutoffs[0, 0]),
        cell_cutoff=float(cutoffs[0, 1]),
    )


def from_dgl(heterograph: dgl.DGLHeteroGraph) -> CrystalGraph:
    """Read an unbatched heterograph of :func:`to_dgl`.

    Raises:
        ValueError: if it is no such graph, or a batch of several.
    """
    batch = batch_from_dgl(heterograph)
    if len(batch) != 1:
        raise ValueError(f"the graph is a batch of {len(batch)} crystals; take them apart with dgl.unbatch")
    return batch.unbatch()[0]
