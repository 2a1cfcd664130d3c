"""PRISM, its twins and other people's models behind one interface, to be timed side by side.

Every peer has the sizes that its authors publish or its library takes by default, untrained; matgl's come with this
project, MACE, ALIGNN and CHGNet (the original) if they are installed: pip install -c constraints.txt mace-torch chgnet
alignn
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn
from twins import cartnet, naive

from prism_plugin import PRISM, batch_graphs, build_graph

__all__ = ["Contestant", "contestants"]


@dataclass
class Contestant:
    """A model with its own way from crystals to numbers.

    Attributes:
        name: as in the table.
        model: what is timed.
        build: crystal -> graph.
        collate: graphs -> batch.
        predict: model, batch -> one number per crystal.
    """

    name: str
    model: nn.Module
    build: Callable[[Atoms], Any]
    collate: Callable[[list[Any]], Any]
    predict: Callable[[nn.Module, Any], Tensor]

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def ours(name: str, model: PRISM) -> Contestant:
    return Contestant(
        name,
        model,
        lambda atoms: build_graph(atoms, model.cutoff, model.cell_cutoff),
        batch_graphs,
        lambda model, batch: model(batch),
    )


def _matgl(name: str, **arguments: Any) -> Contestant:
    import matgl.models
    from matgl.ext.ase import Atoms2Graph
    from torch_geometric.data import Batch

    model = getattr(matgl.models, name)(**arguments)
    converter = Atoms2Graph(model.element_types, model.cutoff)

    def build(atoms: Atoms) -> Any:
        graph, lattice, _ = converter.get_graph(atoms)
        graph.pbc_offshift = torch.matmul(graph.pbc_offset, lattice[0])
        graph.pos = graph.frac_coords @ lattice[0]
        return graph

    def predict(model: nn.Module, batch: Any) -> Tensor:
        # These models write what they compute into the graph; a step must not find the last one's.
        return model(batch.clone(), state_attr=torch.zeros(batch.num_graphs, 2) if name == "MEGNet" else None)

    return Contestant(f"{name} (matgl)", model, build, Batch.from_data_list, predict)


def _mace() -> Contestant:
    torch.serialization.add_safe_globals([slice])  # in the constants that come with e3nn 0.4.4, which MACE pins
    from e3nn.o3 import Irreps
    from mace import data, modules
    from mace.tools import AtomicNumberTable
    from mace.tools.torch_geometric import Batch

    table = AtomicNumberTable(list(range(1, 90)))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(table.zs),
        hidden_irreps=Irreps("128x0e+128x1o"),
        MLP_irreps=Irreps("16x0e"),
        atomic_energies=np.zeros(len(table.zs)),
        avg_num_neighbors=40.0,
        atomic_numbers=table.zs,
        correlation=3,
        gate=nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    return Contestant(
        "MACE, medium",
        model,
        lambda atoms: data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=5.0),
        Batch.from_data_list,
        # With gradients of the weights, but no forces: all models here predict one number.
        lambda model, batch: model(batch.to_dict(), training=model.training, compute_force=False)["energy"],
    )


def _chgnet() -> Contestant:
    from chgnet.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    model = CHGNet()
    return Contestant(
        "CHGNet",
        model,
        lambda atoms: model.graph_converter(AseAtomsAdaptor.get_structure(atoms)),
        list,
        lambda model, batch: model(batch, task="e")["e"],
    )


def _alignn() -> Contestant:
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    from alignn.graphs import Graph
    from alignn.models.alignn import ALIGNN, ALIGNNConfig
    from jarvis.core.atoms import ase_to_atoms

    def collate(graphs: list[Any]) -> Any:
        batch = dgl.batch([graph for graph, _ in graphs])
        return batch, dgl.batch([line for _, line in graphs]), torch.zeros(len(graphs), 3, 3)

    def predict(model: nn.Module, batch: Any) -> Tensor:
        graph, line, lattice = batch
        return model((graph.local_var(), line.local_var(), lattice))

    return Contestant(
        "ALIGNN",
        ALIGNN(ALIGNNConfig(name="alignn")),
        lambda atoms: Graph.atom_dgl_multigraph(ase_to_atoms(atoms), cutoff=8.0, max_neighbors=12),
        collate,
        predict,
    )


def contestants(dim: int, num_layers: int, seed: int = 0) -> tuple[list[Contestant], list[str]]:
    """Make all that are installed, and say which are not."""
    torch.manual_seed(seed)
    prism = PRISM(dim=dim, num_layers=num_layers)
    found = [ours("CartNet twin", cartnet(prism)), ours("PRISM, naive twin", naive(PRISM(**prism.arguments)))]
    found.append(ours("PRISM", prism))
    found += [_matgl(name) for name in ("MEGNet", "M3GNet", "TensorNet")]
    found.append(_matgl("CHGNet", element_types=found[-1].model.element_types))
    missing = []
    for name, make in (("MACE", _mace), ("CHGNet", _chgnet), ("ALIGNN", _alignn)):
        try:
            found.append(make())
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return found, missing
