"""Loggers of Lightning beside the log of the run folder: a training in TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger

from prism_plugin.errors import PrismError

__all__ = ["make_logger"]


def make_logger(name: str, folder: Path) -> Logger:
    """Make a logger that writes into a run folder, or where its own configuration says.

    Args:
        name: ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``.
        folder: the run folder; gets ``tensorboard/``, ``wandb/`` or ``mlruns/``.

    Raises:
        ValueError: if its package is not installed.
    """
    try:
        if name == "tensorboard":
            return loggers.TensorBoardLogger(folder, name=name, version="")
        if name == "wandb":
            return loggers.WandbLogger(name=folder.resolve().name, project="prism-plugin", save_dir=folder)
        uri = f"file:{folder.resolve() / 'mlruns'}"
        return loggers.MLFlowLogger("prism-plugin", folder.resolve().name, tracking_uri=uri)
    except ModuleNotFoundError as error:
        raise PrismError(f"the logger {name!r} is not installed: pip install {name}") from error
