"""The parts that are not of the paper, as the docstrings say them: loops over waves, atoms and crystals, in float64.

Nothing is taken from ``prism_plugin`` but the weights, and the numbers of ``elements.csv``.
"""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor, nn

import prism_plugin

ELEMENTS = Path(prism_plugin.__file__).parent / "nn" / "elements.csv"
CUTOFF = 3.0


def silu(x: Tensor) -> Tensor:
    """X times sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def element_row(number: int) -> Tensor:
    """43 numbers of an element: 12 standardized ones, one-hots of group, row and block."""
    with ELEMENTS.open() as file:
        rows = list(csv.DictReader(file))
    for z, row in enumerate(rows, start=1):
        row["z"] = str(z)
    answer = []
    for column, logarithm in (
        ("electronegativity", 0),
        ("covalent_radius", 0),
        ("atomic_radius", 0),
        ("mendeleev_number", 0),
        ("z", 1),
        ("electron_affinity", 0),
        ("first_ionization", 0),
        ("second_ionization", 1),
        ("largest_oxidation", 0),
        ("smallest_oxidation", 0),
        ("melting_point", 1),
        ("molar_volume", 1),
    ):
        values = [float(row[column]) if row[column] else math.nan for row in rows]
        values = [math.log(value) for value in values] if logarithm else values
        known = [value for value in values if not math.isnan(value)]
        mean = sum(known) / len(known)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
        own = values[number - 1]
        answer.append(0.0 if math.isnan(own) else (own - mean) / deviation)
    own_row = rows[number - 1]
    answer += [float(own_row["group"] == str(k)) for k in range(1, 19)]
    answer += [float(own_row["row"] == str(k)) for k in range(1, 10)]
    answer += [float(own_row["block"] == k) for k in "spdf"]
    return torch.tensor(answer, dtype=torch.float64)


def element_encoder(encoder: nn.Module, number: int) -> Tensor:
    """MLP(Emb(Z) + b + W_f phi(Z))."""
    x = encoder.embedding.weight[number] + encoder.bias + encoder.of_features.weight @ element_row(number)
    linear = encoder.mlp[1]
    return silu(linear.weight @ silu(x) + linear.bias)


def plane_waves(lattice: Tensor, pbc: tuple[bool, bool, bool]) -> tuple[list[Tensor], Tensor]:
    """One of k and -k with 0 < |k| < 3 / Å in the span of the periodic vectors; and 40 Å^3 / V."""
    rows = lattice[[axis for axis in range(3) if pbc[axis]]]
    if len(rows) == 0:
        return [], torch.zeros((), dtype=lattice.dtype)
    reciprocal = 2 * math.pi * torch.linalg.pinv(rows).T
    counts = [math.ceil(CUTOFF * float(row.detach().norm()) / (2 * math.pi)) for row in rows]
    waves = []
    for n in itertools.product(*[range(-count, count + 1) for count in counts]):
        first = next((value for value in n if value != 0), 0)
        k = sum(value * row for value, row in zip(n, reciprocal, strict=True))
        if first > 0 and float(k.detach().norm()) < CUTOFF:
            waves.append(k)
    return waves, 40.0 ** (len(rows) / 3) / torch.sqrt(torch.linalg.det(rows @ rows.T))


def reciprocal(
    expert: nn.Module, h: list[Tensor], positions: Tensor, lattice: Tensor, pbc: tuple[bool, bool, bool]
) -> list[Tensor]:
    """Cell expert in reciprocal space, of one crystal."""
    if not any(pbc):
        return h
    waves, scale = plane_waves(lattice, pbc)
    f = [expert.project.weight @ h_i for h_i in h]
    m = [torch.zeros_like(f_i) for f_i in f]
    linear1, _, linear2 = expert.filter
    for k in waves:
        length = k.norm()
        gaussians = [torch.exp(-(((length - CUTOFF * n / 15) / (CUTOFF / 15)) ** 2) / 2) for n in range(16)]
        read = torch.stack([*gaussians, 1 / (length**2 + 0.06)])
        window = (torch.cos(math.pi * length / CUTOFF) + 1) ** 2 / 4
        g = window * (linear2.weight @ silu(linear1.weight @ read + linear1.bias) + linear2.bias)
        real = sum(torch.cos(k @ r_j) * f_j for r_j, f_j in zip(positions, f, strict=True))
        imaginary = sum(torch.sin(k @ r_j) * f_j for r_j, f_j in zip(positions, f, strict=True))
        for i, r_i in enumerate(positions):
            m[i] = m[i] + scale * g * (torch.cos(k @ r_i) * real + torch.sin(k @ r_i) * imaginary)
    return [h_i + expert.out.weight @ m_i + expert.out.bias for h_i, m_i in zip(h, m, strict=True)]


def residual_multiscale(expert: nn.Module, h: list[Tensor], s: Tensor) -> tuple[list[Tensor], Tensor]:
    """Multiscale expert that begins at zero, of one crystal."""

    def mlp(block: nn.Module, x: Tensor) -> Tensor:
        return block[2].weight @ silu(block[0].weight @ x + block[0].bias) + block[2].bias

    mean = sum(h) / len(h)
    s = s + expert.up_scale * mlp(expert.up, torch.cat([s, mean]))
    return [h_i + expert.down_scale * mlp(expert.down, torch.cat([h_i, s])) for h_i in h], s


def legendre(degree: int, x: Tensor) -> Tensor:
    """P_1, P_2 or P_3."""
    return {1: x, 2: (3 * x**2 - 1) / 2, 3: (5 * x**3 - 3 * x) / 2}[degree]


def angular(
    block: nn.Module,
    h: list[Tensor],
    edges: list[tuple[int, int, Tensor, Tensor]],
    vectors: list[Tensor],
    radial: list[Tensor],
    training: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Angular block by angles between pairs of edges, without harmonics; edges (receiver, sender, e, envelope).

    Gives the new e, and what joins the messages of each atom (zeros if there is no norm).
    """
    fixed = block.norm is None
    weights = []
    for (_, j, e, _), rho in zip(edges, radial, strict=True):
        weights.append((block.of_edge.weight @ (rho if fixed else e)) * (block.of_sender.weight @ h[j]))
    if not fixed and weights:
        table = torch.stack(weights)
        mean, variance = block.norm.running_mean, block.norm.running_var
        if training and len(weights) > 1:
            mean, variance = table.mean(0), ((table - table.mean(0)) ** 2).mean(0)
        table = (table - mean) / torch.sqrt(variance + block.norm.eps) * block.norm.weight + block.norm.bias
        weights = list(0.3 * table)
    weights = [w * envelope for w, (_, _, _, envelope) in zip(weights, edges, strict=True)]
    q: dict[int, Tensor] = {}
    joins = []
    for i, h_i in enumerate(h):
        mine = [k for k, (receiver, _, _, _) in enumerate(edges) if receiver == i]
        sums = []
        if mine:
            u = torch.stack([vectors[k] / vectors[k].norm() for k in mine])
            w = torch.stack([weights[k] for k in mine])
            degrees = range(1, block.order + 1)
            p = {degree: legendre(degree, u @ u.T) for degree in degrees}
            if fixed:
                w = w * block.scale
                power = torch.stack([(w[:, channel] ** 2).sum() for channel in range(w.shape[1])])
                w = 2.2 * w / torch.sqrt(1 + power.mean() / (block.order + 2))
            total = sum(p[degree] @ w @ block.mix[degree - 1] for degree in degrees)
            q.update(zip(mine, total, strict=True))
            if not fixed:
                sums = [(w * (p[degree] @ w @ block.node_mix[degree - 1])).sum(0) for degree in degrees]
        if fixed:
            joins.append(torch.zeros_like(h_i))
        else:
            sums = sums or [torch.zeros(block.channels, dtype=h_i.dtype)] * block.order
            joins.append(block.to_node.weight @ torch.cat(sums) + block.to_node.bias)
    told = []
    for k, (i, j, e, _) in enumerate(edges):
        (back,) = (
            n
            for n, (receiver, sender, _, _) in enumerate(edges)
            if (receiver, sender) == (j, i) and float((vectors[n] + vectors[k]).detach().norm()) < 1e-6
        )
        told.append(e + block.to_edge.weight @ torch.cat([q[k], q[back]]) + block.to_edge.bias)
    return told, joins


def attention(block: nn.Module, h: list[Tensor]) -> list[Tensor]:
    """Softmax over the atoms of one crystal, times their number."""
    linear1, _, linear2 = block.logit
    logits = [(linear2.weight @ silu(linear1.weight @ h_i + linear1.bias) + linear2.bias)[0] for h_i in h]
    total = sum(torch.exp(logit) for logit in logits)
    return [len(h) * torch.exp(logit) / total for logit in logits]
