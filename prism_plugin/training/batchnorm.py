"""BatchNorm statistics for the weights that are evaluated.

Running statistics follow the weights that are trained. ScheduleFree evaluates an average of them, for which they are
wrong; so they are computed anew, cumulatively, over training batches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prism_plugin.evaluation import evaluation
from prism_plugin.graph.crystals import CrystalBatch

__all__ = ["reestimate_batchnorm"]


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[CrystalBatch]) -> None:
    """Replace the running statistics by plain averages over batches.

    Only the BatchNorm layers run in train mode (dropout stays off); all modes and momenta are restored.

    Args:
        model: any model on crystal batches.
        batches: training batches; at least one.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluation(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.training = True
            for batch in batches:
                model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
