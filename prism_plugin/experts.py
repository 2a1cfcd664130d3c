"""The message-passing blocks of the four experts (PRISM Eq. 9-14).

Three experts (atomistic, cell, similarity) are one gated block on three kinds of edges; the multiscale expert has no
geometry. In come node and edge features, out go updated ones. No weights are shared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.distributed import rank_and_size, sum_over_processes

__all__ = ["EXPERTS", "FeatureNorm", "GatedMessagePassing", "MultiscaleMessagePassing", "similar_pairs"]

EXPERTS = ("atomistic", "cell", "multiscale", "similarity")


class FeatureNorm(nn.BatchNorm1d):
    """BatchNorm over edges or nodes that also accepts fewer than two of them while training.

    With none or one there is no batch variance; then the running statistics normalize and stay as they are. In a
    data-parallel training the statistics are those of the rows of all processes.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """Normalize rows of shape ``(rows, dim)``."""
        if self.training and rank_and_size()[1] > 1:
            return self._forward_together(values)
        if self.training and len(values) < 2:
            return functional.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(values)

    def _forward_together(self, values: Tensor) -> Tensor:
        """As torch's own SyncBatchNorm, which knows CUDA only."""
        width = values.shape[1]
        sums = sum_over_processes(torch.cat([values.sum(dim=0), values.new_tensor([len(values)])]))
        count = sums[width].detach()
        if count < 2:
            mean, variance = self.running_mean.to(values.dtype), self.running_var.to(values.dtype)
        else:
            mean = sums[:width] / count
            variance = sum_over_processes((values - mean).square().sum(dim=0)) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.detach().to(self.running_mean), share)
                self.running_var.lerp_((variance * count / (count - 1)).detach().to(self.running_var), share)
        return (values - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _norm(kind: str | None, dim: int) -> nn.Module:
    return FeatureNorm(dim) if kind == "batch" else nn.Identity()


class GatedMessagePassing(nn.Module):
    """Gated messages along edges with geometry (PRISM Eq. 9-14).

    The first layers of both MLPs act on [h_i || e_ij || h_j]. They are one matrix here, and its node parts are applied
    once per node, not once per edge: W [h_i || e || h_j] = (W_1 h)_i + W_2 e + (W_3 h)_j.

    Args:
        dim: width of the features.
        norm: ``"batch"`` or None.
    """

    def __init__(self, dim: int, norm: str | None = "batch") -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(3 * dim, 2 * dim)  # first layers of MLP_gate and MLP_msg, in this order
        self.gate = nn.Linear(dim, dim)
        self.message = nn.Linear(dim, dim)
        self.gate_norm = _norm(norm, dim)
        self.norm = _norm(norm, dim)

    def forward(
        self, nodes: Tensor, edges: Tensor, index: Tensor, envelope: Tensor | None, update_edges: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Pass messages once.

        Args:
            nodes: h, shape ``(nodes, dim)``.
            edges: e, shape ``(edges, dim)``.
            index: receiver and sender of each edge, shape ``(2, edges)``.
            envelope: weight of each edge, shape ``(edges,)``, or None for 1.
            update_edges: whether the next layer needs e'.

        Returns:
            h' of shape ``(nodes, dim)`` and e' of shape ``(edges, dim)`` or None.
        """
        receiver, sender = index
        of_receiver, of_edge, of_sender = self.project.weight.split(self.dim, dim=1)
        hidden = functional.linear(edges, of_edge, self.project.bias)
        # In place: these are the largest tensors, and no backward pass needs the sums' terms.
        hidden += functional.linear(nodes, of_receiver).index_select(0, receiver)
        hidden += functional.linear(nodes, of_sender).index_select(0, sender)
        for_gate, for_message = functional.silu(hidden).split(self.dim, dim=1)
        gate = torch.sigmoid(self.gate_norm(self.gate(for_gate)))  # Eq. 9
        if envelope is not None:
            gate = gate * envelope.unsqueeze(-1)
        message = self.message(for_message) * gate  # Eq. 11-12
        total = torch.zeros_like(nodes).index_add(0, receiver, message.to(nodes.dtype))
        updated = nodes + functional.silu(self.norm(total))  # Eq. 13
        return updated, edges + gate if update_edges else None  # Eq. 14


class MultiscaleMessagePassing(nn.Module):
    """Messages between the atoms and their superatom: no gate, no envelope, no edge state.

    Args:
        dim: width of the features.
        aggregation: ``"sum"`` or ``"mean"`` over the atoms that send to a superatom.
        norm: ``"batch"`` or None.
    """

    def __init__(self, dim: int, aggregation: str = "sum", norm: str | None = "batch") -> None:
        super().__init__()
        self.dim = dim
        self.aggregation = aggregation
        self.project = nn.Linear(2 * dim, dim)
        self.message = nn.Linear(dim, dim)
        self.atom_norm = _norm(norm, dim)
        self.superatom_norm = _norm(norm, dim)

    def forward(
        self, atoms: Tensor, superatoms: Tensor, atom_crystal: Tensor, update_superatoms: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Pass messages once in both directions.

        Args:
            atoms: shape ``(atoms, dim)``.
            superatoms: shape ``(crystals, dim)``.
            atom_crystal: crystal of each atom, shape ``(atoms,)``.
            update_superatoms: whether the next layer needs the superatoms.

        Returns:
            Updated atoms, and updated superatoms or None.
        """
        of_receiver, of_sender = self.project.weight.split(self.dim, dim=1)

        def messages(receivers: Tensor, senders: Tensor) -> Tensor:
            return self.message(functional.silu(receivers + senders + self.project.bias))

        sent = functional.linear(superatoms, of_sender).index_select(0, atom_crystal)
        updated_atoms = atoms + functional.silu(self.atom_norm(messages(functional.linear(atoms, of_receiver), sent)))
        if not update_superatoms:
            return updated_atoms, None
        received = functional.linear(superatoms, of_receiver).index_select(0, atom_crystal)
        message = messages(received, functional.linear(atoms, of_sender))
        total = torch.zeros_like(superatoms).index_add(0, atom_crystal, message.to(superatoms.dtype))
        if self.aggregation == "mean":
            counts = torch.bincount(atom_crystal, minlength=len(superatoms))
            total = total / counts.to(total.dtype).unsqueeze(-1)
        return updated_atoms, superatoms + functional.silu(self.superatom_norm(total))


def similar_pairs(atoms: Tensor, atom_crystal: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Find the similarity edges: pairs i != j of one crystal with ||h_i - h_j|| <= threshold.

    Crystals are compared each within itself, in blocks of rows, so that memory grows neither with the square of the
    batch nor of the largest crystal.

    Args:
        atoms: h, shape ``(atoms, dim)``.
        atom_crystal: crystal of each atom, ascending, shape ``(atoms,)``.
        threshold: on the Euclidean distance.

    Returns:
        Receivers and senders, shape ``(2, edges)``, receivers ascending; and the squared feature distances, shape
        ``(edges,)``, differentiable.
    """
    pairs = [torch.zeros(2, 0, dtype=torch.long, device=atoms.device)]
    with torch.no_grad():
        features = atoms.detach().float() if atoms.dtype in (torch.bfloat16, torch.float16) else atoms.detach()
        start = 0
        for size in torch.bincount(atom_crystal).tolist():
            crystal = features[start : start + size]
            crystal = crystal - crystal.mean(dim=0)
            # |a|^2 + |b|^2 - 2ab cancels: allow for its rounding here, the exact distance below decides.
            square = (crystal * crystal).sum(dim=1)
            slack = 64 * torch.finfo(features.dtype).eps * square.max() if size else 0.0
            for row in range(0, size, 1024):
                block = crystal[row : row + 1024]
                squared = torch.addmm(square.unsqueeze(0), block, crystal.T, alpha=-2.0)
                squared = squared + square[row : row + 1024].unsqueeze(1)
                near = (squared <= threshold**2 + slack).nonzero()
                pairs.append((near + near.new_tensor([row, 0])).T + start)
            start += size
    receiver, sender = torch.cat(pairs, dim=1)
    different = receiver != sender
    receiver, sender = receiver[different], sender[different]
    difference = atoms.index_select(0, receiver) - atoms.index_select(0, sender)
    squared_distance = (difference * difference).sum(dim=1)
    kept = (squared_distance.detach() <= threshold**2).nonzero().squeeze(1)
    index = torch.stack([receiver.index_select(0, kept), sender.index_select(0, kept)])
    return index, squared_distance.index_select(0, kept)
