"""``prism info``: say what a model is, or what is installed, shipped and known by name."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prism_plugin import __version__

__all__ = ["add_parser", "describe_installation", "describe_model", "run"]

# Library -> what to say where it is missing.
_LIBRARIES = dict.fromkeys(("torch", "matgl", "dgl", "lightning", "pymatgen-core", "ase", "schedulefree"), "") | {
    "jarvis-tools": " (pip install 'prism-plugin[data]')",
    "matminer": " (pip install 'prism-plugin[data]')",
    "matbench": " (docs/matbench.md)",
}


def add_parser(commands: Any) -> None:
    """Add the command."""
    info = commands.add_parser(
        "info",
        help="say what a model is, or what is installed, shipped and known by name",
        description="With a model: its target, sizes, elements, scores. Without: versions, devices, data sets, models.",
    )
    info.add_argument("model", nargs="?", help="folder of a model, or the name of a shipped one")


def run(arguments: argparse.Namespace) -> None:
    """Print the description."""
    print(describe_installation() if arguments.model is None else describe_model(arguments.model))


def describe_model(name: str | Path) -> str:
    """Describe what a saved model predicts, how large it is, what it was trained with, and its scores.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it is damaged.
    """
    from prism_plugin.pretrained import load, model_folder, saved_metadata
    from prism_plugin.tasks import TASKS
    from prism_plugin.tasks.scores import format_score

    folder = model_folder(name)
    model = load(folder)
    kept = saved_metadata(folder)
    arguments = model.arguments
    unit = TASKS[model.task].unit_of(model)
    radii = ("cutoff", "cell_cutoff", "similarity_cutoff", "neighbors")
    sizes = ("backbone", "atom_encoder", "dim", "num_layers", "num_rbf", *radii, "experts")
    lines = [
        f"model       {name}",
        f"target      {model.target} ({unit}), {model.readout} over the atoms",
        f"parameters  {sum(parameter.numel() for parameter in model.parameters()):,}",
        f"sizes       {', '.join(f'{size} = {arguments[size]}' for size in sizes if size in arguments)}",
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
    import torch

    from prism_plugin.data import DATASETS
    from prism_plugin.data.download import cache_home
    from prism_plugin.optim import OPTIMIZERS
    from prism_plugin.pretrained import COMMITTEE, model_names

    lines = [f"prism-plugin {__version__}, Python {platform.python_version()}"]
    for library, hint in _LIBRARIES.items():
        try:
            lines.append(f"  {library} {version(library)}")
        except PackageNotFoundError:
            lines.append(f"  {library} is not installed{hint}")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    lines.append(f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', cuda: {name}' for name in names)}")
    lines.append(f"optimizers: {', '.join(sorted(OPTIMIZERS))}, or the path of a class")
    lines.append(f"models: {', '.join(model_names())}")
    lines.append(f"  those of the committee (prism_plugin.COMMITTEE): {', '.join(COMMITTEE)}")
    lines.append(f"data sets (downloads go to {cache_home()}):")
    for name, data in DATASETS.items():
        lines.append(f"  {name}: {data.about}; targets: {', '.join(data.targets)}")
    return "\n".join(lines)
