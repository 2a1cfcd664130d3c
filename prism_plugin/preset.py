"""Recipes by name: the rows of the PRISM supplement's Tables 2 to 4, other backbones, the models that ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from prism_plugin.config import INVARIANT
from prism_plugin.tasks.regression import Regression

__all__ = ["Preset", "format_presets", "presets"]


@dataclass(frozen=True)
class Preset:
    """One row of a table of the paper, or another recipe.

    Attributes:
        data: name of the data set (:data:`prism_plugin.data.DATASETS`).
        target: its property.
        optimizer: a key of :data:`prism_plugin.optim.OPTIMIZERS`.
        betas: of the optimizer.
        weight_decay: of the optimizer.
        epochs: passes over the training crystals.
        rotate: SO(3) augmentation.
        cell_cutoff: radius of the cell edges R_c, Å.
        dropout: rate between the last layer and the head.
        lr: learning rate; the maximum of a OneCycle schedule.
        batch_size: crystals per update.
        clip: largest norm of the gradient.
        batchnorm_batches: for the BatchNorm statistics before a validation; None takes all.
        sample_atoms: a crystal of n atoms is in an epoch with probability min(1, this / n); None: all are.
        model: the rest of the model's arguments; equal in all rows of the paper.
    """

    data: str
    target: str
    optimizer: str = "adamw-schedulefree"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    epochs: int = 500
    rotate: bool = True
    cell_cutoff: float = 15.0
    dropout: float = 0.0
    lr: float = 1e-3
    batch_size: int = 64
    clip: float | None = None
    batchnorm_batches: int | None = None
    sample_atoms: int | None = None
    model: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({"dim": 256, "num_layers": 4, "cutoff": 5.0, "similarity_cutoff": 1.0})
    )

    def settings(self) -> dict[str, Any]:
        """Arguments of :class:`~prism_plugin.training.TrainingSettings`, but for target and unit."""
        optional = {
            "clip": self.clip,
            "batchnorm_batches": self.batchnorm_batches,
            "sample_atoms": self.sample_atoms,
        }
        return {
            "model": {**self.model, "cell_cutoff": self.cell_cutoff, "dropout": self.dropout},
            "optimizer": self.optimizer,
            "lr": self.lr,
            "options": {"betas": self.betas, "weight_decay": self.weight_decay},
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "rotate": self.rotate,
            **{name: value for name, value in optional.items() if value is not None},
        }


_ADAM = "adam-onecycle"
# Of the gap model, and of the committee's other two: what learned most of what was tried (docs/what_was_tried.md).
# They were trained with --precision bf16-mixed, on a processor that has it.
_SHIPPED: dict[str, Any] = {
    **{name: Regression.recipe[name] for name in ("optimizer", "lr", "clip", "batchnorm_batches")},
    "model": MappingProxyType(
        {
            "dim": 128,
            "num_layers": 3,
            "num_rbf": 32,
            "cutoff": 4.0,
            "similarity_cutoff": 1.0,
            "experts": ["atomistic"],
            "atom_encoder": "cartnet",
        }
    ),
    "weight_decay": 0.1,
    "epochs": 20,
    "batch_size": 32,
}
# The default model: with the parts of our own, which make it invariant.
_DEFAULT: dict[str, Any] = {
    **_SHIPPED,
    "model": MappingProxyType({**_SHIPPED["model"], **INVARIANT}),
    "lr": 3e-3,
    "epochs": 26,
    "sample_atoms": 20,
}
_JDFT2D: dict[str, Any] = {"betas": (0.95, 0.999), "weight_decay": 1e-6, "epochs": 5000, "dropout": 0.5}

_JARVIS = ("formation_energy", "band_gap_opt", "total_energy", "band_gap_mbj", "e_hull")
# The other two backbones of the supplement, alone (docs/backbones.md); PRISM's experts beside: --set experts=...
_COMFORMER: dict[str, Any] = {
    "dim": 256,
    "num_rbf": 256,
    "cutoff": 8.0,
    "neighbors": 25,
    "experts": ("atomistic",),
    "atom_encoder": "embedding",
    "similarity_cutoff": 1.0,
}
_BACKBONES = {
    name: MappingProxyType({**_COMFORMER, "backbone": name, "num_layers": layers})
    for name, layers in (("icomformer", 4), ("ecomformer", 3))
}

presets: Mapping[str, Preset] = MappingProxyType(
    {
        # Table 2
        "jarvis/formation_energy": Preset("jarvis", "formation_energy"),
        "jarvis/band_gap_opt": Preset("jarvis", "band_gap_opt"),
        "jarvis/total_energy": Preset("jarvis", "total_energy", _ADAM),
        "jarvis/band_gap_mbj": Preset("jarvis", "band_gap_mbj", _ADAM),
        "jarvis/e_hull": Preset("jarvis", "e_hull", _ADAM, cell_cutoff=30.0),
        # Table 3
        "mp/formation_energy": Preset("mp2018", "formation_energy", weight_decay=1e-6),
        "mp/band_gap": Preset("mp2018", "band_gap", weight_decay=1e-6),
        "mp/shear_modulus": Preset("mp2018", "shear_modulus", _ADAM, epochs=1000),
        "mp/bulk_modulus": Preset("mp2018", "bulk_modulus", _ADAM, weight_decay=1e-6, rotate=False, cell_cutoff=30.0),
        # Table 4
        "matbench/mp_e_form": Preset("matbench_mp_e_form", "formation_energy", betas=(0.95, 0.999)),
        "matbench/jdft2d": Preset("matbench_jdft2d", "exfoliation_energy", **_JDFT2D),
        # Not of the paper: the models that ship.
        "mp2018/formation_energy": Preset("mp2018", "formation_energy", **_DEFAULT),
        "mp2018/band_gap": Preset("mp2018", "band_gap", **{**_SHIPPED, "epochs": 16}),
        **{
            f"{name}/{target}": Preset("jarvis", target, _ADAM, rotate=False, model=model)
            for name, model in _BACKBONES.items()
            for target in _JARVIS
        },
    }
)


def format_presets() -> str:
    """Format the presets as the supplement's tables do."""
    head = ("preset", "optimizer", "lr", "betas", "decay", "epochs", "rotate", "r_c", "R_c", "r_f", "dropout")
    rows = [head]
    for name, preset in presets.items():
        rows.append(
            (
                name,
                preset.optimizer,
                f"{preset.lr:g}",
                f"{preset.betas[0]:g}, {preset.betas[1]:g}",
                f"{preset.weight_decay:g}",
                str(preset.epochs),
                "yes" if preset.rotate else "no",
                f"{preset.model['cutoff']:g} Å",
                f"{preset.cell_cutoff:g} Å",
                f"{preset.model['similarity_cutoff']:g}",
                f"{preset.dropout:g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
