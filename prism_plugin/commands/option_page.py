"""The page of all options, docs/options.md, from the schema: ``python -m prism_plugin.commands.option_page``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_type_hints

from prism_plugin.config import OPTIMIZER_OPTIONS, ModelOptions, PotentialOptions
from prism_plugin.schema import described, resumable, wanted
from prism_plugin.settings import DataOptions, TrainingSettings
from prism_plugin.tasks.potential import Potential
from prism_plugin.tasks.regression import Regression

__all__ = ["option_page"]

_HEAD = """# Options

This page is generated: `python -m prism_plugin.commands.option_page > docs/options.md`.

The names are those of `prism train` (`--batch-size`), of its config files (`batch_size = 32`) and of
`TrainingSettings(batch_size=32)`. Model arguments are given by `--set NAME=VALUE` or in the table `[model]`, optimizer
options by `--option NAME=VALUE` or in the table `[options]`. Of a value that is given twice the command line counts,
then `--config`, then `--preset`, then what `prism train` [takes by itself](#what-prism-train-takes), then the
default."""

_RECIPES = (
    ("a property", Regression, "recipe"),
    ("a property, with `--init`", Regression, "fine_tuning"),
    ("the property of the initial model", Regression, "continuing"),
    ("a potential (target `pes`)", Potential, "recipe"),
    ("a potential, with `--init`", Potential, "fine_tuning"),
)


def option_page() -> str:
    """Return the page in Markdown."""
    parts = [
        _HEAD,
        _table("Training", TrainingSettings, "Settings marked * may change when a run goes on (`--resume`)."),
        _recipes(),
        _table("Data", DataOptions, ""),
        _table("Models: `PRISM`", ModelOptions, ""),
        _table("Potentials: `PRISMPotential` (target `pes`)", PotentialOptions, ""),
    ]
    for name, (options, has_schedule) in sorted(OPTIMIZER_OPTIONS.items()):
        schedule = "" if has_schedule else " More epochs may be asked for when a run goes on."
        parts.append(_table(f"Optimizer `{name}`", options, f"{options.__doc__}{schedule}"))
    return "\n\n".join(parts) + "\n"


def _recipes() -> str:
    lines = [
        "## What prism train takes",
        "The defaults above and below are those of `TrainingSettings` and of the classes in Python. `prism train` "
        "learns by these recipes where nothing else is said; a preset takes their place, and with another optimizer "
        "rate, decay and clip are left out. In Python: `TrainingSettings(target=..., **Regression.recipe)`, with "
        "`Regression` of `prism_plugin.tasks.regression` and `Potential` of `prism_plugin.tasks.potential`.",
        "",
        "| what is learned | in Python | settings |",
        "|---|---|---|",
    ]
    for what, task, name in _RECIPES:
        settings = {
            key: dict(value) if isinstance(value, Mapping) else value for key, value in getattr(task, name).items()
        }
        shown = ", ".join(f"`{key} = {value!r}`" for key, value in settings.items())
        lines.append(f"| {what} | `{task.__name__}.{name}` | {shown} |")
    return "\n".join(lines)


def _table(title: str, options: type, about: str) -> str:
    hints = get_type_hints(options, include_extras=True)
    changeable = resumable(options)
    lines = [
        f"## {title}",
        *([about, ""] if about else [""]),
        "| name | default | value | what it is for |",
        "|---|---|---|---|",
    ]
    for name, (default, what, extra) in described(options).items():
        mark = "*" if name in changeable else ""
        shown = extra.get("shown") or f"`{default!r}`"
        lines.append(f"| `{name}`{mark} | {shown} | {wanted(hints[name])} | {what} |".replace("||", "\\|\\|"))
    return "\n".join(lines)


if __name__ == "__main__":
    print(option_page(), end="")
