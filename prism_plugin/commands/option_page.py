"""The page of all options, docs/options.md, from the schema: ``python -m prism_plugin.commands.option_page``."""

from __future__ import annotations

from typing import get_type_hints

from prism_plugin.config import OPTIMIZER_OPTIONS, ModelOptions, PotentialOptions
from prism_plugin.schema import described, resumable, wanted
from prism_plugin.settings import DataOptions, TrainingSettings

__all__ = ["option_page"]

_HEAD = """# Options

This page is generated: `python -m prism_plugin.commands.option_page > docs/options.md`.

The names are those of `prism train` (`--batch-size`), of its config files (`batch_size = 32`) and of
`TrainingSettings(batch_size=32)`. Model arguments are given by `--set NAME=VALUE` or in the table `[model]`, optimizer
options by `--option NAME=VALUE` or in the table `[options]`. Of a value that is given twice the command line counts,
then `--config`, then `--preset`, then the default."""


def option_page() -> str:
    """Return the page in Markdown."""
    parts = [
        _HEAD,
        _table("Training", TrainingSettings, "Settings marked * may change when a run goes on (`--resume`)."),
        _table("Data", DataOptions, ""),
        _table("Models: `PRISM`", ModelOptions, ""),
        _table("Potentials: `PRISMPotential` (target `pes`)", PotentialOptions, ""),
    ]
    for name, (options, has_schedule) in sorted(OPTIMIZER_OPTIONS.items()):
        schedule = "" if has_schedule else " More epochs may be asked for when a run goes on."
        parts.append(_table(f"Optimizer `{name}`", options, f"{options.__doc__}{schedule}"))
    return "\n\n".join(parts) + "\n"


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
