"""Crystal graph <-> DGL heterograph: the only file that imports DGL, and only when it is used.

Node types ``atom`` and ``superatom``; edge types (atom, atomistic, atom), (superatom, cell, superatom),
(atom, to_superatom, superatom) and (superatom, to_atom, atom). DGL edges run from sender to receiver. Data of the
whole crystal lie on its superatom, because ``dgl.batch`` loses graph attributes.
"""

from __future__ import annotations

import os
import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from prism_plugin.batch import CrystalBatch
from prism_plugin.graph import CrystalGraph
from prism_plugin.lattice import reduced_bases

if TYPE_CHECKING:
    import dgl

__all__ = ["batch_from_dgl", "from_dgl", "import_dgl", "to_dgl"]

ATOMISTIC = ("atom", "atomistic", "atom")
CELL = ("superatom", "cell", "superatom")
TO_SUPERATOM = ("atom", "to_superatom", "superatom")
TO_ATOM = ("superatom", "to_atom", "atom")


def import_dgl() -> Any:
    """Import DGL on PyTorch.

    Raises:
        ImportError: if it is not installed; says what to install.
    """
    if "dgl" not in sys.modules:
        os.environ.setdefault("DGLBACKEND", "pytorch")
        if sys.version_info >= (3, 12):
            # DGL 2.1's graphbolt is compiled for torch <= 2.2 and fails to load; nothing here needs it.
            sys.modules.setdefault("dgl.graphbolt", types.ModuleType("dgl.graphbolt"))
    try:
        import dgl
    except ImportError as error:
        raise ImportError(
            "DGL graphs need DGL: pip install 'dgl==1.1.3' on Python 3.11, 'dgl==2.1.0' on Python 3.12 (Linux, macOS); "
            "everything else works without it: give build_graph(...) or the structure itself"
        ) from error
    return dgl


def to_dgl(graph: CrystalGraph) -> dgl.DGLHeteroGraph:
    """Turn a crystal graph into a DGL heterograph with features ``vector``, ``distance``, ``image`` on its edges."""
    dgl = import_dgl()
    receiver, sender = graph.edge_index.long()
    atoms = torch.arange(len(graph))
    zeros = torch.zeros(len(graph), dtype=torch.long)
    loops = torch.zeros(len(graph.cell_image), dtype=torch.long)
    heterograph = dgl.heterograph(
        {
            ATOMISTIC: (sender, receiver),
            CELL: (loops, loops),
            TO_SUPERATOM: (atoms, zeros),
            TO_ATOM: (zeros, atoms),
        },
        num_nodes_dict={"atom": len(graph), "superatom": 1},
    )
    heterograph.nodes["atom"].data.update(
        atomic_number=graph.atomic_numbers, position=graph.positions, frac_coords=graph.frac_coords
    )
    heterograph.nodes["superatom"].data.update(
        lattice=graph.lattice.unsqueeze(0),
        pbc=graph.pbc.unsqueeze(0).to(torch.int8),  # dgl.save_graphs turns booleans into numbers
        cutoffs=torch.tensor([[graph.cutoff, graph.cell_cutoff]], dtype=torch.float64),
    )
    heterograph.edges["atomistic"].data.update(
        vector=graph.edge_vector, distance=graph.edge_distance, image=graph.edge_image
    )
    heterograph.edges["cell"].data.update(
        vector=graph.cell_vector, distance=graph.cell_distance, image=graph.cell_image
    )
    return heterograph


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
