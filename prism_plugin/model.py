"""PRISM: batch -> prediction (Solé et al., npj Comput. Mater. 2026, doi 10.1038/s41524-026-02074-1).

Predicts one number per crystal from a batch of crystals in any of the accepted graph formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols
from torch import Tensor, nn
from tqdm import tqdm

from prism_plugin.config import EXPERTS, ModelOptions, check_recompute
from prism_plugin.devices import send
from prism_plugin.errors import PrismError, warn
from prism_plugin.evaluation import evaluation, halved, split_graphs
from prism_plugin.graph.batching import crystal_of_rows
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph, batch_graphs
from prism_plugin.matgl_bridge import SavedModel, batch_from_matgl, inside_potential
from prism_plugin.nn.angular import AngularBlock, EdgeAngles, real_harmonics
from prism_plugin.nn.attention import AtomAttention
from prism_plugin.nn.backbones import BACKBONES
from prism_plugin.nn.backbones.backbone import Edges
from prism_plugin.nn.backbones.cartnet import GatedMessagePassing
from prism_plugin.nn.backbones.icomformer import NOT_PERIODIC, LatticeUpdate
from prism_plugin.nn.encoders import NUM_EMBEDDINGS, AtomEncoder, EdgeEncoder, SuperatomEncoder
from prism_plugin.nn.layer import PRISMLayer, encode_edges
from prism_plugin.nn.minimum_image import image_table
from prism_plugin.nn.norm import FeatureNorm
from prism_plugin.nn.reciprocal import wave_geometry
from prism_plugin.nn.residual_multiscale import mean_of_atoms
from prism_plugin.schema import described

__all__ = ["PRISM"]


class PRISM(SavedModel):
    """Periodic representation with atomistic, cell, multiscale and similarity experts.

    Args:
        element_types: symbols of the elements that the model knows; None means all 118.
        dim: width of all features.
        num_layers: number of layers.
        num_rbf: number of radial basis functions.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        similarity_cutoff: largest distance ||h_i - h_j|| of a similarity edge.
        experts: any subset of ``"atomistic"``, ``"cell"``, ``"multiscale"``, ``"similarity"``.
        atom_encoder: ``"prism"`` (Eq. 4), ``"cartnet"``, ``"elements"``: with properties of the elements, or
            ``"embedding"`` alone, see :class:`~prism_plugin.nn.encoders.AtomEncoder`.
        rbf_scale: ``"cutoff"``, ``"paper"`` or ``"even"``, see :class:`~prism_plugin.nn.encoders.RadialBasis`; as
            ``directions`` and ``angular`` of CartNet's edges only.
        superatom_readout: ``"sum"`` (Eq. 3) or ``"mean"``.
        multiscale_aggregation: ``"sum"`` or ``"mean"`` of the messages to a superatom.
        similarity_envelope: ``"feature"``, ``"cosine"`` or None.
        fusion: ``"scalar"`` or ``"gated"``.
        readout: ``"mean"`` over the atoms (Eq. 16); ``"sum"`` for an extensive target such as a total energy; or
            ``"attention"``: a mean with learned weights, for what a few of the atoms decide, such as a band gap.
        dropout: rate between the final atom features and the head.
        target: name of the predicted property.
        unit: its unit.
        mean: added to each atom's output after scaling; the mean of the training targets.
        std: factor of each atom's output; the standard deviation of the training targets.
        task_type: ``"regression"``, or ``"classification"`` into two classes: the readout then is the log-odds of the
            second one and the prediction its probability (a sigmoid).
        similarity_image: ``"nearest"``, or ``"blended"``: the geometry of a similarity edge goes over smoothly where
            another image becomes the nearest, so that the energy has no jumps.
        norm: ``"batch"`` (BatchNorm, as in the paper), or None: then no crystal of a batch touches another one while
            training, which forces need.
        element_refs: added to the output of each atom, one number for each of ``element_types``; None means 0.
        directions: whether edges know their direction (Eq. 8); False: only their length, best with
            ``rbf_scale="even"``, and a crystal that is turned or mirrored has the same prediction.
        initial_norm: whether BatchNorm normalizes the features of atoms and edges before the first layer.
        cell: ``"translations"`` (the paper's expert), or ``"reciprocal"``: waves of up to 3 / Å in place of lattice
            translations up to ``cell_cutoff``, after Ewald message passing (Kosmala et al., ICML 2023); starts at zero,
            see :class:`~prism_plugin.nn.reciprocal.ReciprocalExpert`.
        multiscale: ``"fused"`` (the paper's expert), or ``"residual"``: starts at zero and adds to the atoms before the
            other experts, see :class:`~prism_plugin.nn.residual_multiscale.ResidualMultiscale`.
        angular: channels of a block that gives the atomistic edges the angles between them in each layer; 0: none. See
            :class:`~prism_plugin.nn.angular.AngularBlock`; with ``norm=None`` call :meth:`calibrate` before training.
        angular_order: largest degree of its Legendre polynomials, 1 to 3.
        minimum: no prediction in eval mode is below it, as 0 for a band gap; a training sees what lies below. None: no
            bound.
        backbone: the network that gives the experts their edges and messages: ``"cartnet"``, ``"icomformer"`` or
            ``"ecomformer"`` (:mod:`prism_plugin.nn.backbones`).
        neighbors: of the atomistic edges within ``cutoff`` each atom keeps those to its nearest so many neighbors, and
            to all that are as far as the last of these; such edges have no envelope. 0: all edges.

    Raises:
        ValueError: if an option is unknown or a number is out of range.

    Example:
        >>> from ase.build import bulk
        >>> model = PRISM(dim=16, num_layers=1)
        >>> model.predict_structure(bulk("Cu")).shape
        torch.Size([])
    """

    __version__ = 1

    layers: Sequence[PRISMLayer]
    _element_refs: Tensor | None

    def __init__(
        self,
        element_types: tuple[str, ...] | None = None,
        dim: int = 256,
        num_layers: int = 4,
        num_rbf: int = 64,
        cutoff: float = 5.0,
        cell_cutoff: float = 15.0,
        similarity_cutoff: float = 1.0,
        experts: tuple[str, ...] = EXPERTS,
        atom_encoder: str = "prism",
        rbf_scale: str = "cutoff",
        superatom_readout: str = "sum",
        multiscale_aggregation: str = "sum",
        similarity_envelope: str | None = "feature",
        fusion: str = "scalar",
        readout: str = "mean",
        dropout: float = 0.0,
        target: str = "target",
        unit: str = "",
        mean: float = 0.0,
        std: float = 1.0,
        task_type: str = "regression",
        similarity_image: str = "nearest",
        norm: str | None = "batch",
        element_refs: tuple[float, ...] | None = None,
        directions: bool = True,
        initial_norm: bool = False,
        cell: str = "translations",
        multiscale: str = "fused",
        angular: int = 0,
        angular_order: int = 3,
        minimum: float | None = None,
        backbone: str = "cartnet",
        neighbors: int = 0,
    ) -> None:
        super().__init__()
        given = locals()
        options = ModelOptions(**{name: given[name] for name in described(ModelOptions)})
        self.save_args(vars(options))  # in plain types, as a saved model holds them
        element_types = tuple(chemical_symbols[1:119]) if options.element_types is None else options.element_types
        dim, num_layers = options.dim, options.num_layers
        cutoff, cell_cutoff, similarity_cutoff = options.cutoff, options.cell_cutoff, options.similarity_cutoff
        experts, element_refs = options.experts, options.element_refs
        self.element_types = element_types
        self.cutoff = cutoff
        self.cell_cutoff = cell_cutoff
        self.similarity_cutoff = similarity_cutoff
        self.expert_names = experts
        self.readout = readout
        self.target = target
        self.unit = unit
        self.mean = options.mean
        self.std = options.std
        self.task_type = task_type
        self.minimum = options.minimum
        self.backbone = options.backbone
        self.neighbors = options.neighbors
        self.register_buffer("_element_refs", None, persistent=False)
        if element_refs is not None:
            table = torch.zeros(NUM_EMBEDDINGS, dtype=torch.float64)
            table[[number_of[symbol] for symbol in element_types]] = torch.tensor(element_refs, dtype=torch.float64)
            self._element_refs = table

        made = BACKBONES[options.backbone](options)
        self.atom_encoder = AtomEncoder(dim, atom_encoder)
        self.has_waves = "cell" in experts and cell == "reciprocal"
        self.has_translations = "cell" in experts and cell == "translations"
        self.has_mean_superatom = "multiscale" in experts and multiscale == "residual"
        if "atomistic" in experts:
            self.atomistic_encoder = made.edge_encoder(cutoff)
        if self.has_translations:
            self.cell_encoder = made.edge_encoder(cell_cutoff)
        self.has_superatom = self.has_translations or "multiscale" in experts
        if self.has_mean_superatom:
            self.superatom_mean = nn.Linear(dim, dim)
        elif self.has_superatom:
            self.superatom_encoder = SuperatomEncoder(dim, superatom_readout)
        self.initial_norms = nn.ModuleDict()
        if initial_norm:
            kinds = ("atomistic",) * ("atomistic" in experts) + ("cell",) * self.has_translations
            self.initial_norms.update({name: FeatureNorm(dim) for name in ("atoms", *kinds)})
        self.layers = nn.ModuleList(  # type: ignore[assignment]  # typed by what it holds
            PRISMLayer(options, made) for _ in range(num_layers)
        )
        self.update = made.update() if "atomistic" in experts and num_layers > 1 else None
        self.needs_lattice = isinstance(self.update, LatticeUpdate)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Sequential(nn.Linear(dim, dim // 2), nn.SiLU(), nn.Linear(dim // 2, 1))
        self.attention = AtomAttention(dim) if readout == "attention" else None
        self.angular_order = options.angular_order if options.angular else 0
        self.has_radial_angles = norm is None

    @property
    def task(self) -> str:
        """Name of the task that the model is made for (:data:`prism_plugin.tasks.TASKS`)."""
        return self.task_type

    @property
    def cutoffs(self) -> tuple[float, float]:
        """Radii of atomistic and cell edges, Å, with which its graphs are built."""
        return self.cutoff, self.cell_cutoff

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def recompute(self) -> bool:
        """Whether training computes the activations of edges anew in the backward pass in place of keeping them.

        The numbers are the same, in less than half of the memory and a tenth more time (docs/performance.md). It can be
        set at any time.
        """
        return any(module.recompute for module in self.modules() if isinstance(module, GatedMessagePassing))

    @recompute.setter
    def recompute(self, value: bool) -> None:
        if value:
            check_recompute(self.backbone)
        for module in self.modules():
            if isinstance(module, GatedMessagePassing):
                module.recompute = value

    def fusion_weights(self) -> dict[str, list[dict[str, float]]]:
        """Return the weights of the experts: a table layer x expert for atoms and for superatoms.

        Superatoms have one row less: nothing reads them after the last layer, so there is no fusion there. Experts that
        add to the features before the others (``cell="reciprocal"``, ``multiscale="residual"``) are in no fusion.
        """
        table: dict[str, list[dict[str, float]]] = {}
        of_atoms = [layer.atom_fusion for layer in self.layers]
        of_superatoms = [layer.superatom_fusion for layer in self.layers][:-1]
        for nodes, fusions in (("atoms", of_atoms), ("superatoms", of_superatoms)):
            if fusions and fusions[0].experts:
                table[nodes] = [fusion.weights() for fusion in fusions]
        return table

    def check_elements(self, elements: Iterable[int]) -> None:
        """Raise ValueError if there is an atomic number that the model does not know."""
        unknown = sorted({chemical_symbols[number] for number in elements} - set(self.element_types))
        if unknown:
            raise PrismError(
                f"unknown element{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: this model was made for "
                f"{len(self.element_types)} elements ({', '.join(self.element_types)}); remove such structures or "
                "train a model on data with these elements"
            )

    def as_batch(self, graph: Any) -> CrystalBatch:
        """Read whatever graph is given into a batch on the model's device and in its dtype.

        Args:
            graph: :class:`CrystalBatch`, :class:`CrystalGraph`, DGL heterograph (batched or not) or the PyG ``Data`` /
                ``Batch`` of matgl's converters and loaders.

        Raises:
            TypeError: if it is none of these.
            ValueError: if its cutoffs are not the model's, or it has unknown elements.
        """
        if isinstance(graph, CrystalGraph):
            graph = graph.crystals
        elif not isinstance(graph, CrystalBatch):
            if type(graph).__module__.startswith("dgl"):
                graph = CrystalBatch.from_dgl(graph)
            else:
                graph = batch_from_matgl(graph, self.element_types, self.cutoff, self.cell_cutoff)
        if graph.cutoffs != self.cutoffs:
            raise PrismError(
                f"the graph was built with cutoffs {graph.cutoff} and {graph.cell_cutoff} Å (atomistic, cell), the "
                f"model needs {self.cutoff} and {self.cell_cutoff}: build_graph(structure, model.cutoff, "
                "model.cell_cutoff)"
            )
        self.check_elements(graph.elements)
        if rare := self.rare_among(graph.elements):
            warn(rare)
        if self.neighbors:
            graph = graph.nearest(self.neighbors)
        # Counted where the lattice is, before it goes to a device, which would have to be waited for.
        if self.has_waves:
            _ = graph.waves
        if self.needs_lattice:
            _ = graph.axes
        return graph.to(self.device, self.dtype)

    def check_crystal(self, elements: Iterable[int], pbc: Sequence[bool] | np.ndarray | Tensor) -> None:
        """Raise ValueError if a crystal is none that the model can read: by its elements, or its periodic directions.

        Args:
            elements: its atomic numbers, each once.
            pbc: its periodic flags, shape ``(3,)``, on the host.
        """
        self.check_elements(elements)
        if self.needs_lattice and not all(pbc):
            raise PrismError(NOT_PERIODIC)

    def rare_among(self, elements: Iterable[int]) -> str:
        """Say which of some elements the model has hardly seen; an empty text if there is none."""
        if not self.rare_elements:
            return ""
        present = [chemical_symbols[number] for number in elements]
        rare = [f"{symbol} ({self.rare_elements[symbol]})" for symbol in present if symbol in self.rare_elements]
        return f"the model has seen few training crystals with {', '.join(rare)}: do not trust it there" if rare else ""

    def forward(self, g: Any, state_attr: Tensor | None = None, l_g: Any = None, **kwargs: Any) -> Tensor:
        """Predict the target of each crystal.

        Args:
            g: any graph that :meth:`as_batch` reads.
            state_attr: part of matgl's contract; PRISM has no state attributes and does not read it.
            l_g: part of matgl's contract (line graph); not read.
            **kwargs: part of matgl's contract; not read.

        Returns:
            Predictions in ``unit``, shape ``(crystals,)``; of a classification the probability of the second class.
            Inside matgl's ``Potential`` always the sum over the atoms: a potential needs a total energy.

        Raises:
            ValueError: if a classification is asked for an energy.
        """
        if self.task_type == "regression":
            return self.read_out(g)
        if inside_potential(g):
            raise PrismError(f"the probability of {self.target} is no energy: a Potential needs a regression")
        prediction = self.read_out(g).sigmoid()
        self.feature_dict["final"] = prediction.detach()
        return prediction

    def read_out(self, g: Any) -> Tensor:
        """Compute what the layers and the readout make of each crystal: its prediction, or its log-odds.

        Args:
            g: any graph that :meth:`as_batch` reads.

        Returns:
            Of a regression the prediction, of a classification its log-odds, shape ``(crystals,)``.
        """
        batch = self.as_batch(g)
        outputs = self.atom_outputs(batch)
        prediction = outputs.new_zeros(len(batch)).index_add(0, batch.atom_crystal, outputs)
        total = inside_potential(g)
        if self.readout != "sum" and not total:
            prediction = prediction / batch.atoms_per_crystal.to(prediction.dtype)  # Eq. 16
        if self.minimum is not None and not self.training and not total:
            prediction = prediction.clamp(min=self.minimum)
        self.feature_dict["final"] = prediction.detach()
        return prediction

    def atom_outputs(self, batch: CrystalBatch) -> Tensor:
        """Compute what the head makes of each atom, whose mean or sum is read out (PRISM Eq. 15).

        Args:
            batch: crystals as :meth:`as_batch` gives them.

        Returns:
            Shape ``(atoms,)``; with ``readout="attention"`` each is weighted already.
        """
        # Under autocast products are computed in fewer digits; the features that they are added to keep theirs.
        atoms = self.atom_encoder(batch.atomic_numbers, batch.elements).to(self.dtype)
        atoms = self._initial_norm("atoms", atoms)
        superatoms = atoms.new_zeros(len(batch), 0)
        counts = None
        if self.has_mean_superatom:
            counts = batch.atoms_per_crystal.to(atoms.dtype).unsqueeze(1)
            superatoms = self.superatom_mean(mean_of_atoms(atoms, batch.atom_crystal, counts)).to(self.dtype)
        elif self.has_superatom:
            superatoms = self.superatom_encoder(
                batch.atomic_numbers, batch.atom_crystal, len(batch), batch.elements
            ).to(self.dtype)
        edges: dict[str, Edges] = {}
        angles = None
        if "atomistic" in self.expert_names:
            vector = batch.edge_vector
            reach = None if self.neighbors else self.cutoff
            edges["atomistic"] = encode_edges(self.atomistic_encoder, vector, batch.edge_index, reach)
            angles = self._angles(vector, batch) if self.angular_order else None
        if self.has_translations:
            loops = batch.cell_crystal.expand(2, -1)
            edges["cell"] = encode_edges(self.cell_encoder, batch.cell_vector, loops, self.cell_cutoff)
        for name, given in edges.items():
            edges[name] = replace(given, features=self._initial_norm(name, given.features))
        waves = None
        if self.has_waves:
            waves = wave_geometry(batch.waves, batch.lattice, batch.pbc, batch.positions, batch.atom_crystal)

        # What the search for minimum images needs is the same in every layer.
        images = image_table(batch.lattice, batch.reduction) if "similarity" in self.expert_names else None
        features: dict[str, Any] = {"embedding": {"node_feat": atoms.detach(), "superatom_feat": superatoms.detach()}}
        for number, layer in enumerate(self.layers, start=1):
            last = number == len(self.layers)
            atoms, superatoms, edges = layer(atoms, superatoms, edges, batch, last, images, waves, counts, angles)
            if number == 1 and self.update is not None:
                of_edges = edges["atomistic"], vector, batch, self.atomistic_encoder
                atoms, edges["atomistic"] = self.update(atoms, *of_edges)
            features[f"gc_{number}"] = {"node_feat": atoms.detach(), "superatom_feat": superatoms.detach()}

        outputs = self.head(self.dropout(atoms)).squeeze(-1).to(self.dtype) * self.std + self.mean
        if self.attention is not None:
            outputs = outputs * self.attention(atoms, batch.atom_crystal, len(batch))
        if self._element_refs is not None:
            outputs = outputs + self._element_refs.to(outputs.dtype).index_select(0, batch.atomic_numbers)
        features["readout"] = outputs.detach()
        self.feature_dict = features
        return outputs

    def _angles(self, vector: Tensor, batch: CrystalBatch) -> EdgeAngles:
        distance = vector.norm(dim=1)
        harmonics = real_harmonics(vector / distance.unsqueeze(1), self.angular_order)
        encoder = cast("EdgeEncoder", self.atomistic_encoder)  # angles are CartNet's
        radial = encoder.rbf(distance) if self.has_radial_angles else None
        return EdgeAngles.of(harmonics, batch.neighbors, batch.reverse, radial)

    @torch.no_grad()
    def calibrate(self, structures: Sequence[Any]) -> None:
        """Measure the scale of the angular blocks on some structures, once, before training.

        Only a model with ``angular`` and ``norm=None`` has such scales, one in each layer; they are saved with it.

        Args:
            structures: the first frames of the training data, say 32; the neighbors' weights have the size 1 there.
        """
        blocks = [module for module in self.modules() if isinstance(module, AngularBlock) and module.norm is None]
        graphs = [build_graph(one, *self.cutoffs) for one in structures] if blocks else []
        try:
            for block in blocks:
                block.calibrating = True
            if graphs:
                with evaluation(self):
                    self(batch_graphs(graphs))
        finally:
            for block in blocks:
                block.calibrating = False

    def _initial_norm(self, name: str, features: Tensor) -> Tensor:
        return self.initial_norms[name](features) if name in self.initial_norms else features

    @torch.no_grad()
    def predict_graphs(
        self, graphs: Sequence[CrystalGraph], batch_size: int = 64, progress: str | bool = False
    ) -> Tensor:
        """Predict in eval mode, in batches of at most ``batch_size`` crystals and 200,000 edges.

        Args:
            graphs: crystals, built with the model's cutoffs.
            batch_size: most crystals of one batch.
            progress: a text to show beside a progress bar; False shows none.

        Returns:
            Predictions in the order of ``graphs``, shape ``(crystals,)``; the model's mode is restored.

        Raises:
            MemoryError: if one crystal alone does not fit.
        """
        return self._over(graphs, lambda crystals: self(crystals), batch_size, progress)

    @torch.no_grad()
    def describe_graphs(
        self, graphs: Sequence[CrystalGraph], batch_size: int = 64, progress: str | bool = False
    ) -> tuple[Tensor, list[np.ndarray]]:
        """Predict as :meth:`predict_graphs`, and describe the crystals.

        Returns:
            Predictions, shape ``(crystals,)``, and :meth:`domain_features` of each.
        """
        features: list[np.ndarray] = []

        def evaluate(crystals: CrystalBatch) -> Tensor:
            values = self(crystals)
            features.extend(self.domain_features(crystals))
            return values

        return self._over(graphs, evaluate, batch_size, progress), features

    def _over(
        self,
        graphs: Sequence[CrystalGraph],
        evaluate: Callable[[CrystalBatch], Tensor],
        batch_size: int,
        progress: str | bool,
    ) -> Tensor:
        answers: list[Tensor] = []
        with evaluation(self), tqdm(total=len(graphs), desc=str(progress), unit="crystal", disable=not progress) as bar:
            for batch in split_graphs(graphs, batch_size):
                answers += halved(lambda crystals: [evaluate(crystals)], batch)
                bar.update(len(batch))
        return torch.cat(answers) if answers else torch.zeros(0, dtype=self.dtype, device=self.device)

    def last_descriptors(self, batch: CrystalBatch, per_atom: bool = False) -> Tensor:
        """Return what the layers made of the crystals that were computed last.

        Args:
            batch: these crystals.
            per_atom: whether of each atom, or the mean of each crystal's.

        Returns:
            Features after the last layer, shape ``(atoms, dim)`` or ``(crystals, dim)``, detached.
        """
        atoms = self.feature_dict[f"gc_{len(self.layers)}"]["node_feat"]
        if per_atom:
            return atoms
        of_crystals = batch.sizes[:, 0]  # on the host, wherever the batch is
        counts = send(of_crystals, atoms.device).to(atoms.dtype).unsqueeze(1)
        return mean_of_atoms(atoms, crystal_of_rows(of_crystals, atoms.device), counts)

    def domain_features(self, batch: CrystalBatch) -> list[np.ndarray]:
        """Return what a domain compares of the crystals that were computed last.

        Args:
            batch: these crystals.

        Returns:
            :meth:`last_descriptors` of each crystal, shape ``(dim,)``; of a potential of its atoms, ``(atoms, dim)``.
        """
        found = self.last_descriptors(batch, self.domain_of_atoms).double().cpu().numpy()
        return np.split(found, np.cumsum(batch.sizes[:, 0])[:-1]) if self.domain_of_atoms else list(found)

    @torch.no_grad()
    def descriptors(self, structures: Sequence[Any], per_atom: bool = False, batch_size: int = 64) -> list[Tensor]:
        """Describe structures by the features of their atoms after the last layer.

        Args:
            structures: pymatgen ``Structure`` / ``Molecule`` or ASE ``Atoms``.
            per_atom: whether of each atom; else the mean over the atoms.
            batch_size: most crystals of one batch.

        Returns:
            One tensor for each structure, of shape ``(atoms, dim)`` or ``(dim,)``; invariant under permutations of the
            atoms, and as invariant under rotation as the model is (exactly with ``directions=False``).

        Raises:
            ValueError: if a structure is bad (see :func:`~prism_plugin.build_graph`) or has an unknown element.

        Example:
            >>> from ase.build import bulk
            >>> [tuple(one.shape) for one in PRISM(dim=8, num_layers=1).descriptors([bulk("Si")], per_atom=True)]
            [(2, 8)]
        """
        graphs = [build_graph(one, *self.cutoffs) for one in structures]
        for graph in graphs:
            self.check_crystal(graph.crystals.elements, graph.pbc)
        found: list[Tensor] = []

        def evaluate(crystals: CrystalBatch) -> list[Tensor]:
            self(crystals)
            features = self.last_descriptors(crystals, per_atom)
            return list(features.split(crystals.sizes[:, 0].tolist()) if per_atom else features)

        with evaluation(self):
            for batch in split_graphs(graphs, batch_size):
                found += halved(evaluate, batch)
        return found

    @torch.no_grad()
    def predict_structure(
        self, structure: Any, state_attr: Tensor | None = None, graph_converter: Any = None, batch_size: int = 64
    ) -> Tensor:
        """Predict the target of one structure or of a list, whatever mode the model is in.

        Args:
            structure: pymatgen ``Structure`` / ``Molecule`` or ASE ``Atoms``, or a list of them.
            state_attr: part of matgl's contract; not read.
            graph_converter: a matgl converter to use in place of :func:`~prism_plugin.build_graph`.
            batch_size: most crystals of one batch.

        Returns:
            A scalar tensor for one structure, shape ``(structures,)`` for a list.

        Raises:
            ValueError: if a structure is bad (see :func:`~prism_plugin.build_graph`) or has an unknown element.
        """
        structures = list(structure) if isinstance(structure, (list, tuple)) else [structure]
        if graph_converter is not None:
            with evaluation(self):
                answers = [self(graph_converter.get_graph(one)) for one in structures]
            predictions = torch.cat([torch.zeros(0, dtype=self.dtype, device=self.device), *answers])
        else:
            graphs = [build_graph(one, *self.cutoffs) for one in structures]
            for graph in graphs:
                self.check_crystal(graph.crystals.elements, graph.pbc)
            predictions = self.predict_graphs(graphs, batch_size)
        return predictions if isinstance(structure, (list, tuple)) else predictions[0]
