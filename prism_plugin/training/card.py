"""The card of a trained model: what it predicts, how well, from what, and what to fill in before others use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prism_plugin import __version__
from prism_plugin.model import PRISM
from prism_plugin.schema import as_dict
from prism_plugin.settings import TrainingSettings
from prism_plugin.tasks.scores import Scores, format_score

__all__ = ["card"]

_TOLD = (
    "optimizer",
    "lr",
    "options",
    "epochs",
    "batch_size",
    "clip",
    "huber",
    "weights",
    "rotate",
    "seed",
    "precision",
)


def card(
    settings: TrainingSettings,
    model: PRISM,
    scores: Scores,
    atoms: Mapping[str, tuple[int, int]],
    contest: Mapping[str, Any],
) -> str:
    """Write the card, Markdown.

    Args:
        settings: of the training.
        model: the trained model.
        scores: of each part.
        atoms: least and most atoms of the crystals of each part.
        contest: of a run from an initial model what that predicts (``initial_model``), and which model was ``kept``.
    """
    given = as_dict(settings)
    told = {name: given[name] for name in _TOLD if given[name] not in (None, {}, ())}
    aside = ("element_types", "element_refs", "target", "unit")
    options = [f"{name} = {_shown(value)}" for name, value in {**model.arguments, **told}.items() if name not in aside]
    if model.task == "potential":
        title, of_what = "A potential", "Energies (eV), forces (eV/Å) and stresses (eV/Å³)"
    else:
        title, of_what = (
            f"A model of {model.target}",
            f"{model.target}, in {model.unit}" if model.unit else model.target,
        )
    lines = [
        f"# {title}",
        "",
        f"{of_what}, of crystals. Trained by prism-plugin {__version__}.",
        "",
        "| part | atoms of a cell | scores |",
        "|---|---|---|",
        *[f"| {part} | {low} to {high} | {format_score(scores[part])} |" for part, (low, high) in atoms.items()],
        "",
        "The epoch was chosen on the part val. The part test, if there is one, chose nothing.",
        "",
        f"* elements, {len(model.element_types)}: {' '.join(model.element_types)}; others are refused",
        f"* weights: {sum(weight.numel() for weight in model.parameters()):,}",
        f"* {'; '.join(options)}",
        *_origin(contest),
        "",
        "## Use",
        "```python",
        "from prism_plugin import PRISMCalculator, load",
        "",
        'model = load("FOLDER")  # or matgl.load_model',
        'atoms.calc = PRISMCalculator("FOLDER")',
        "```",
        "",
        "## To fill in before others use it",
        "* where the crystals and their labels come from, and their licence",
        "* what it must not be used for: kinds of structures that are not in the data (surfaces, molecules, "
        "pressure, other functionals, structures that are not relaxed)",
        "",
    ]
    return "\n".join(lines)


def _origin(contest: Mapping[str, Any]) -> list[str]:
    """Say what a model began as, if it did not begin with random weights."""
    if not contest:
        return []
    began = (
        f"* began as a model of {contest['initial_model']} (a run of prism train names it in config.json); the licence "
        "of its data counts, too"
    )
    if "kept" not in contest:
        return [began]
    losses = ", ".join(f"{name} {loss:.4g}" for name, loss in contest["validation"].items())
    return [f"{began}; kept: {contest['kept']} (validation losses: {losses})"]


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else repr(value)
