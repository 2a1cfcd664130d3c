"""Training: Lightning module, BatchNorm re-estimation, runs, plots."""

from __future__ import annotations

from prism_plugin.training.batchnorm import reestimate_batchnorm
from prism_plugin.training.module import PropertyTraining
from prism_plugin.training.run import TrainingSettings, train

__all__ = ["PropertyTraining", "TrainingSettings", "reestimate_batchnorm", "train"]
