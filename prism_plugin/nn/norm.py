"""BatchNorm over the rows of all edges or nodes of a batch, and of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.distributed import rank_and_size, statistics_over_processes

__all__ = ["FeatureNorm"]


class FeatureNorm(nn.BatchNorm1d):
    """BatchNorm over edges or nodes that also accepts fewer than two of them while training.

    With none or one there is no batch variance; then the running statistics normalize and stay as they are. In a
    data-parallel training the statistics are those of the rows of all processes, which are two at least: each has a
    crystal, and an atom with a neighbor is one of two that have an edge.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    _seen = 0  # num_batches_tracked, as the host can read it without waiting for the device

    def reset_running_stats(self) -> None:
        """Begin the running statistics anew."""
        super().reset_running_stats()
        self._seen = 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._seen = int(state_dict.get(f"{prefix}num_batches_tracked", self._seen))

    def has_statistics(self, rows: Tensor) -> bool:
        """Whether rows are normalized by their own statistics; of several processes all answer the same."""
        return self.training and (len(rows) >= 2 or rank_and_size()[1] > 1)

    def running(self) -> tuple[Tensor, Tensor]:
        """Factor and summand that normalize by the running statistics, shape ``(dim,)`` each."""
        factor = self.weight * torch.rsqrt(self.running_var + self.eps)
        return factor, self.bias - self.running_mean * factor

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, count: Tensor | float) -> None:
        """Let the running statistics follow those of ``count`` rows, ``(dim,)`` each; of fewer than two they stay."""
        share: Tensor | float = self._next_share()
        if isinstance(count, Tensor):
            share = share * (count >= 2)
            variance = variance * (count / (count - 1).clamp(min=1))
        else:
            variance = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)

    def _next_share(self) -> float:
        """Count a batch; give its share in the running statistics."""
        self.num_batches_tracked += 1
        self._seen += 1
        return 1.0 / self._seen if self.momentum is None else self.momentum

    def forward(self, values: Tensor) -> Tensor:
        """Normalize rows of shape ``(rows, dim)``."""
        if not self.has_statistics(values):
            return functional.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        if rank_and_size()[1] == 1:
            share = self._next_share()
            return functional.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, True, share, self.eps
            )
        # As torch's own SyncBatchNorm, which knows CUDA only; under autocast as there in the norm's own digits.
        values = values.to(self.weight.dtype)
        mean, variance, count = statistics_over_processes(values)
        self.follow(mean.detach(), variance.detach(), count)
        return (values - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _norm(kind: str | None, dim: int) -> nn.Module:
    return FeatureNorm(dim) if kind == "batch" else nn.Identity()
