"""What a model is, and what is here: texts of ``prism info``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prism_plugin import __version__
from prism_plugin.data import DATASETS
from prism_plugin.data.download import cache_home
from prism_plugin.optim import OPTIMIZERS
from prism_plugin.pretrained import COMMITTEE, available_models, load, model_folder, saved_metadata
from prism_plugin.training.scores import format_score

__all__ = ["describe_installation", "describe_model"]

# Library -> what to say where it is missing.
_LIBRARIES = dict.fromkeys(("torch", "matgl", "dgl", "lightning", "pymatgen", "ase", "schedulefree"), "") | {
    "jarvis-tools": " (pip install 'prism-plugin[data]')",
    "matminer": " (pip install 'prism-plugin[data]')",
    "matbench": " (docs/matbench.md)",
}


def describe_model(name: str | Path) -> str:
    """Say what a saved model predicts, how large it is, what it was trained with, and its scores.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it is damaged.
    """
    folder = model_folder(name)
    model = load(folder)
    kept = saved_metadata(folder)
    arguments = model.arguments
    unit = "probability" if model.task_type == "classification" else model.unit or "no unit"
    sizes = ("dim", "num_layers", "num_rbf", "cutoff", "cell_cutoff", "similarity_cutoff", "experts")
    lines = [
        f"model       {name}",
        f"target      {model.target} ({unit}), {model.readout} over the atoms",
        f"parameters  {sum(parameter.numel() for parameter in model.parameters()):,}",
        f"sizes       {', '.join(f'{size} = {arguments[size]}' for size in sizes)}",
        f"elements    {len(model.element_types)}: {' '.join(model.element_types)}",
    ]
    for part, scores in kept.get("scores", {}).items():
        lines.append(f"{part:<11} {format_score(scores)}")
    settings: dict[str, Any] = kept.get("settings", {})
    if settings:
        told = ("optimizer", "lr", "epochs", "batch_size", "seed")
        lines.append(f"training    {', '.join(f'{key} = {settings[key]}' for key in told if key in settings)}")
    try:
        weights = model.fusion_weights()
    except RuntimeError:  # gated: they depend on the input
        weights = {}
    for nodes, rows in weights.items():
        if len(rows[0]) == 1:  # one expert has all the weight
            continue
        for layer, row in enumerate(rows, start=1):
            shares = ", ".join(f"{expert} {share:.2f}" for expert, share in row.items())
            lines.append(f"{nodes:<11} layer {layer}: {shares}")
    if (folder / "README.md").exists():
        lines.append(f"card        {folder / 'README.md'}")
    return "\n".join(lines)


def describe_installation() -> str:
    """List versions, devices, data sets, models and optimizers."""
    lines = [f"prism-plugin {__version__}, Python {platform.python_version()}"]
    for library, hint in _LIBRARIES.items():
        try:
            lines.append(f"  {library} {version(library)}")
        except PackageNotFoundError:
            lines.append(f"  {library} is not installed{hint}")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    lines.append(f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', cuda: {name}' for name in names)}")
    lines.append(f"optimizers: {', '.join(sorted(OPTIMIZERS))}, or the path of a class")
    lines.append(f"models: {', '.join(available_models())}")
    lines.append(f"  those of the committee (prism_plugin.COMMITTEE): {', '.join(COMMITTEE)}")
    lines.append(f"data sets (downloads go to {cache_home()}):")
    for name, data in DATASETS.items():
        lines.append(f"  {name}: {data.about}; targets: {', '.join(data.targets)}")
    return "\n".join(lines)
