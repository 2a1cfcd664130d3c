"""iComFormer's and eComFormer's parts in words of their description: loops over edges, concatenations as written.

Nothing is taken from ``prism_plugin`` but the weights. Tensor products are written out with Legendre polynomials of the
angle between two edges (addition theorem) in place of spherical harmonics.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import prism_reference as prism
from tests.reference.accuracy_reference import legendre


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.log1p(torch.exp(x))


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """W x + b."""
    return layer.weight @ x + layer.bias


def mlp(block: nn.Module, *parts: Tensor) -> Tensor:
    """Linear of a concatenation, SiLU, Linear."""
    return apply(block.last, prism.silu(apply(block.first, torch.cat(parts))))


def gaussians(x: Tensor, first: float, last: float, count: int) -> Tensor:
    """Equally spaced Gaussians whose exponent is the squared distance over the spacing."""
    spacing = (last - first) / (count - 1)
    return torch.stack([torch.exp(-((x - first - k * spacing) ** 2) / spacing) for k in range(count)])


def encode(encoder: nn.Module, d: Tensor, num_rbf: int) -> Tensor:
    """Features of an edge, or of the length of a lattice vector."""
    return softplus(apply(encoder.project, gaussians(-0.75 / d, -4.0, 0.0, num_rbf)))


def nearest(edges: list[tuple[int, int, np.ndarray]], number: int) -> list[tuple[int, int, np.ndarray]]:
    """Of each receiver the edges as long as the number-th at most (0.001 Å more)."""
    kept = []
    for edge in edges:
        lengths = sorted(np.linalg.norm(vector) for i, _, vector in edges if i == edge[0])
        if np.linalg.norm(edge[2]) <= lengths[min(number, len(lengths)) - 1] + 1e-3:
            kept.append(edge)
    return kept


def convolution(
    block: nn.Module,
    h: list[Tensor],
    edges: list[tuple[int, int, Tensor, Tensor]],
    training: bool,
    joins: None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """h_i' = Softplus(h_i + BN(Linear(sum_j sigmoid(BN(q_i key_ij / sqrt(d))) msg_ij))); edges stay."""
    q, k, v = ([apply(layer, h_i) for h_i in h] for layer in (block.query, block.key, block.value))
    attention, messages = [], []
    for i, j, e, _ in edges:
        edge = apply(block.edge, e)
        attention.append(q[i] * mlp(block.key_mlp, k[i], k[j], edge) / math.sqrt(len(edge)))
        messages.append(mlp(block.message_mlp, v[i], v[j], edge))
    attention = prism.batchnorm(block.gate_norm, attention, training) if attention else []
    total = [torch.zeros_like(h_i) for h_i in h]
    for (i, _, _, weight), a, message in zip(edges, attention, messages, strict=True):
        total[i] = total[i] + torch.sigmoid(a) * weight * message
    total = prism.batchnorm(block.norm, [apply(block.out, t) for t in total], training)
    unchanged = [torch.zeros_like(e) for _, _, e, _ in edges]
    return [softplus(h_i + t) for h_i, t in zip(h, total, strict=True)], unchanged


def multiscale(
    block: nn.Module, h: list[Tensor], s: list[Tensor], crystal_of: list[int], mean: bool, training: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The convolution's message without q, k and edge, both directions."""

    def message(receiver: Tensor, sender: Tensor) -> Tensor:
        values = torch.cat([apply(block.value, receiver), apply(block.value, sender)])
        return apply(block.message, prism.silu(apply(block.project, values)))

    sent = [apply(block.out, message(h_i, s[c])) for h_i, c in zip(h, crystal_of, strict=True)]
    received = []
    for c, s_c in enumerate(s):
        messages = [message(s_c, h_i) for h_i, owner in zip(h, crystal_of, strict=True) if owner == c]
        received.append(apply(block.out, sum(messages) / (len(messages) if mean else 1)))
    to_atoms = prism.batchnorm(block.atom_norm, sent, training)
    to_superatoms = prism.batchnorm(block.superatom_norm, received, training)
    return (
        [softplus(h_i + t) for h_i, t in zip(h, to_atoms, strict=True)],
        [softplus(s_c + t) for s_c, t in zip(s, to_superatoms, strict=True)],
    )


def shortest_vectors(crystal: prism.Crystal) -> list[list[np.ndarray]]:
    """For k = 1, 2, 3 all vectors that can be the k-th shortest of three that are not coplanar, one of v and -v.

    The k-th length is the least for which k linearly independent vectors are no longer; of this length (but for 0.1 %)
    and outside the span of all shorter ones.
    """
    longest = max(np.linalg.norm(row) for row in crystal.lattice)
    vectors = sorted((t for t in crystal.translations(longest * 1.01) if t.any()), key=np.linalg.norm)

    def rank(some: list[np.ndarray]) -> int:
        return int(np.linalg.matrix_rank(np.array(some), tol=1e-6)) if some else 0

    found = []
    for k in (1, 2, 3):
        length = next(np.linalg.norm(v) for n, v in enumerate(vectors) if rank(vectors[: n + 1]) >= k)
        shorter = [v for v in vectors if np.linalg.norm(v) < length * (1 - 1e-3)]
        of_k: list[np.ndarray] = []
        for v in vectors:
            new = rank([*shorter, v]) > rank(shorter)
            known = any(np.allclose(v, -w) for w in of_k)
            if abs(np.linalg.norm(v) - length) <= 1e-3 * length and new and not known:
                of_k.append(v)
        found.append(of_k)
    return found


def lattice_update(
    block: nn.Module,
    encoder: nn.Module,
    edges: list[tuple[int, int, Tensor, Tensor]],
    vectors: list[Tensor],
    crystals: list[prism.Crystal],
    crystal_of: list[int],
    num_rbf: int,
    training: bool,
) -> list[tuple[int, int, Tensor, Tensor]]:
    """Edges: e' = Softplus(e + BN(sum over three lattice vectors of Linear(sigmoid(BN(q key / sqrt(d))) msg)))."""
    axes = [shortest_vectors(crystal) for crystal in crystals]
    attention, messages = [], []
    for (i, _, e, _), vector in zip(edges, vectors, strict=True):
        for k, choices in enumerate(axes[crystal_of[i]]):
            of_length, of_angle = [], []
            for axis in map(torch.tensor, choices):
                cosine = (vector @ axis).abs() / vector.norm() / axis.norm()
                of_length.append(encode(encoder, axis.norm(), num_rbf))
                of_angle.append(softplus(apply(block.angle_encoder, gaussians(cosine, -1.0, 1.0, num_rbf))))
            mean_length, mean_angle = (sum(some) / len(some) for some in (of_length, of_angle))
            angle = apply(block.angle, mean_angle)
            key = mlp(block.key_mlp, apply(block.key, e), apply(block.length_keys[k], mean_length), angle)
            value = apply(block.length_values[k], mean_length)
            attention.append(apply(block.query, e) * key / math.sqrt(len(e)))
            messages.append(mlp(block.message_mlp, apply(block.value, e), value, angle))
    attention = prism.batchnorm(block.gate_norm, attention, training) if attention else []
    parts = [apply(block.out, torch.sigmoid(a) * m) for a, m in zip(attention, messages, strict=True)]
    totals = [sum(parts[3 * n : 3 * n + 3]) for n in range(len(edges))]
    totals = prism.batchnorm(block.norm, totals, training) if totals else []
    return [(i, j, softplus(e + t), weight) for (i, j, e, weight), t in zip(edges, totals, strict=True)]


def equivariant_update(
    block: nn.Module,
    h: list[Tensor],
    edges: list[tuple[int, int, Tensor, Tensor]],
    vectors: list[Tensor],
    weighted: bool,
    training: bool,
) -> list[Tensor]:
    """Two tensor products with the harmonics of the edges, means over the neighbors.

    The vectors and tensors of an atom are sums of harmonics of its own edges, so the second product needs only how
    these harmonics meet those of the edge: sum_m Y_lm(a) Y_lm(b) = (2 l + 1) P_l(cos), each component with the mean
    square 1. A path is scaled so that equally many independent inputs give the outputs a mean square of 1.
    """
    narrow = [apply(block.narrow, h_i) for h_i in h]
    scalars, vectors_and_tensors = len(narrow[0]), 8

    def weights(layers: nn.Module, e: Tensor) -> Tensor:
        return apply(layers[2], softplus(apply(layers[0], e)))

    def divisor(i: int) -> Tensor:
        count = sum((weight for receiver, _, _, weight in edges if receiver == i), torch.tensor(0.0))
        return torch.sqrt(1 + count**2) if weighted else max(count, torch.tensor(1.0))

    zero = [0 * n for n in narrow]
    first = list(zero)  # scalars of each atom
    harmonic: list[list[tuple[Tensor, int, Tensor]]] = [[] for _ in h]  # channels of Y_l(edge), l, the edge's vector
    for (i, j, e, weight), vector in zip(edges, vectors, strict=True):
        w = weights(block.first_weights, e) / math.sqrt(scalars) * weight / divisor(i)
        to_scalars, to_vectors, to_tensors = w.split(
            [scalars * scalars, scalars * vectors_and_tensors, scalars * vectors_and_tensors]
        )
        first[i] = first[i] + narrow[j] @ to_scalars.view(scalars, scalars)
        for degree, some in ((1, to_vectors), (2, to_tensors)):
            harmonic[i].append((narrow[j] @ some.view(scalars, vectors_and_tensors), degree, vector))
    first = [own + mean for own, mean in zip(narrow, first, strict=True)]

    second = list(zero)
    inputs = scalars + 2 * vectors_and_tensors
    for (i, j, e, weight), vector in zip(edges, vectors, strict=True):
        w = weights(block.second_weights, e) / math.sqrt(inputs) * weight / divisor(i)
        of_scalars, of_vectors, of_tensors = w.split(
            [scalars * scalars, vectors_and_tensors * scalars, vectors_and_tensors * scalars]
        )
        second[i] = second[i] + first[j] @ of_scalars.view(scalars, scalars)
        for channels, degree, other in harmonic[j]:
            cosine = vector @ other / vector.norm() / other.norm()
            met = (2 * degree + 1) * legendre(degree, cosine) / math.sqrt(2 * degree + 1)
            some = of_vectors if degree == 1 else of_tensors
            second[i] = second[i] + met * channels @ some.view(vectors_and_tensors, scalars)
    second = prism.batchnorm(block.norm, second, training)
    return [
        softplus(apply(block.widen, softplus(t))) + apply(block.skip, h_i) for t, h_i in zip(second, h, strict=True)
    ]
