"""How the experts' answers are weighed.

Returns one convex combination of the experts' versions of the same nodes. Each version carries the
residual, so a convex sum keeps exactly one (our reading: decisions #4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Fusion"]


class Fusion(nn.Module):
    """Softmax-weighted sum of the experts' answers.

    Args:
        experts: names of the experts that answer, in order.
        dim: width of the features.
        kind: ``"scalar"``: one learned logit per expert, starting at 0; ``"gated"``: logits = W [h^(1) || h^(2) ...].
    """

    def __init__(self, experts: Sequence[str], dim: int, kind: str = "scalar") -> None:
        super().__init__()
        self.experts = tuple(experts)
        self.kind = kind
        self.last_weights: Tensor | None = None
        if len(self.experts) > 1:
            if kind == "scalar":
                self.logits = nn.Parameter(torch.zeros(len(self.experts)))
            else:
                self.gate = nn.Linear(len(self.experts) * dim, len(self.experts))

    def forward(self, answers: Sequence[Tensor]) -> Tensor:
        """Answers of shape ``(nodes, dim)``, one per expert -> ``(nodes, dim)``."""
        if len(answers) == 1:
            return answers[0]
        if self.kind == "scalar":
            weights = torch.softmax(self.logits, dim=0)
            fused = answers[0] * weights[0]
            for weight, answer in zip(weights[1:], answers[1:], strict=True):
                fused = fused + weight * answer
            return fused
        weights = torch.softmax(self.gate(torch.cat(list(answers), dim=-1)), dim=-1)
        self.last_weights = weights.detach().mean(dim=0)
        return (torch.stack(list(answers), dim=-1) * weights.unsqueeze(1)).sum(dim=-1)

    def weights(self) -> dict[str, float]:
        """Weight of each expert: learned (scalar), or averaged over the nodes of the last forward pass (gated).

        Raises:
            RuntimeError: for ``"gated"`` before any forward pass.
        """
        if len(self.experts) == 1:
            return {self.experts[0]: 1.0}
        if self.kind == "scalar":
            values = torch.softmax(self.logits.detach(), dim=0)
        elif self.last_weights is not None:
            values = self.last_weights
        else:
            raise RuntimeError("gated fusion weights depend on the input: predict something first")
        return dict(zip(self.experts, values.tolist(), strict=True))
