"""DGL heterographs of crystals: how their fields are written and read. The only file that imports DGL, when it is used.

Node types ``atom`` and ``superatom``; edge types (atom, atomistic, atom), (superatom, cell, superatom),
(atom, to_superatom, superatom) and (superatom, to_atom, atom). DGL edges run from sender to receiver. Data of the
whole crystal lie on its superatom, because ``dgl.batch`` loses graph attributes. Vectors, distances and fractional
coordinates are for those who read the graph with DGL; reading it back derives them anew.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prism_plugin.errors import PrismError

if TYPE_CHECKING:
    import dgl

__all__ = ["import_dgl", "read_heterograph", "write_heterograph"]

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


def write_heterograph(
    edge_index: Tensor,
    atoms: Mapping[str, Tensor],
    superatom: Mapping[str, Tensor],
    atomistic: Mapping[str, Tensor],
    cell: Mapping[str, Tensor],
    cutoffs: tuple[float, float],
) -> dgl.DGLHeteroGraph:
    """Write one crystal as a heterograph.

    Args:
        edge_index: receiver and sender of the atomistic edges, shape ``(2, edges)``.
        atoms: features of the atoms, ``atomic_number`` and ``position`` among them.
        superatom: features of the crystal, ``lattice``, ``cell`` and ``pbc`` among them.
        atomistic: features of the atomistic edges, ``image`` among them.
        cell: features of the cell edges, ``image`` among them.
        cutoffs: radii of atomistic and cell edges, Å.

    Raises:
        ImportError: if DGL is not installed.
    """
    dgl = import_dgl()
    receiver, sender = edge_index.long()
    number = len(atoms["position"])
    members = torch.arange(number)
    zeros = torch.zeros(number, dtype=torch.long)
    loops = torch.zeros(len(cell["image"]), dtype=torch.long)
    heterograph = dgl.heterograph(
        {
            ATOMISTIC: (sender, receiver),
            CELL: (loops, loops),
            TO_SUPERATOM: (members, zeros),
            TO_ATOM: (zeros, members),
        },
        num_nodes_dict={"atom": number, "superatom": 1},
    )
    heterograph.nodes["atom"].data.update(atoms)
    heterograph.nodes["superatom"].data.update(
        {name: value.unsqueeze(0) for name, value in superatom.items()},
        pbc=superatom["pbc"].unsqueeze(0).to(torch.int8),  # dgl.save_graphs turns booleans into numbers
        cutoffs=torch.tensor([cutoffs], dtype=torch.float64),
    )
    heterograph.edges["atomistic"].data.update(atomistic)
    heterograph.edges["cell"].data.update(cell)
    return heterograph


def read_heterograph(heterograph: dgl.DGLHeteroGraph) -> dict[str, Any]:
    """Read a heterograph of :func:`write_heterograph`, batched or not.

    Returns:
        Fields of :class:`~prism_plugin.CrystalBatch`, but for those that follow from others.

    Raises:
        ValueError: if it is no such graph, or its crystals have different cutoffs.
    """
    kinds = getattr(heterograph, "canonical_etypes", None)
    if kinds is None or set(kinds) != {ATOMISTIC, CELL, TO_SUPERATOM, TO_ATOM}:
        raise PrismError(
            f"not a PRISM heterograph: {type(heterograph).__name__} with edge types {kinds}; make it with "
            "CrystalGraph.to_dgl() and dgl.batch"
        )
    atoms, superatoms = heterograph.nodes["atom"].data, heterograph.nodes["superatom"].data
    held = {*atoms, *superatoms, *heterograph.edges["atomistic"].data}
    missing = {"atomic_number", "position", "lattice", "pbc", "cutoffs", "image"} - held
    if missing:
        raise PrismError(f"the heterograph lacks the features {sorted(missing)}; make it with CrystalGraph.to_dgl()")
    cutoffs = torch.unique(superatoms["cutoffs"], dim=0)
    if len(cutoffs) > 1:
        raise PrismError(f"the graphs were built with different cutoffs (atomistic, cell): {cutoffs.tolist()}")
    sender, receiver = heterograph.edges(etype="atomistic")
    order = torch.argsort(receiver, stable=True)
    pbc = superatoms["pbc"].bool()
    counts = (heterograph.batch_num_nodes("atom"), *(heterograph.batch_num_edges(e) for e in ("atomistic", "cell")))
    lattice = superatoms["lattice"]
    return {
        "atomic_numbers": atoms["atomic_number"],
        "positions": atoms["position"],
        "lattice": lattice,
        # Graphs that were written before cells were kept have what repeats of them.
        "cell": superatoms["cell"] if "cell" in superatoms else torch.where(pbc.unsqueeze(2), lattice, 0).double(),
        "pbc": pbc,
        "edge_index": torch.stack([receiver, sender]).long()[:, order],
        "edge_image": heterograph.edges["atomistic"].data["image"][order],
        "cell_image": heterograph.edges["cell"].data["image"],
        "sizes": np.stack([count.cpu().numpy().astype(np.int64) for count in counts], axis=1),
        "cutoff": float(cutoffs[0, 0]),
        "cell_cutoff": float(cutoffs[0, 1]),
    }
