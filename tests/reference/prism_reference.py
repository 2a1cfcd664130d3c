"""PRISM as the paper writes it: loops over atoms and edges, one crystal after the other, concatenations as printed.

Nothing is taken from ``prism_plugin`` but the weights. Equation numbers are those of the supplement.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from tests.reference import accuracy_reference as ours
from tests.reference import comformer_reference as comformer


@dataclass
class Crystal:
    """Atomic numbers, Cartesian positions (Å), lattice rows (Å), periodic flags."""

    numbers: list[int]
    positions: np.ndarray
    lattice: np.ndarray
    pbc: tuple[bool, bool, bool]

    def translations(self, reach: float) -> list[np.ndarray]:
        """All lattice translations up to a length, by brute force over a box that surely holds them."""
        periodic = [row for row, flag in zip(self.lattice, self.pbc, strict=True) if flag]
        if not periodic:
            return [np.zeros(3)]
        thinnest = np.linalg.svd(np.array(periodic), compute_uv=False).min()
        count = math.ceil(reach / thinnest)
        sums = (
            sum((n * row for n, row in zip(ns, periodic, strict=True)), np.zeros(3))
            for ns in itertools.product(range(-count, count + 1), repeat=len(periodic))
        )
        return [t for t in sums if np.linalg.norm(t) <= reach + 1e-9]


def atomistic_edges(crystal: Crystal, cutoff: float) -> list[tuple[int, int, np.ndarray]]:
    """(receiver, sender, vector) of all pairs with 0 < |r_j + T - r_i| <= cutoff."""
    spread = max(np.linalg.norm(a - b) for a in crystal.positions for b in crystal.positions)
    edges = []
    for i, r_i in enumerate(crystal.positions):
        for j, r_j in enumerate(crystal.positions):
            for t in crystal.translations(cutoff + spread):
                vector = r_j + t - r_i
                if 1e-8 < np.linalg.norm(vector) <= cutoff:
                    edges.append((i, j, vector))
    return edges


def cell_edges(crystal: Crystal, cutoff: float) -> list[np.ndarray]:
    """Lattice translations T != 0 with |T| <= cutoff."""
    return [t for t in crystal.translations(cutoff) if 1e-8 < np.linalg.norm(t) <= cutoff]


def nearest_image(crystal: Crystal, i: int, j: int) -> np.ndarray:
    """Shortest r_j + T - r_i; of equally short ones the one furthest along the fixed direction."""
    difference = crystal.positions[j] - crystal.positions[i]
    candidates = [difference + t for t in crystal.translations(2 * np.linalg.norm(difference) + 1e-6)]
    shortest = min(np.linalg.norm(c) for c in candidates)
    ties = [c for c in candidates if np.linalg.norm(c) <= shortest + 1e-4]
    return max(ties, key=lambda c: c @ np.array([1.0, 2**0.5 / 2, 3**0.5 / 5]))


def blended_image(crystal: Crystal, i: int, j: int) -> tuple[np.ndarray, float]:
    """Mean direction and length of r_j + T - r_i over the images at most 0.5 Å further away than the nearest."""
    difference = crystal.positions[j] - crystal.positions[i]
    candidates = [difference + t for t in crystal.translations(2 * np.linalg.norm(difference) + 0.6)]
    shortest = min(np.linalg.norm(c) for c in candidates)
    near = [(c, np.linalg.norm(c)) for c in candidates if np.linalg.norm(c) < shortest + 0.5]
    weights = [(1 + math.cos(math.pi * (d - shortest) / 0.5)) / 2 for _, d in near]
    direction = sum(w * c / d for w, (c, d) in zip(weights, near, strict=True)) / sum(weights)
    return direction, sum(w * d for w, (_, d) in zip(weights, near, strict=True)) / sum(weights)


def silu(x: Tensor) -> Tensor:
    """X times sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def envelope(d: Tensor, r: float) -> Tensor:
    """Eq. 10."""
    return (torch.cos(math.pi * d / r) + 1) / 2 if d < r else torch.zeros_like(d)


def length(vector: Tensor) -> Tensor:
    """Euclidean norm; at 0, where it has no derivative, a constant (Eq. 10 is flat there)."""
    square = (vector**2).sum()
    return torch.sqrt(square) if square > 0 else torch.zeros_like(square)


def batchnorm(norm: nn.Module, rows: list[Tensor], training: bool) -> list[Tensor]:
    """Normalize a list of vectors with the batch's or the running statistics, if there is a norm at all."""
    if isinstance(norm, nn.Identity):
        return rows
    if training and len(rows) > 1:
        table = torch.stack(rows)
        mean, variance = table.mean(0), ((table - table.mean(0)) ** 2).mean(0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    return [(row - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias for row in rows]


def radial(d: Tensor, cutoff: float, num_rbf: int, scale: str) -> Tensor:
    """Eq. 7."""
    a = 1.0 if scale == "paper" else (5 if scale == "cutoff" else 1) / cutoff
    first = math.exp(-a * cutoff)
    beta = (2 / num_rbf * (1 - first)) ** -2
    centers = [first + k * (1 - first) / (num_rbf - 1) for k in range(num_rbf)]
    return torch.stack([torch.exp(-beta * (torch.exp(-a * d) - mu) ** 2) for mu in centers])


def edge_encoder(encoder: nn.Module, direction: Tensor, d: Tensor, cutoff: float, num_rbf: int, scale: str) -> Tensor:
    """Eq. 8."""
    rho = radial(d, cutoff, num_rbf, scale)
    linear1, _, linear2, _ = encoder.mlp
    x = torch.cat([rho, direction]) if linear1.weight.shape[1] > num_rbf else rho
    hidden = silu(linear1.weight @ x + linear1.bias)
    return silu(linear2.weight @ hidden + linear2.bias)


def superatom(encoder: nn.Module, numbers: list[int], readout: str) -> Tensor:
    """Eq. 1-3, over all atoms."""
    z = [encoder.embedding.weight[n] for n in numbers]
    q, k, v = ([layer.weight @ z_i + layer.bias for z_i in z] for layer in (encoder.query, encoder.key, encoder.value))
    f = []
    for q_i in q:
        exponents = torch.stack([torch.exp(q_i @ k_j / math.sqrt(len(q_i))) for k_j in k])
        alpha = exponents / exponents.sum()
        f.append(sum(a * v_j for a, v_j in zip(alpha, v, strict=True)))
    total = sum(f)
    return total if readout == "sum" else total / len(f)


def gated(
    block: nn.Module,
    h: list[Tensor],
    edges: list[tuple[int, int, Tensor, Tensor]],
    training: bool,
    joins: list[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Eq. 9-14 for edges (receiver, sender, e, envelope); gives h' and the gates. ``joins`` begin the sums."""
    dim = len(h[0])
    w_gate, w_message = block.project.weight[:dim], block.project.weight[dim:]
    b_gate, b_message = block.project.bias[:dim], block.project.bias[dim:]
    logits, messages = [], []
    for i, j, e, _ in edges:
        x = torch.cat([h[i], e, h[j]])
        logits.append(block.gate.weight @ silu(w_gate @ x + b_gate) + block.gate.bias)
        messages.append(block.message.weight @ silu(w_message @ x + b_message) + block.message.bias)
    logits = batchnorm(block.gate_norm, logits, training) if logits else []
    gates = [torch.sigmoid(logit) * weight for logit, (_, _, _, weight) in zip(logits, edges, strict=True)]
    total = [torch.zeros_like(h_i) for h_i in h] if joins is None else list(joins)
    for (i, _, _, _), message, gate in zip(edges, messages, gates, strict=True):
        total[i] = total[i] + message * gate
    total = batchnorm(block.norm, total, training)
    return [h_i + silu(t) for h_i, t in zip(h, total, strict=True)], gates


def multiscale(
    block: nn.Module, h: list[Tensor], s: list[Tensor], crystal_of: list[int], mean: bool, training: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """M = MLP([h_receiver || h_sender]); h' = h + SiLU(BN(sum m)), both directions."""

    def mlp(receiver: Tensor, sender: Tensor) -> Tensor:
        hidden = silu(block.project.weight @ torch.cat([receiver, sender]) + block.project.bias)
        return block.message.weight @ hidden + block.message.bias

    to_atoms = batchnorm(block.atom_norm, [mlp(h_i, s[c]) for h_i, c in zip(h, crystal_of, strict=True)], training)
    totals = []
    for c, s_c in enumerate(s):
        messages = [mlp(s_c, h_i) for h_i, owner in zip(h, crystal_of, strict=True) if owner == c]
        totals.append(sum(messages) / (len(messages) if mean else 1))
    totals = batchnorm(block.superatom_norm, totals, training)
    return (
        [h_i + silu(t) for h_i, t in zip(h, to_atoms, strict=True)],
        [s_c + silu(t) for s_c, t in zip(s, totals, strict=True)],
    )


def fuse(fusion: nn.Module, kind: str, answers: dict[str, list[Tensor]], names: list[str]) -> list[Tensor]:
    """Convex sum of the experts' answers, node by node."""
    if len(names) == 1:
        return answers[names[0]]
    fused = []
    for versions in zip(*(answers[name] for name in names), strict=True):
        logits = fusion.logits if kind == "scalar" else fusion.gate.weight @ torch.cat(versions) + fusion.gate.bias
        weights = torch.exp(logits) / torch.exp(logits).sum()
        fused.append(sum(w * x for w, x in zip(weights, versions, strict=True)))
    return fused


def predict(model: nn.Module, crystals: list[Crystal], training: bool = False) -> Tensor:
    """Predictions of the crystals as one batch, shape ``(crystals,)``, differentiable in the weights."""
    a = model.arguments
    experts, cutoff, cell_cutoff, threshold = a["experts"], a["cutoff"], a["cell_cutoff"], a["similarity_cutoff"]
    cartnet = a["backbone"] == "cartnet"
    pass_messages = gated if cartnet else comformer.convolution
    pass_between_scales = multiscale if cartnet else comformer.multiscale

    def encode(encoder: nn.Module, vector: np.ndarray, radius: float) -> Tensor:
        d = np.linalg.norm(vector)  # Eq. 5-6
        return encode_parts(encoder, vector / d, d, radius)

    def encode_parts(encoder: nn.Module, direction: np.ndarray, d: float, radius: float) -> Tensor:
        parts = torch.tensor(direction), torch.tensor(d, dtype=torch.float64)
        if not cartnet:
            return comformer.encode(encoder, parts[1], a["num_rbf"])
        return edge_encoder(encoder, *parts, radius, a["num_rbf"], a["rbf_scale"])

    crystal_of = [c for c, crystal in enumerate(crystals) for _ in crystal.numbers]
    inside = [k for crystal in crystals for k in range(len(crystal.numbers))]
    starts = np.cumsum([0] + [len(crystal.numbers) for crystal in crystals])
    numbers = [n for crystal in crystals for n in crystal.numbers]

    h = []
    for n in numbers:  # Eq. 4
        if a["atom_encoder"] == "elements":
            h.append(ours.element_encoder(model.atom_encoder, n))
            continue
        x = model.atom_encoder.embedding.weight[n]
        if a["atom_encoder"] == "embedding":
            h.append(x)
            continue
        if a["atom_encoder"] == "cartnet":
            x = silu(x + model.atom_encoder.bias)
            linears = [model.atom_encoder.mlp[1]]
        else:
            linears = [model.atom_encoder.mlp[0], model.atom_encoder.mlp[2]]
        for linear in linears:
            x = silu(linear.weight @ x + linear.bias)
        h.append(x)
    translations = "cell" in experts and a["cell"] == "translations"
    residual = "multiscale" in experts and a["multiscale"] == "residual"
    if a["initial_norm"]:
        h = batchnorm(model.initial_norms["atoms"], h, training)
    s = []
    if residual:
        means = [sum(h[starts[c] : starts[c + 1]]) / len(crystal.numbers) for c, crystal in enumerate(crystals)]
        s = [model.superatom_mean.weight @ mean + model.superatom_mean.bias for mean in means]
    elif translations or "multiscale" in experts:
        s = [superatom(model.superatom_encoder, crystal.numbers, a["superatom_readout"]) for crystal in crystals]
    edges, loops, vectors = [], [], []
    if "atomistic" in experts:
        for c, crystal in enumerate(crystals):
            found = atomistic_edges(crystal, cutoff)
            for i, j, vector in comformer.nearest(found, a["neighbors"]) if a["neighbors"] else found:
                e = encode(model.atomistic_encoder, vector, cutoff)
                weight = envelope(length(torch.tensor(vector)), cutoff)
                weight = torch.ones_like(weight) if a["neighbors"] else weight
                edges.append((starts[c] + i, starts[c] + j, e, weight))
                vectors.append(torch.tensor(vector))
    if translations:
        for c, crystal in enumerate(crystals):
            for vector in cell_edges(crystal, cell_cutoff):
                e = encode(model.cell_encoder, vector, cell_cutoff)
                loops.append((c, c, e, envelope(length(torch.tensor(vector)), cell_cutoff)))
    if a["initial_norm"]:
        for name, some in (("atomistic", edges), ("cell", loops)):
            features = batchnorm(model.initial_norms[name], [e for _, _, e, _ in some], training) if some else []
            some[:] = [(i, j, e, weight) for (i, j, _, weight), e in zip(some, features, strict=True)]

    for number, layer in enumerate(model.layers):
        of_atoms, of_superatoms = {}, {}
        for c, crystal in enumerate(crystals):
            part = slice(starts[c], starts[c + 1])
            if "cell" in experts and not translations:
                geometry = torch.tensor(crystal.positions), torch.tensor(crystal.lattice), crystal.pbc
                h[part] = ours.reciprocal(layer.reciprocal, h[part], *geometry)
            if residual:
                h[part], s[c] = ours.residual_multiscale(layer.residual, h[part], s[c])
        if "atomistic" in experts:
            joins = None
            if a["angular"]:
                rho = [radial(length(vector), cutoff, a["num_rbf"], a["rbf_scale"]) for vector in vectors]
                told, joins = ours.angular(layer.angular, h, edges, vectors, rho, training)
                edges = [(i, j, e, weight) for (i, j, _, weight), e in zip(edges, told, strict=True)]
            of_atoms["atomistic"], gates = pass_messages(layer.experts["atomistic"], h, edges, training, joins)
            edges = [(i, j, e + gate, weight) for (i, j, e, weight), gate in zip(edges, gates, strict=True)]
        if "similarity" in experts:
            similar = []
            for i, j in itertools.product(range(len(h)), repeat=2):
                distance = length(h[i] - h[j])
                if i == j or crystal_of[i] != crystal_of[j] or distance > threshold:
                    continue
                vector = nearest_image(crystals[crystal_of[i]], inside[i], inside[j])
                far = length(torch.tensor(vector))
                features = encode(layer.similarity_encoder, vector, cutoff)
                if a["similarity_image"] == "blended":
                    direction, mean_length = blended_image(crystals[crystal_of[i]], inside[i], inside[j])
                    far = torch.tensor(mean_length, dtype=torch.float64)
                    features = encode_parts(layer.similarity_encoder, direction, mean_length, cutoff)
                weight = {
                    "feature": envelope(distance, threshold),
                    "cosine": envelope(far, cutoff),
                    None: torch.tensor(1.0),
                }[a["similarity_envelope"]]
                similar.append((i, j, features, weight))
            of_atoms["similarity"], _ = pass_messages(layer.experts["similarity"], h, similar, training)
        if "multiscale" in experts and not residual:
            mean = a["multiscale_aggregation"] == "mean"
            block = layer.experts["multiscale"]
            given = block, h, s, crystal_of, mean, training
            of_atoms["multiscale"], of_superatoms["multiscale"] = pass_between_scales(*given)
        if translations:
            of_superatoms["cell"], gates = pass_messages(layer.experts["cell"], s, loops, training)
            loops = [(i, j, e + gate, weight) for (i, j, e, weight), gate in zip(loops, gates, strict=True)]
        if of_atoms:
            names = [name for name in ("atomistic", "similarity", "multiscale") if name in of_atoms]
            h = fuse(layer.atom_fusion, a["fusion"], of_atoms, names)
        if of_superatoms:
            names = [name for name in ("cell", "multiscale") if name in of_superatoms]
            s = fuse(layer.superatom_fusion, a["fusion"], of_superatoms, names)
        if number == 0 and "atomistic" in experts and len(model.layers) > 1:
            if a["backbone"] == "icomformer":
                given = edges, vectors, crystals, crystal_of, a["num_rbf"], training
                edges = comformer.lattice_update(model.update, model.atomistic_encoder, *given)
            if a["backbone"] == "ecomformer":
                h = comformer.equivariant_update(model.update, h, edges, vectors, not a["neighbors"], training)

    linear1, _, linear2 = model.head
    outputs = []
    refs = dict.fromkeys(range(119), 0.0)
    if a["element_refs"] is not None:
        refs = {atomic_numbers[symbol]: ref for symbol, ref in zip(model.element_types, a["element_refs"], strict=True)}
    shares = [1.0] * len(h)
    if a["readout"] == "attention":
        parts = [h[starts[c] : starts[c + 1]] for c in range(len(crystals))]
        shares = [share for part in parts for share in ours.attention(model.attention, part)]
    for n, h_i, share in zip(numbers, h, shares, strict=True):  # Eq. 15
        o = (linear2.weight @ silu(linear1.weight @ h_i + linear1.bias) + linear2.bias)[0]
        outputs.append(share * (o * a["std"] + a["mean"]) + refs[n])
    sums = [sum(outputs[starts[c] : starts[c + 1]]) for c in range(len(crystals))]
    if a["readout"] != "sum":  # Eq. 16
        sums = [total / len(crystal.numbers) for total, crystal in zip(sums, crystals, strict=True)]
    if a["minimum"] is not None and not model.training:
        sums = [total if total > a["minimum"] else 0 * total + a["minimum"] for total in sums]
    return torch.stack(sums)
