"""The options of models and optimizers, with their types, bounds, defaults and meanings.

Nothing here needs torch. With :mod:`prism_plugin.settings` this is the whole schema: the command line, config files,
presets, Matbench's configurations, the rules of resuming and docs/options.md derive from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import annotated_types

from prism_plugin.errors import PrismError
from prism_plugin.schema import (
    Flag,
    Fraction,
    NonNegative,
    Number,
    Positive,
    Text,
    Texts,
    Whole,
    described,
    option,
    options_class,
)

__all__ = [
    "EXPERTS",
    "INVARIANT",
    "OF_CARTNET",
    "OPTIMIZER_OPTIONS",
    "ModelOptions",
    "PotentialOptions",
    "check_recompute",
    "optimizer_options",
]

EXPERTS = ("atomistic", "cell", "multiscale", "similarity")

# Numbers of a model are bounded, so that a small file cannot ask for all memory: far above what anybody trains.
_AtLeast1 = Annotated[Whole, annotated_types.Ge(1), annotated_types.Le(4096)]
_Count = Annotated[Whole, annotated_types.Ge(1)]
_Layers = Annotated[Whole, annotated_types.Ge(1), annotated_types.Le(64)]
_Width = Annotated[Whole, annotated_types.Ge(2), annotated_types.Le(4096)]
_Radius = Annotated[Positive, annotated_types.Le(100)]
_Refs = Annotated[tuple[Number, ...], *Texts.__metadata__] | None
_Betas = tuple[Fraction, Fraction]
_AtomEncoder = Literal["prism", "cartnet", "elements", "embedding"]
_Backbone = Literal["cartnet", "icomformer", "ecomformer"]
_Cell = Literal["translations", "reciprocal"]
_Multiscale = Literal["fused", "residual"]
_Channels = Annotated[Whole, annotated_types.Ge(0), annotated_types.Le(4096)]
_Degree = Literal[1, 2, 3]

# Options that models and potentials share, each said once.
_ELEMENT_TYPES = option("symbols of the elements that the model knows; None means all 118", default=None)
_CUTOFF = option("radius of the atomistic edges, Å", default=5.0)
_CELL_CUTOFF = option("radius of the cell edges, Å", default=15.0)
_SIMILARITY_CUTOFF = option("largest distance ||h_i - h_j|| of a similarity edge", default=1.0)
_ATOM_ENCODER = option(
    "prism (Eq. 4), cartnet, elements: with properties of the elements, or embedding alone", default="prism"
)
_BACKBONE = option("the network that gives the experts their edges and messages", default="cartnet")
# Arguments of a PRISM of invariant features, with every expert that starts at zero; lists as in files of settings.
INVARIANT: Mapping[str, Any] = {
    "experts": ["atomistic", "cell", "multiscale"],
    "atom_encoder": "elements",
    "rbf_scale": "even",
    "directions": False,
    "initial_norm": True,
    "cell": "reciprocal",
    "multiscale": "residual",
}
# Arguments of CartNet's edges, as other backbones leave them.
OF_CARTNET: Mapping[str, Any] = {"rbf_scale": "cutoff", "directions": True, "angular": 0}
_DIRECTIONS = option("whether edges know their direction (Eq. 8), or only their length", default=True)
_CELL = option(
    "the cell expert: the paper's lattice translations, or waves in reciprocal space", default="translations"
)
_MULTISCALE = option(
    "the multiscale expert: the paper's, or one that starts at zero and adds to the atoms", default="fused"
)
_ANGULAR = option("channels of a block that gives edges the angles between them; 0: none", default=0)
_ANGULAR_ORDER = option("largest degree of its Legendre polynomials", default=3)


def _check_elements(symbols: tuple[str, ...] | None) -> None:
    if symbols is None:
        return
    from ase.data import atomic_numbers

    unknown = [symbol for symbol in symbols if atomic_numbers.get(symbol, 0) < 1]
    if len(set(symbols)) < len(symbols):
        raise PrismError(f"element_types names an element twice: {symbols}")
    if unknown or not symbols:
        raise PrismError(f"element_types must be chemical symbols, got {unknown or 'none'}")


def _check_experts(experts: tuple[str, ...]) -> None:
    if not experts or set(experts) - set(EXPERTS) or len(set(experts)) < len(experts):
        raise PrismError(f"experts must be some of {EXPERTS}, each once, got {experts}")


@options_class
class ModelOptions:
    """Arguments of :class:`~prism_plugin.PRISM`, in its order."""

    called: ClassVar[str] = "model argument"

    element_types: Texts | None = _ELEMENT_TYPES
    dim: _Width = option("width of all features", default=256)
    num_layers: _Layers = option("number of layers", default=4)
    num_rbf: _AtLeast1 = option("number of radial basis functions", default=64)
    cutoff: _Radius = _CUTOFF
    cell_cutoff: _Radius = _CELL_CUTOFF
    similarity_cutoff: Positive = _SIMILARITY_CUTOFF
    experts: Texts = option("any of atomistic, cell, multiscale, similarity", default=EXPERTS)
    atom_encoder: _AtomEncoder = _ATOM_ENCODER
    rbf_scale: Literal["cutoff", "paper", "even"] = option("how the radial functions are spread", default="cutoff")
    superatom_readout: Literal["sum", "mean"] = option("sum (Eq. 3) or mean over the atoms", default="sum")
    multiscale_aggregation: Literal["sum", "mean"] = option("sum or mean of the messages to a superatom", default="sum")
    similarity_envelope: Literal["feature", "cosine"] | None = option("envelope of similarity edges", default="feature")
    fusion: Literal["scalar", "gated"] = option("how the experts' answers are joined", default="scalar")
    readout: Literal["mean", "sum", "attention"] = option(
        "mean over the atoms (Eq. 16), sum for an extensive target, or attention: a weighted mean", default="mean"
    )
    dropout: Fraction = option("rate between the final atom features and the head", default=0.0)
    target: Text = option("name of the predicted property", default="target")
    unit: Text = option("its unit", default="")
    mean: Number = option("added to each atom's output after scaling: mean of the training targets", default=0.0)
    std: Positive = option("factor of each atom's output: standard deviation of the training targets", default=1.0)
    task_type: Literal["regression", "classification"] = option(
        "what is predicted: a number or a class", default="regression"
    )
    similarity_image: Literal["nearest", "blended"] = option(
        "which image gives a similarity edge's geometry", default="nearest"
    )
    norm: Literal["batch"] | None = option("BatchNorm, or none, which forces need", default="batch")
    element_refs: _Refs = option("added to the output of each atom, one number for each of element_types", default=None)
    directions: Flag = _DIRECTIONS
    initial_norm: Flag = option("BatchNorm of the features of atoms and edges before the first layer", default=False)
    cell: _Cell = _CELL
    multiscale: _Multiscale = _MULTISCALE
    angular: _Channels = _ANGULAR
    angular_order: _Degree = _ANGULAR_ORDER
    minimum: Number | None = option("no prediction is below, as 0 for a band gap; None: no bound", default=None)
    backbone: _Backbone = _BACKBONE
    neighbors: _Channels = option("nearest neighbors of an atom that have edges, within cutoff; 0: all", default=0)

    def __post_init__(self) -> None:
        """Check what concerns several values."""
        _check_elements(self.element_types)
        _check_experts(self.experts)
        number = 118 if self.element_types is None else len(self.element_types)
        if self.element_refs is not None and len(self.element_refs) != number:
            raise PrismError(f"{len(self.element_refs)} element_refs are given for {number} element_types")
        if self.task_type == "classification" and self.readout == "sum":
            raise PrismError("readout 'sum' is for extensive targets; a classification needs 'mean'")
        if self.minimum is not None and self.task_type != "regression":
            raise PrismError("minimum is for a regression; a probability has its bounds")
        if self.angular and "atomistic" not in self.experts:
            raise PrismError("angular is of the atomistic edges: it needs the atomistic expert")
        if self.neighbors and "atomistic" not in self.experts:
            raise PrismError("neighbors is of the atomistic edges: it needs the atomistic expert")
        if self.neighbors and self.angular:
            raise PrismError("angular weighs edges by their envelope, which neighbors takes away: choose one of them")
        if self.backbone != "cartnet":
            if given := [name for name, default in OF_CARTNET.items() if getattr(self, name) != default]:
                raise PrismError(
                    f"{' and '.join(given)}: of CartNet's edges; the backbone {self.backbone!r} has its own"
                )
            if self.num_rbf < 2:
                raise PrismError(f"the backbone {self.backbone!r} needs num_rbf of 2 at least")
        if self.initial_norm and self.norm is None:
            raise PrismError("initial_norm=True is a BatchNorm, and norm=None means none; choose one of them")


@options_class
class PotentialOptions:
    """Arguments of :class:`~prism_plugin.PRISMPotential`, in its order; the model in it checks them together."""

    called: ClassVar[str] = "model argument"

    element_types: Texts | None = _ELEMENT_TYPES
    dim: _Width = option("width of all features", default=32)
    num_layers: _Layers = option("number of layers", default=2)
    num_rbf: _AtLeast1 = option("number of radial basis functions", default=32)
    cutoff: _Radius = _CUTOFF
    cell_cutoff: _Radius = _CELL_CUTOFF
    similarity_cutoff: Positive = _SIMILARITY_CUTOFF
    experts: Texts = option("any of atomistic, cell, multiscale, similarity", default=("atomistic",))
    std: Positive = option(
        "factor of each atom's output, eV: root mean square of the training forces, times 1 Å", default=1.0
    )
    element_refs: _Refs = option("energy of an atom of each of element_types, eV", default=None)
    atom_encoder: _AtomEncoder = _ATOM_ENCODER
    directions: Flag = _DIRECTIONS
    cell: _Cell = _CELL
    multiscale: _Multiscale = _MULTISCALE
    angular: _Channels = _ANGULAR
    angular_order: _Degree = _ANGULAR_ORDER
    repulsion: Literal["zbl"] | None = option("pair energy at distances that no training crystal has", default=None)
    backbone: _Backbone = _BACKBONE

    def __post_init__(self) -> None:
        """Refuse what no potential can be."""
        if self.backbone == "icomformer":
            raise PrismError(
                "no potential is made with the backbone 'icomformer': its edges look at the shortest lattice vectors, "
                "so that the energy jumps where another one becomes the shortest and is not that of n cells for n "
                "copies of a cell; take 'cartnet' or 'ecomformer'"
            )


@options_class
class AdamWScheduleFreeOptions:
    """AdamW-ScheduleFree (Defazio et al., NeurIPS 2024), with a warm-up over 5 % of the steps, at most 500."""

    lr: Positive = option("learning rate", default=1e-3)
    betas: _Betas = option("decay of the means of gradients and of their squares", default=(0.9, 0.999))
    weight_decay: NonNegative = option("decay of the weights", default=0.0)


@options_class
class AdamOneCycleOptions:
    """Adam with a OneCycle schedule (PRISM supplement, Training Details)."""

    lr: Positive = option("largest learning rate of the schedule", default=1e-3)
    betas: _Betas = option("decay of the means of gradients and of their squares", default=(0.9, 0.999))
    weight_decay: NonNegative = option("decay of the weights", default=0.0)


@options_class
class MuonOptions:
    """Muon for matrices, AdamW for the rest, with a OneCycle schedule."""

    lr: Positive = option("largest learning rate of the schedule", default=1e-3)
    betas: _Betas = option("of AdamW: decay of the means of gradients and of their squares", default=(0.9, 0.999))
    weight_decay: NonNegative = option("decay of the weights", default=0.0)


@options_class
class SGDOptions:
    """SGD with Nesterov's momentum and a OneCycle schedule."""

    lr: Positive = option("largest learning rate of the schedule", default=0.1)
    weight_decay: NonNegative = option("decay of the weights", default=0.0)
    momentum: Fraction = option("of Nesterov", default=0.9)


@options_class
class ELRAOptions:
    """ELRA, evaluated at the mean of the iterates (docs/elra.md)."""

    lr: Positive = option("alpha before the first step; it adapts by itself", default=1e-5)
    weight_decay: Positive = option("factor on the weights in every update; 1 is off", default=1.0)
    kappa: Flag | Literal["auto"] = option("the correction of Eq. 4 for noise", default="auto")
    growth: Positive | Literal["adaptive"] = option("largest growth of alpha in a step", default="adaptive")
    max_step: Positive | None = option("largest length of a step; None is off", default=2.0)
    min_step: Positive | None = option("smallest length of a step while it warms up; None is off", default=0.1)
    retrace: Flag = option("go back where the loss rises too much", default=True)
    low_memory: Flag = option("keep the last point only", default=False)
    boost: Flag = option("evaluate at the mean of the accepted iterates of a cycle", default=True)
    accumulate: _Count = option("micro-batches per update at the start", default=1, of_callback=True)
    dynamic: Flag = option("let their number follow the losses", default=True, of_callback=True)
    gradient_decay: Flag = option("scale gradients with their number", default=False, of_callback=True)


@options_class
class RodFlowOptions:
    """Rod flow of one of nine optimizers (docs/rod_flow.md); four gradients a step, and the model is the center."""

    like: Literal[
        "gd", "heavy-ball", "nesterov", "scalar-rmsprop", "rmsprop", "scalar-adam", "adam", "scalar-nadam", "nadam"
    ] = option("the optimizer whose flow it is", default="adam")
    lr: Positive = option("learning rate of that optimizer", default=1e-3)
    beta1: Fraction = option("decay of the mean of gradients", default=0.9)
    beta2: Fraction = option("decay of the mean of squared gradients", default=0.999)
    eps: NonNegative = option("added to the root of the latter", default=1e-8)
    substeps: _Count = option("Euler steps of the flow per optimizer step", default=2)
    form: Literal["signed", "outer"] = option("of the rod", default="signed")
    warmup: _Count = option("optimizer steps before the flow begins", default=10)
    floor: Flag = option("let rounding open a closed rod", default=True)


# What prism train --optimizer knows by name, and whether its learning rate follows a schedule over the epochs.
OPTIMIZER_OPTIONS: Mapping[str, tuple[type, bool]] = {
    "adam-onecycle": (AdamOneCycleOptions, True),
    "adamw-schedulefree": (AdamWScheduleFreeOptions, False),
    "elra": (ELRAOptions, False),
    "muon": (MuonOptions, True),
    "rod-flow": (RodFlowOptions, False),
    "sgd": (SGDOptions, True),
}


def check_recompute(backbone: str) -> None:
    """Raise ValueError if the messages of a backbone cannot be computed anew in the backward pass."""
    if backbone != "cartnet":
        raise PrismError(f"recompute is of CartNet's messages, not of the backbone {backbone!r}")


def optimizer_options(name: str, options: Mapping[str, Any], schedule: str | None = None) -> Any:
    """Make the options of an optimizer of the table.

    Raises:
        ValueError: if an option is unknown or its value is not what it should be, or there is a schedule beside.
    """
    if schedule is not None:
        raise PrismError(f"schedule is for an optimizer given by its class; {name!r} has its own, or needs none")
    cls = OPTIMIZER_OPTIONS[name][0]
    known = list(described(cls))
    for option_name in options:
        if option_name not in known:
            raise PrismError(f"the optimizer {name!r} has no option {option_name!r}; choose one of: {', '.join(known)}")
    return cls(**options)
