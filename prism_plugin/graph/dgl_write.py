"""Crystal graph -> DGL heterograph."""

from __future__ import annotations

import os
import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from prism_plugin.graph.crystals import CrystalGraph

if TYPE_CHECKING:
    import dgl

__all__ = ["ATOMISTIC", "CELL", "TO_ATOM", "TO_SUPERATOM", "import_dgl", "to_dgl"]

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
