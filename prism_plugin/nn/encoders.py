"""Atoms, superatom and edges -> vectors (PRISM Eq. 1-8, 10).

Turn atomic numbers and edge geometry into features of width ``dim``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prism_plugin.devices import send
from prism_plugin.errors import PrismError
from prism_plugin.nn.autograd_mode import as_weight
from prism_plugin.nn.element_table import ELEMENT_FEATURES, element_features
from prism_plugin.nn.linear import linear
from prism_plugin.nn.silu import silu
from prism_plugin.nn.tiling import in_tiles

__all__ = ["AtomEncoder", "EdgeEncoder", "RadialBasis", "SuperatomEncoder", "cosine_envelope", "feature_envelope"]

# Beside the other radial functions of a distance exp(-40) = 4e-18 is 0 in all but name.
_SMALLEST_EXPONENT = -40.0
# Rows of every embedding table: atomic numbers 1 to 118, and an unused row 0.
NUM_EMBEDDINGS = 119


def cosine_envelope(distance: Tensor, cutoff: float) -> Tensor:
    """Fade edges smoothly to zero at the cutoff (PRISM Eq. 10).

    Args:
        distance: edge lengths in Å, shape ``(edges,)``.
        cutoff: radius in Å at which the weight reaches zero.

    Returns:
        Weights between 0 and 1, shape ``(edges,)``; 0 at and beyond ``cutoff``.

    Raises:
        ValueError: if ``cutoff`` is not positive.

    Example:
        >>> cosine_envelope(torch.tensor([0.0, 5.0, 7.0]), cutoff=5.0)
        tensor([1., 0., 0.])
    """
    if cutoff <= 0:
        raise PrismError(f"cutoff must be positive, got {cutoff}")
    weight = 0.5 * (torch.cos(math.pi * distance / cutoff) + 1.0)
    return torch.where(distance < cutoff, weight, torch.zeros_like(weight))


def feature_envelope(squared_distance: Tensor, cutoff: float) -> Tensor:
    """Fade similarity edges to zero where the feature distance reaches the threshold (Eq. 10 on ||h_i - h_j||).

    Takes the squared distance: the cosine of a square root is smooth in it, also at 0, where same atoms meet and the
    distance itself has no derivative. Our reading: the paper does not say which envelope similarity edges have; see
    decisions #3.

    Args:
        squared_distance: shape ``(edges,)``, not negative.
        cutoff: threshold on the (unsquared) distance.

    Returns:
        Weights between 0 and 1, shape ``(edges,)``.

    Example:
        >>> feature_envelope(torch.tensor([0.0, 0.25, 1.0]), cutoff=1.0)
        tensor([1.0000, 0.5000, 0.0000])
    """
    x = squared_distance * (math.pi / cutoff) ** 2
    small = x < 1e-2
    # cos(sqrt(x)) = 1 - x/2! + x^2/4! - ...: five terms are exact to 1e-17 below 1e-2.
    series = 1 - x / 2 * (1 - x / 12 * (1 - x / 30 * (1 - x / 56)))
    root = torch.sqrt(torch.where(small, torch.ones_like(x), x))
    weight = 0.5 * (torch.where(small, series, torch.cos(root)) + 1.0)
    return torch.where(squared_distance < cutoff**2, weight, torch.zeros_like(weight))


def index_elements(atomic_numbers: Tensor, elements: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Number the elements of a batch.

    Args:
        atomic_numbers: shape ``(atoms,)``.
        elements: atomic numbers of the elements among them, on the host, each once.

    Returns:
        ``elements`` as a tensor, and the place of each atom's element in it, shape ``(atoms,)``.
    """
    present = send(np.array(elements, dtype=np.int64), atomic_numbers.device)
    place = present.new_zeros(NUM_EMBEDDINGS)
    place[present] = torch.arange(len(elements), device=present.device)
    return present, place.index_select(0, atomic_numbers)


class RadialBasis(nn.Module):
    """Distances -> radial basis: rbf_k(d) = exp(-beta (exp(-a d) - mu_k)^2) (PRISM Eq. 7).

    Args:
        cutoff: largest distance in Å.
        num_rbf: number K of functions.
        scale: ``"cutoff"`` takes a = 5 / cutoff; ``"paper"`` takes a = 1 as printed, which cannot tell distances
            beyond about 10 Å apart (decisions #2); ``"even"`` takes a = 1 / cutoff, whose functions are spread almost
            evenly over the distances, where the others have most of theirs below any bond length (#60).
    """

    centers: Tensor

    def __init__(self, cutoff: float, num_rbf: int = 64, scale: str = "cutoff") -> None:
        super().__init__()
        self.decay = {"cutoff": 5.0 / cutoff, "paper": 1.0, "even": 1.0 / cutoff}[scale]
        first = math.exp(-self.decay * cutoff)
        self.width = (2.0 / num_rbf * (1.0 - first)) ** -2
        self.register_buffer("centers", torch.linspace(first, 1.0, num_rbf, dtype=torch.float64), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """Distances of shape ``(edges,)`` -> values of shape ``(edges, num_rbf)``."""
        decayed = torch.exp(-self.decay * distance).unsqueeze(-1)
        exponent = -self.width * (decayed - self.centers.to(distance.dtype)) ** 2
        # Products with smaller numbers end below the smallest normal one, where a processor takes many times longer.
        return torch.exp(exponent.clamp(min=_SMALLEST_EXPONENT))


class EdgeEncoder(nn.Module):
    """Edge geometry -> edge features, e = MLP([rbf(d) || v / d]) (PRISM Eq. 8).

    Args:
        dim: width of the features.
        cutoff: largest distance in Å.
        num_rbf: number of radial functions.
        rbf_scale: of :class:`RadialBasis`.
        directions: whether the MLP reads the direction v / d; without it features are the same for a turned crystal.
    """

    def __init__(
        self, dim: int, cutoff: float, num_rbf: int = 64, rbf_scale: str = "cutoff", directions: bool = True
    ) -> None:
        super().__init__()
        self.directions = directions
        self.rbf = RadialBasis(cutoff, num_rbf, rbf_scale)
        inputs = num_rbf + 3 * directions
        self.mlp = nn.Sequential(nn.Linear(inputs, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.SiLU())

    def forward(self, vector: Tensor, distance: Tensor) -> Tensor:
        """Vectors ``(edges, 3)`` and their lengths ``(edges,)``, Å -> features ``(edges, dim)``."""
        weights = tuple(as_weight(weight) for weight in self.mlp.parameters())  # of both linear layers, in order
        if not self.directions:
            return in_tiles(self._encode_distance, (distance,), weights, len(weights[0]))
        return in_tiles(self._encode, (vector, distance), weights, len(weights[0]))

    def _encode(self, vector: Tensor, distance: Tensor, *weights: Tensor) -> Tensor:
        rows = torch.cat([self.rbf(distance), vector / distance.unsqueeze(-1)], dim=-1)
        return self._features(rows, *weights)

    def _encode_distance(self, distance: Tensor, *weights: Tensor) -> Tensor:
        return self._features(self.rbf(distance), *weights)

    @staticmethod
    def _features(rows: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        features = silu(linear(silu(linear(rows, first, first_bias)), second, second_bias))
        return features.to(rows.dtype)  # under autocast products are shorter, features are not


class AtomEncoder(nn.Module):
    """Atomic numbers -> atom features, h = MLP(Emb(Z)) (PRISM Eq. 4).

    Args:
        dim: width of the features.
        kind: ``"prism"`` for Eq. 4; ``"cartnet"`` for CartNet's own encoder: an embedding of width 2 dim with a bias,
            SiLU, Linear 2 dim -> dim, SiLU; ``"elements"`` for the same with properties of the element beside its
            embedding, h = MLP(Emb(Z) + b + W_f phi(Z)) with phi of :func:`~prism_plugin.nn.element_table
            .element_features`. Our own: elements that training has hardly seen borrow from their neighbors;
            ``"embedding"`` for Emb(Z) alone, as ComFormer has it.
    """

    features: Tensor

    def __init__(self, dim: int, kind: str = "prism") -> None:
        super().__init__()
        self.kind = kind
        if kind == "prism":
            self.embedding = nn.Embedding(NUM_EMBEDDINGS, dim)
            self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.SiLU())
        elif kind == "embedding":
            self.embedding = nn.Embedding(NUM_EMBEDDINGS, dim)
            self.mlp = nn.Sequential()
        else:
            self.embedding = nn.Embedding(NUM_EMBEDDINGS, 2 * dim)
            self.bias = nn.Parameter(torch.zeros(2 * dim))
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(2 * dim, dim), nn.SiLU())
        if kind == "elements":
            self.of_features = nn.Linear(ELEMENT_FEATURES, 2 * dim, bias=False)
            self.register_buffer("features", torch.tensor(element_features()), persistent=False)

    def forward(self, atomic_numbers: Tensor, elements: Sequence[int]) -> Tensor:
        """Encode atoms, each element once.

        Args:
            atomic_numbers: shape ``(atoms,)``.
            elements: atomic numbers of the elements among them, ascending.

        Returns:
            Features, shape ``(atoms, dim)``.
        """
        present, element = index_elements(atomic_numbers, elements)
        embedded = self.embedding(present)
        if self.kind == "elements":
            features = self.features.index_select(0, present).to(embedded.dtype)
            embedded = embedded + self.bias + self.of_features(features)
        if self.kind == "cartnet":
            embedded = embedded + self.bias
        return self.mlp(embedded).index_select(0, element)


class SuperatomEncoder(nn.Module):
    """All atoms of a crystal -> the superatom's first feature: self-attention, then the sum (PRISM Eq. 1-3).

    Atoms of one element have equal queries, keys and values, so attention runs over the distinct elements of each
    crystal with their counts as weights: the same numbers as over all atoms, at a cost that does not grow with them.

    Args:
        dim: width of the features.
        readout: ``"sum"`` (Eq. 3) or ``"mean"`` over the atoms.
    """

    def __init__(self, dim: int, readout: str = "sum") -> None:
        super().__init__()
        self.readout = readout
        self.embedding = nn.Embedding(NUM_EMBEDDINGS, dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, atomic_numbers: Tensor, atom_crystal: Tensor, crystals: int, elements: Sequence[int]) -> Tensor:
        """Encode crystals by their atoms.

        Args:
            atomic_numbers: shape ``(atoms,)``.
            atom_crystal: crystal of each atom, shape ``(atoms,)``.
            crystals: number of crystals.
            elements: atomic numbers of the elements among the atoms, ascending.

        Returns:
            Features, shape ``(crystals, dim)``.
        """
        present, element = index_elements(atomic_numbers, elements)
        features = self.embedding(present)
        number = len(elements)
        ones = features.new_ones(len(atomic_numbers))
        count = features.new_zeros(crystals * number).index_add(0, atom_crystal * number + element, ones)
        count = count.view(crystals, number)
        # Eq. 1-2 with count_t atoms of species t: alpha_st = count_t exp(q_s k_t / sqrt(dim)) / sum_u ...; taking
        # the logarithm of the count into the exponent lets softmax do it, an absent species has log 0.
        logits = self.query(features) @ self.key(features).T / math.sqrt(features.shape[-1])
        attention = torch.softmax(logits + torch.log(count).unsqueeze(1), dim=-1)
        weight = (count.unsqueeze(1) @ attention.to(count.dtype)).squeeze(1)  # of all atoms together, on each species
        total = weight @ self.value(features).to(weight.dtype)
        return total if self.readout == "sum" else total / count.sum(dim=1, keepdim=True)
