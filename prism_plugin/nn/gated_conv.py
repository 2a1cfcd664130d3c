"""Gated messages along edges in tiles, with a backward pass of their own (PRISM Eq. 9, 11, 12, 14).

Computes the sum of messages at each node and the new edge features from node products and edge features. All that
the model does per edge and layer happens here. :func:`gated_messages` is what training and inference run;
:func:`plain_messages` says the same in plain torch and serves where autograd must look inside: for second derivatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from prism_plugin.distributed import (
    Statistics,
    mean_over_processes,
    rank_and_size,
    statistics_over_processes,
    sum_over_processes,
)
from prism_plugin.nn.autograd_mode import needs_gradient, plain_autograd
from prism_plugin.nn.linear import linear, product
from prism_plugin.nn.silu import silu
from prism_plugin.nn.tiling import tiles

__all__ = ["Answer", "GatedTensors", "Settings", "gated_messages", "plain_messages"]

_LITTLE = 2**15  # numbers in the edges' features

# Hidden rows before SiLU, logits of the gates, ungated messages: of one tile.
Activations: TypeAlias = tuple[Tensor, Tensor, Tensor]


class GatedTensors(NamedTuple):
    """What gated messages are made of, and are differentiated by.

    Attributes:
        of_receiver: what each node adds to the hidden rows of edges that it receives, shape ``(nodes, 2 dim)``: the
            first half for the gate, the second one for the message.
        of_sender: as a sender, shape ``(nodes, 2 dim)``.
        edges: e, shape ``(edges, dim)``.
        envelope: weight of each gate, shape ``(edges,)``, or None for 1.
        edge_weight: of e in the hidden rows, shape ``(2 dim, dim)``.
        gate_weight: second layer of MLP_gate, shape ``(dim, dim)``.
        gate_bias: its bias, shape ``(dim,)``.
        message_weight: second layer of MLP_msg, shape ``(dim, dim)``.
        message_bias: its bias, shape ``(dim,)``.
        scale: of the BatchNorm of the gates' logits, if these are to be normalized by their own statistics, shape
            ``(dim,)``. None where there is no norm, or a fixed one is part of the gate's weights.
        shift: of this BatchNorm, likewise.
    """

    of_receiver: Tensor
    of_sender: Tensor
    edges: Tensor
    envelope: Tensor | None
    edge_weight: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    message_weight: Tensor
    message_bias: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


class Settings(NamedTuple):
    """The rest that gated messages depend on.

    Attributes:
        edge_index: receiver and sender of each edge, shape ``(2, edges)``.
        update_edges: whether e' is wanted.
        eps: of the BatchNorm.
    """

    edge_index: Tensor
    update_edges: bool
    eps: float


class Answer(NamedTuple):
    """What the edges answer.

    Attributes:
        total: sum of the messages at each node, shape ``(nodes, dim)``.
        edges: e', shape ``(edges, dim)``, or None if not asked for.
        statistics: of the gates' logits, if they are normalized by them.
    """

    total: Tensor
    edges: Tensor | None
    statistics: Statistics | None


def gated_messages(tensors: GatedTensors, settings: Settings, recompute: bool = False) -> Answer:
    """Compute all gates and messages, and sum the messages at their receivers.

    Args:
        tensors: nodes, edges and weights.
        settings: the rest.
        recompute: whether the backward pass computes the activations of the edges anew in place of keeping them.
    """
    # Where there is little to compute, torch's own steps take less time than ours in Python. Processes that work
    # together must go the same way whatever each has: their sums over all would else wait for each other.
    little = tensors.edges.numel() <= _LITTLE and rank_and_size()[1] == 1
    if little or plain_autograd():
        return plain_messages(tensors, settings)
    if needs_gradient(*tensors):
        total, updated, *statistics = _GatedMessages.apply(settings, recompute, *tensors)
        return Answer(total, updated, None if statistics[0] is None else Statistics(*statistics))
    return _Edges(tensors, settings).forward(kept=None)


def plain_messages(tensors: GatedTensors, settings: Settings) -> Answer:
    """As :func:`gated_messages`, all edges at once and by plain autograd."""
    of_receiver, of_sender, edges, envelope, edge_weight, *last_layers, scale, shift = tensors
    gate_weight, gate_bias, message_weight, message_bias = last_layers
    receiver, sender = settings.edge_index
    hidden = linear(edges, edge_weight)
    hidden = hidden + of_receiver.index_select(0, receiver) + of_sender.index_select(0, sender)
    for_gate, for_message = silu(hidden).chunk(2, dim=1)
    logits = linear(for_gate, gate_weight, gate_bias).to(edges.dtype)
    statistics = None
    if scale is not None and shift is not None:
        mean, variance, rows = statistics_over_processes(logits)
        logits = (logits - mean) * torch.rsqrt(variance + settings.eps) * scale + shift
        statistics = Statistics(mean.detach(), variance.detach(), rows)
    gate = torch.sigmoid(logits)
    if envelope is not None:
        gate = gate * envelope.unsqueeze(-1)
    message = linear(for_message, message_weight, message_bias) * gate
    total = edges.new_zeros(len(of_receiver), edges.shape[1]).index_add(0, receiver, message.to(edges.dtype))
    return Answer(total, edges + gate if settings.update_edges else None, statistics)


class _Edges:
    """One layer's edges, forward and back, a tile at a time."""

    def __init__(self, tensors: GatedTensors, settings: Settings) -> None:
        self.index, self.update_edges, self.eps = settings
        self.of_receiver, self.of_sender, self.edges, self.envelope, *_, self.scale, self.shift = tensors
        # Products are computed in the node products' dtype: under autocast that is a shorter one than the edges'.
        self.dtype = self.of_receiver.dtype
        self.edge_weight, self.gate_weight, self.gate_bias, self.message_weight, self.message_bias = (
            weight.to(self.dtype) for weight in tensors[4:9]
        )
        self.parts = tiles(len(self.edges), 2 * self.edges.shape[1], self.edges.device)
        if len(self.parts) > 1:  # once, not in every tile
            self.edge_weight = self.edge_weight.contiguous()

    def activations(self, part: slice, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden rows before SiLU, ``(tile, 2 dim)``; logits of the gates and ungated messages, ``(tile, dim)``."""
        receiver, sender = self.index[:, part]
        nodes = self.of_receiver.index_select(0, receiver)
        nodes += self.of_sender.index_select(0, sender)
        hidden = product(self.edges[part].to(self.dtype), self.edge_weight, plus=nodes)
        for_gate, for_message = functional.silu(hidden, inplace=not keep).chunk(2, dim=1)
        logits = product(for_gate, self.gate_weight, self.gate_bias)
        return hidden, logits, product(for_message, self.message_weight, self.message_bias)

    def gate(self, logits: Tensor, mean: Tensor | None, inverse: Tensor | None) -> Tensor:
        """Gates without their envelope, in the edges' dtype."""
        logits = logits.to(self.edges.dtype)
        if mean is not None and inverse is not None and self.scale is not None and self.shift is not None:
            factor = inverse * self.scale
            logits = torch.addcmul(self.shift - mean * factor, logits, factor)
        return torch.sigmoid(logits)

    def forward(self, kept: list[Activations] | None) -> Answer:
        """Answer, and append the tiles' activations to ``kept``."""
        total = self.edges.new_zeros(len(self.of_receiver), self.edges.shape[1])
        updated = torch.empty_like(self.edges) if self.update_edges else None
        moments = None if self.scale is None else _Moments(self.scale)
        waiting = []
        for part in self.parts:
            hidden, logits, message = self.activations(part, keep=kept is not None)
            if kept is not None:
                kept.append((hidden, logits, message))
            if moments is None:
                self._gather(part, self.gate(logits, None, None), message, total, updated)
            else:
                moments.add(logits.to(self.edges.dtype))
                waiting.append((part, logits, message))
        if moments is None:
            return Answer(total, updated, None)
        statistics = moments.of_all_processes()
        inverse = torch.rsqrt(statistics.variance + self.eps)
        for part, logits, message in waiting:
            self._gather(part, self.gate(logits, statistics.mean, inverse), message, total, updated)
        return Answer(total, updated, statistics)

    def _gather(self, part: slice, gate: Tensor, message: Tensor, total: Tensor, updated: Tensor | None) -> None:
        if self.envelope is not None:
            gate *= self.envelope[part].unsqueeze(-1)
        if updated is not None:
            torch.add(self.edges[part], gate, out=updated[part])
        total.index_add_(0, self.index[0, part], gate.mul_(message))

    def backward(
        self,
        of_total: Tensor | None,
        of_updated: Tensor | None,
        statistics: Statistics | None,
        kept: Iterable[Activations],
        of_weights: bool,
    ) -> list[Tensor | None]:
        """Return the gradients of the tensors, in their order; those of the weights only if wanted."""
        mean, inverse = None, None
        if statistics is not None:
            mean, inverse = statistics.mean, torch.rsqrt(statistics.variance + self.eps)

        def of_gate(part: slice, logits: Tensor, message: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            """Gradients of the normalized logits, of the ungated messages and of the envelope."""
            gate = self.gate(logits, mean, inverse)
            of_message = torch.zeros_like(gate) if of_total is None else of_total.index_select(0, self.index[0, part])
            of_gate = of_message * message
            if of_updated is not None:
                of_gate += of_updated[part]
            if self.envelope is None:
                return torch.ops.aten.sigmoid_backward(of_gate, gate), of_message.mul_(gate), None
            envelope = self.envelope[part].unsqueeze(-1)
            of_envelope = (of_gate * gate).sum(dim=1)
            of_message *= gate * envelope
            return torch.ops.aten.sigmoid_backward(of_gate.mul_(envelope), gate), of_message, of_envelope

        # Through the norm all edges touch each other: two passes, of which the first one sums.
        first: list[tuple[Tensor, Tensor, Tensor | None]] = []
        of_scale = of_shift = None
        if statistics is not None and mean is not None and inverse is not None and self.scale is not None:
            of_scale, of_shift = torch.zeros_like(mean), torch.zeros_like(mean)
            for part, (_, logits, message) in zip(self.parts, kept, strict=True):
                first.append(of_gate(part, logits, message))
                of_shift += first[-1][0].sum(dim=0)
                of_scale += (logits - mean).mul_(first[-1][0]).sum(dim=0)
            of_scale *= inverse
            mean_shift, mean_scale = sum_over_processes(torch.stack([of_shift, of_scale])) / statistics.rows
            factor = inverse * self.scale
            slope = -factor * inverse * mean_scale
            offset = -factor * mean_shift - slope * mean

        of_receiver, of_sender = (self.edges.new_zeros(rows.shape) for rows in (self.of_receiver, self.of_sender))
        of_edges = torch.empty_like(self.edges)
        of_envelope = None if self.envelope is None else torch.empty_like(self.envelope)
        weights = (self.edge_weight, self.gate_weight, self.gate_bias, self.message_weight, self.message_bias)
        sums = [self.edges.new_zeros(weight.shape[::-1]) for weight in weights]
        for number, (part, (hidden, logits, message)) in enumerate(zip(self.parts, kept, strict=True)):
            of_logits, of_message, of_envelope_here = first[number] if first else of_gate(part, logits, message)
            if of_envelope is not None and of_envelope_here is not None:
                of_envelope[part] = of_envelope_here
            if of_scale is not None:
                of_logits = torch.addcmul(offset, logits, slope).addcmul_(of_logits, factor)
            of_logits, of_message = of_logits.to(self.dtype), of_message.to(self.dtype)
            of_active = torch.cat(
                [product(of_logits, self.gate_weight.T), product(of_message, self.message_weight.T)], dim=1
            )
            of_hidden = torch.ops.aten.silu_backward(of_active, hidden)
            of_nodes = of_hidden.to(of_receiver.dtype)
            of_receiver.index_add_(0, self.index[0, part], of_nodes)
            of_sender.index_add_(0, self.index[1, part], of_nodes)
            of_edges[part] = product(of_hidden, self.edge_weight.T)
            if of_updated is not None:
                of_edges[part] += of_updated[part]
            if of_weights:
                for_gate, for_message = functional.silu(hidden).chunk(2, dim=1)
                edges = self.edges[part].to(self.dtype)
                sums[0] += edges.T @ of_hidden
                sums[1] += for_gate.T @ of_logits
                sums[2] += of_logits.sum(dim=0)
                sums[3] += for_message.T @ of_message
                sums[4] += of_message.sum(dim=0)
        of_nodes = of_receiver.to(self.dtype), of_sender.to(self.dtype)
        return [
            *of_nodes,
            of_edges,
            of_envelope,
            *[total.mT if total.dim() == 2 else total for total in sums],
            of_scale,
            of_shift,
        ]


class _Moments:
    """Mean and squared deviations of rows that come a tile at a time (Chan, Golub, LeVeque 1979)."""

    def __init__(self, like: Tensor) -> None:
        self.rows = 0
        self.mean = torch.zeros_like(like)
        self.squares = torch.zeros_like(like)

    def add(self, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        mean = rows.mean(dim=0)
        share = len(rows) / (self.rows + len(rows))
        self.squares += (rows - mean).square_().sum(dim=0) + (mean - self.mean).square() * (self.rows * share)
        self.mean += (mean - self.mean) * share
        self.rows += len(rows)

    def of_all_processes(self) -> Statistics:
        """Statistics over the rows of all processes."""
        mean, rows = mean_over_processes(self.mean * self.rows, self.rows)
        squares = sum_over_processes(self.squares + (self.mean - mean).square() * self.rows)
        return Statistics(mean, squares / rows, rows)


class _GatedMessages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, recompute: bool, *tensors: Tensor | None) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        kept: list[Activations] | None = None if recompute else []
        answer = _Edges(GatedTensors(*cast("tuple[Any, ...]", tensors)), settings).forward(kept)
        mean, variance, rows = answer.statistics or (None, None, None)
        ctx.mark_non_differentiable(*[one for one in (mean, variance, rows) if isinstance(one, Tensor)])
        ctx.settings, ctx.rows = settings[1:], rows
        activations = [tensor for tile in kept or [] for tensor in tile]
        ctx.save_for_backward(settings.edge_index, mean, variance, *tensors, *activations)
        return answer.total, answer.edges, mean, variance, rows

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_updated: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        index, mean, variance, *saved = ctx.saved_tensors
        tensors, activations = GatedTensors(*saved[: len(needed)]), saved[len(needed) :]
        settings = Settings(index, *ctx.settings)
        if torch.is_grad_enabled():
            gradients = _differentiable_backward(tensors, settings, needed, (of_total, of_updated))
        else:
            edges = _Edges(tensors, settings)
            kept: Iterable[Activations] = list(zip(activations[::3], activations[1::3], activations[2::3], strict=True))
            anew = (edges.activations(part, keep=True) for part in edges.parts)
            kept = kept or (anew if mean is None else list(anew))  # with a norm they are needed twice
            statistics = None if mean is None else Statistics(mean, variance, ctx.rows)
            gradients = edges.backward(of_total, of_updated, statistics, kept, of_weights=any(needed[4:]))
        return (None, None, *[grad if need else None for grad, need in zip(gradients, needed, strict=True)])


def _differentiable_backward(
    tensors: GatedTensors,
    settings: Settings,
    needed: Sequence[bool],
    gradients: tuple[Tensor | None, Tensor | None],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again; products in full precision, also where autocast was on before."""
    with torch.enable_grad():
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        aliases = GatedTensors(*cast("tuple[Any, ...]", views))
        answer = plain_messages(aliases, settings)
        wanted = [number for number, need in enumerate(needed) if need]
        found = torch.autograd.grad(
            [out for out, grad in zip(answer[:2], gradients, strict=True) if out is not None and grad is not None],
            [cast("Tensor", aliases[number]) for number in wanted],
            [grad for grad in gradients if grad is not None],
            create_graph=True,
            allow_unused=True,
        )
    answers: list[Tensor | None] = [None] * len(tensors)
    for number, gradient in zip(wanted, found, strict=True):
        answers[number] = gradient
    return answers
