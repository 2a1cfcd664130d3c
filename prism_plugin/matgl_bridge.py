"""The only file that touches matgl's internals: its base class, its PyG graphs, its converters.

Reads a PyG ``Data`` or ``Batch``, as matgl's converters, loaders and ``Potential`` make it, into a
:class:`~prism_plugin.graph.crystals.CrystalBatch`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from torch import Tensor
from torch_geometric.data import Data

from prism_plugin.domain import Domain
from prism_plugin.errors import PrismError
from prism_plugin.files import ASIDE, storing
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.extent import Extent
from prism_plugin.graph.lattice import lattice_translations, reduced_bases
from prism_plugin.home import writable_home

with writable_home():  # matgl makes a folder there when it is imported
    import matgl
    from matgl import load_model
    from matgl.apps.pes import Potential
    from matgl.config import MATGL_CACHE
    from matgl.models import MatGLModel
    from matgl.utils.io import _get_file_paths

__all__ = [
    "BESIDE",
    "DIGEST",
    "MATGL_CACHE",
    "SavedModel",
    "answer_like_matgl",
    "batch_from_matgl",
    "import_matcalc",
    "inside_potential",
    "load_model",
    "weights_digest",
]

# What lies beside a model's other files, if it was measured, by its attribute: its file and class.
BESIDE: dict[str, tuple[str, Any]] = {"domain": ("domain.npz", Domain), "extent": ("extent.npz", Extent)}
DIGEST = "sha256_of_weights"  # in the metadata of a saved model


class SavedModel(MatGLModel):
    """A model in matgl's format, whose folder is written whole or not at all, and keeps what the model hardly knows."""

    # Symbol -> number of training crystals, where these were too few to trust; of a model that ships, or began as one.
    rare_elements: Mapping[str, int] = MappingProxyType({})
    # Whether its domain compares crystals or their atoms.
    domain_of_atoms: ClassVar[bool] = False
    # Its training crystals and its errors, and their distances and volumes, where they were measured.
    domain: Domain | None = None
    extent: Extent | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the constructor by name; ``type(model)(**model.arguments)`` makes its like."""
        return dict(self._init_args)

    def save(self, path: str | Path = ".", metadata: dict[str, Any] | None = None, makedirs: bool = True) -> None:
        """Save in matgl's format, for ``matgl.load_model(path)``.

        The files are written aside first, so a full disk or an interruption while writing leaves an older model in
        ``path`` whole; then they are renamed, one after the other.

        Args:
            path: folder of the model.
            metadata: named values that JSON can hold, kept in ``model.json``, with this model's ``rare_elements`` and
                the SHA-256 of its weights. Its ``domain`` and ``extent`` are kept, too, if they are of these weights.
            makedirs: make the folder if it is missing.

        Raises:
            FileNotFoundError: if the folder is missing and ``makedirs`` is False.
        """
        digest = weights_digest(self.state_dict())
        if isinstance(metadata, dict | None):
            ours = {"rare_elements": dict(self.rare_elements)} if self.rare_elements else {}
            metadata = {**ours, **(metadata or {}), DIGEST: digest}
        folder = Path(path).resolve()
        if makedirs:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {str(path)!r}; make it, or pass makedirs=True")
        with TemporaryDirectory(prefix=f".model{ASIDE}", dir=folder) as aside:
            with storing(folder):
                super().save(aside, metadata=metadata)
            for attribute, (name, _) in BESIDE.items():
                measured = getattr(self, attribute)
                if measured is not None and measured.digest == digest:
                    measured.save(Path(aside) / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            for file in sorted(Path(aside).iterdir()):
                os.replace(file, folder / file.name)

    @classmethod
    def load(cls, path: str | Path | dict[str, Any], **kwargs: Any) -> Any:
        """Load a saved model; ``matgl.load_model`` comes here.

        Args:
            path: as of matgl: a folder, a name, or the paths of the files by their names.
            **kwargs: of matgl's own.

        Raises:
            ValueError: if the weights are not those that were saved, not all that the model has, or not finite, the
                files name a class of another package, or what lies beside them is of other weights.
        """
        files = path if isinstance(path, dict) else _get_file_paths(Path(path), **kwargs)
        kept = json.loads(Path(files["model.json"]).read_text(encoding="utf-8")).get("metadata")
        kept = kept if isinstance(kept, dict) else {}
        weights = _read_weights(files, kept.get(DIGEST))
        user_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # in bfloat16 the weights would be rounded
        try:
            model = super().load(files)
        finally:
            torch.set_default_dtype(user_dtype)
        differing = sorted(model.state_dict().keys() ^ weights.keys())
        if differing:
            raise PrismError(f"{len(differing)} weights are missing or too many, for example {differing[0]}")
        rare = kept.get("rare_elements")
        model.rare_elements = rare if isinstance(rare, dict) else {}
        for attribute, (name, kind) in BESIDE.items():
            beside = Path(files["state.pt"]).with_name(name)
            if not beside.is_file():
                continue
            setattr(model, attribute, kind.load(beside))
            if getattr(model, attribute).digest != (kept.get(DIGEST) or weights_digest(weights)):
                raise PrismError(f"{name} is of other weights than the model beside it: remove it, or fetch both again")
        return model


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_weights(files: Mapping[str, Any], digest: str | None) -> dict[str, Tensor]:
    """Read and check the weights of a saved model, and the arguments of its constructor."""
    weights = torch.load(files["state.pt"], map_location="cpu", weights_only=True)
    arguments = torch.load(files["model.pt"], map_location="cpu", weights_only=True)
    if any(isinstance(value, dict) and "@module" in value for value in arguments.values()):
        raise PrismError("an argument of the model names a class to be imported, which no PRISM has")
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise PrismError(f"{len(broken)} weights are not finite, for example {broken[0]}")
    if digest is not None and weights_digest(weights) != digest:
        raise PrismError("the weights are not those that were saved: their SHA-256 differs from that in model.json")
    return weights


def answer_like_matgl(model: Any, graph: Data, lattice: Tensor) -> tuple[Tensor, ...]:
    """Answer as matgl's ``Potential`` around a model: energies (eV), forces (eV/Å), stresses (GPa), no Hessian.

    Args:
        model: a PRISM of energies.
        graph: of matgl's converters.
        lattice: as they give it, shape ``(3, 3)`` or ``(crystals, 3, 3)``, Å.
    """
    return Potential(model).to(model.device).train(model.training)(graph, lattice)


def import_matcalc() -> Any:
    """Import matcalc, which asks the Hub for the names of matgl's models: without a network for 20 s, and for nothing.

    Raises:
        ImportError: if it is not installed.
    """
    ask = matgl.get_available_pretrained_models
    matgl.get_available_pretrained_models = list
    try:
        import matcalc
    except ImportError as error:
        raise ImportError("matcalc is not installed: pip install 'prism-plugin[simulate]'") from error
    finally:
        matgl.get_available_pretrained_models = ask
    return matcalc


def inside_potential(graph: Any) -> bool:
    """Return whether a graph comes from matgl's ``Potential``, which alone sets a lattice per edge."""
    return isinstance(graph, Data) and getattr(graph, "lattice", None) is not None


def batch_from_matgl(graph: Any, element_types: tuple[str, ...], cutoff: float, cell_cutoff: float) -> CrystalBatch:
    """Read a PyG graph of matgl, or a converter's ``(graph, lattice, state)``, into a batch.

    The lattice is taken from, in this order: the converter's tuple; ``graph.lattice`` per edge (``Potential`` sets it,
    it carries the strain); least squares over the atoms' and edges' fractional and Cartesian vectors. matgl's graphs
    do not say what is periodic: a graph whose edges cross no cell boundary and whose fractional coordinates are the
    Cartesian ones is a molecule (so matgl's converters make them), every other is a crystal. A single atom at the
    origin without any edge looks like a molecule, whatever its lattice.

    Args:
        graph: PyG ``Data`` or ``Batch`` with matgl's attributes, or the tuple of a converter's ``get_graph``.
        element_types: what ``node_type`` counts.
        cutoff: radius with which matgl's converter searched, Å.
        cell_cutoff: radius of the cell edges to add, Å.

    Raises:
        TypeError: if it is no such graph.
        ValueError: if the lattice cannot be told.
    """
    of_converter = None
    if isinstance(graph, tuple) and len(graph) == 3:
        graph, of_converter = graph[0], graph[1]
    needed = ("node_type", "edge_index", "pbc_offset", "frac_coords")
    missing = [name for name in needed if getattr(graph, name, None) is None]
    if missing:
        raise TypeError(
            f"cannot read {type(graph).__name__} as a crystal graph, it lacks {', '.join(missing)}; give "
            "a CrystalGraph, a CrystalBatch, a DGL heterograph of CrystalGraph.to_dgl, or a PyG graph "
            "of matgl's converters"
        )
    device = graph.frac_coords.device
    atoms = len(graph.node_type)
    of_batch = getattr(graph, "batch", None)
    atom_crystal = torch.zeros(atoms, dtype=torch.long, device=device) if of_batch is None else of_batch
    crystals = int(getattr(graph, "num_graphs", None) or 1)
    edge_index = graph.edge_index.long()
    image = graph.pbc_offset
    edge_crystal = atom_crystal[edge_index[0]]
    positions = getattr(graph, "pos", None)
    crossing = torch.zeros(crystals, dtype=image.dtype, device=device).index_add(
        0, edge_crystal, image.abs().sum(dim=1)
    )
    periodic = crossing > 0
    if of_converter is not None:
        lattice = of_converter.reshape(-1, 3, 3)
        periodic = periodic | (lattice != torch.eye(3, dtype=lattice.dtype, device=device)).flatten(1).any(dim=1)
    elif positions is None:
        raise PrismError(
            "the graph has no lattice: give the whole tuple of the converter, or set graph.pos and graph.pbc_offshift "
            "as matgl's predict_structure and ModelLightningModule do"
        )
    else:
        moved = (positions.detach() - graph.frac_coords).abs().amax(dim=1) > 1e-6
        periodic = periodic | (torch.bincount(atom_crystal[moved], minlength=crystals) > 0)
        lattice = _lattice(graph, atom_crystal, edge_crystal, crystals, periodic)
    if positions is None:
        positions = (graph.frac_coords.unsqueeze(-1) * lattice[atom_crystal]).sum(dim=1)
    order = torch.argsort(edge_index[0], stable=True)
    numbers = torch.tensor([number_of[symbol] for symbol in element_types], device=device)
    pbc = periodic.unsqueeze(1).expand(-1, 3)
    cells = [
        torch.from_numpy(lattice_translations(cell.numpy(), cell_cutoff, flags.numpy()))
        for cell, flags in zip(lattice.detach().cpu().double(), pbc.cpu(), strict=True)
    ]
    atomic_numbers = numbers[graph.node_type]
    atoms_of = torch.bincount(atom_crystal, minlength=crystals).cpu().numpy()
    edges_of = torch.bincount(edge_crystal, minlength=crystals).cpu().numpy()
    return CrystalBatch(
        atomic_numbers=atomic_numbers,
        positions=positions,
        lattice=lattice,
        pbc=pbc,
        cell=torch.where(pbc.unsqueeze(2), lattice.detach(), 0).double(),
        edge_index=edge_index[:, order],
        edge_image=image[order],
        cell_image=torch.cat(cells).to(device),
        reduction=reduced_bases(lattice, pbc),
        sizes=np.stack([atoms_of, edges_of, [len(cell) for cell in cells]], axis=1).astype(np.int64),
        elements=tuple(np.unique(atomic_numbers.cpu().numpy()).tolist()),
        cutoff=cutoff,
        cell_cutoff=cell_cutoff,
    )


def _lattice(graph: Any, atom_crystal: Tensor, edge_crystal: Tensor, crystals: int, periodic: Tensor) -> Tensor:
    """Lattices of a graph's crystals, shape ``(crystals, 3, 3)``; the identity for molecules."""
    identity = torch.eye(3, dtype=graph.frac_coords.dtype, device=graph.frac_coords.device)
    per_edge = getattr(graph, "lattice", None)
    rows = []
    for crystal in range(crystals):
        edges = (edge_crystal == crystal).nonzero().squeeze(1)
        if not periodic[crystal]:
            rows.append(identity)
        elif per_edge is not None and len(edges):
            rows.append(per_edge[edges[0]])
        else:
            rows.append(_fit_lattice(graph, atom_crystal == crystal, edges))
    return torch.stack(rows)


def _fit_lattice(graph: Any, of_atoms: Tensor, of_edges: Tensor) -> Tensor:
    """Solve [frac_coords; pbc_offset] @ lattice = [pos; pbc_offshift] for the lattice of one crystal, in float64."""
    if getattr(graph, "pbc_offshift", None) is None:
        raise PrismError("the graph has no lattice: set graph.pbc_offshift beside graph.pos, as matgl does")
    fractional = torch.cat([graph.frac_coords[of_atoms], graph.pbc_offset[of_edges]]).double()
    cartesian = torch.cat([graph.pos[of_atoms], graph.pbc_offshift[of_edges]]).double()
    if torch.linalg.matrix_rank(fractional) < 3:
        raise PrismError(
            "the lattice cannot be told from so few edges: give the whole tuple of the converter, or use "
            "prism_plugin.build_graph"
        )
    return torch.linalg.lstsq(fractional, cartesian).solution.to(graph.frac_coords.dtype)
