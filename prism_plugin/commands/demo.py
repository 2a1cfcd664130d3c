"""``prism demo``: train on the embedded alloys, reload by matgl.load_model, predict by the ASE calculator."""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path
from typing import Any

from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run", "run_demo"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    demo = commands.add_parser(
        "demo",
        help="train, save, reload and use a model on alloys computed here by ASE's EMT; minutes, no download",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of the demo's runs")
    demo.add_argument("--crystals", type=int, default=1000, help="size of the data set")
    demo.add_argument("--epochs", type=int, default=40, help="passes over the training crystals")


def run(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    run_demo(arguments.out, arguments.crystals, arguments.epochs)


def run_demo(out: Path, crystals: int = 1000, epochs: int = 40) -> dict[str, float]:
    """Train on EMT alloys, save, reload through matgl, evaluate one crystal, and say where everything lies.

    Args:
        out: folder of the demo's runs; each call makes the next ``run-N`` in it.
        crystals: size of the data set.
        epochs: passes over the training crystals.

    Returns:
        Test MAE of the model and of the mean predictor, eV/atom.
    """
    import matgl

    from prism_plugin.calculators import PRISMCalculator
    from prism_plugin.data import split_records
    from prism_plugin.data.emt_alloys import emt_alloys
    from prism_plugin.tasks.scores import format_scores
    from prism_plugin.training import TrainingSettings, train

    if crystals < 20:
        raise PrismError(f"the demo needs at least 20 crystals for its three parts, got {crystals}")
    folder = next(out / f"run-{number}" for number in count(1) if not (out / f"run-{number}").exists())
    print(f"Computing {crystals} strained and rattled alloys of Al, Cu, Ag, Au, Ni, Pd, Pt with ASE's EMT potential.")
    parts = split_records(emt_alloys(crystals), seed=0)
    settings = TrainingSettings(
        target="formation_energy",
        unit="eV/atom",
        model={"dim": 64, "num_layers": 2, "num_rbf": 32, "cell_cutoff": 10.0},
        lr=3e-3,
        epochs=epochs,
        batch_size=32,
    )
    summary = train(settings, parts, folder)
    print(format_scores(summary["scores"], summary["target"], summary["unit"]))

    model = matgl.load_model(folder / "model")
    record = parts["test"][0]
    atoms = record.atoms.copy()
    atoms.calc = PRISMCalculator(model)
    predicted = atoms.get_potential_energy()
    print(f"\nOne test crystal, {record.name}, reloaded through matgl.load_model, through PRISMCalculator:")
    print(f"  formation energy {predicted:.3f} eV for {len(atoms)} atoms; EMT says {record.target * len(atoms):.3f} eV")
    print("\nEverything lies here:")
    for name, meaning in (
        ("model", "the trained model: matgl.load_model(...)"),
        ("parity.png", "predictions against EMT"),
        ("learning_curve.png", "MAE over the epochs"),
        ("predictions.csv", "every crystal's target and prediction"),
        ("summary.json", "scores, settings, versions"),
    ):
        print(f"  {folder / name}: {meaning}")
    scores = summary["scores"]["test"]
    return {"test_mae": scores["mae"], "mean_predictor_mae": scores["mean_predictor_mae"]}
