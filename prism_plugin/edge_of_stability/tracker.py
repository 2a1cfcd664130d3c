"""One tracking experiment: networks one after the other, a table (CSV) of each, and the picture of all.

The folder: ``<network>.csv`` (a row a step) and ``<network>.json`` (settings and summary) of every network, and
``tracking.png``. What is there already, of the same settings, is not computed again.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from prism_plugin import __version__
from prism_plugin.data import Record
from prism_plugin.data.records import fingerprint
from prism_plugin.edge_of_stability.networks import NETWORKS, make_problem
from prism_plugin.edge_of_stability.plots import plot_tracking
from prism_plugin.errors import PrismError
from prism_plugin.files import write_json, write_table
from prism_plugin.optim.rod_flow.discrete import Discrete
from prism_plugin.optim.rod_flow.phase_space import METHODS
from prism_plugin.optim.rod_flow.shadow import RodShadow

__all__ = ["SETTINGS", "TrackingSettings", "format_summary", "summarize", "track"]

STEADY = 0.1
# (beta1, beta2) of every method, and its learning rate on every network: such that training meets the edge of
# stability within 400 steps without leaving the reach of either flow at once. Those of "toy" are the specification's.
BETAS = {
    "gd": (0.0, 0.0),
    "heavy-ball": (0.4, 0.0),
    "nesterov": (0.4, 0.0),
    "scalar-rmsprop": (0.0, 0.99),
    "rmsprop": (0.0, 0.99),
    "scalar-adam": (0.5, 0.99),
    "adam": (0.5, 0.99),
    "scalar-nadam": (0.5, 0.99),
    "nadam": (0.5, 0.99),
}
SETTINGS: dict[str, dict[str, float]] = {
    "gd": {"toy": 0.8, "mlp": 0.3, "cnn": 0.45, "vit": 0.1, "prism": 0.03},
    "heavy-ball": {"toy": 1.6, "mlp": 0.6, "cnn": 0.95, "vit": 0.25, "prism": 0.06},
    "nesterov": {"toy": 1.0, "mlp": 0.4, "cnn": 0.7, "vit": 0.16, "prism": 0.04},
    "scalar-rmsprop": {"toy": 0.05, "mlp": 0.08, "cnn": 0.04, "vit": 0.04, "prism": 0.05},
    "rmsprop": {"toy": 0.005, "mlp": 0.001, "cnn": 0.001, "vit": 0.0005, "prism": 0.0003},
    "scalar-adam": {"toy": 0.1, "mlp": 0.12, "cnn": 0.1, "vit": 0.06, "prism": 0.1},
    "adam": {"toy": 0.01, "mlp": 0.002, "cnn": 0.004, "vit": 0.001, "prism": 0.0005},
    "scalar-nadam": {"toy": 0.05, "mlp": 0.08, "cnn": 0.05, "vit": 0.04, "prism": 0.05},
    "nadam": {"toy": 0.005, "mlp": 0.001, "cnn": 0.0015, "vit": 0.0005, "prism": 0.0003},
}


@dataclass(frozen=True)
class TrackingSettings:
    """Everything that decides an experiment but the crystals.

    Attributes:
        optimizer: a key of :data:`prism_plugin.optim.rod_flow.phase_space.METHODS`.
        networks: keys of :data:`prism_plugin.edge_of_stability.NETWORKS`.
        steps: optimizer steps that are tracked, after those of the warm-up.
        lr: learning rate in the EMA convention; None takes that of the table.
        beta1: of the momentum; None takes that of the table. beta2: of the second moment, likewise.
        form: of the rod: ``"signed"`` or ``"outer"``.
        substeps: Euler steps of both flows per optimizer step.
        warmup: optimizer steps before the flows start.
        floor: rounding noise on the rod.
        sharpness_every: steps between two computations of the sharpness by Lanczos; 0 is never.
        dtype: ``"float64"`` or ``"float32"``.
        seed: of weights and noise.
    """

    optimizer: str
    networks: tuple[str, ...] = ("mlp", "cnn", "vit")
    steps: int = 400
    lr: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    form: str = "signed"
    substeps: int = 2
    warmup: int = 10
    floor: bool = True
    sharpness_every: int = 10
    dtype: str = "float64"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check everything before any work."""
        if self.optimizer not in METHODS:
            raise PrismError(f"unknown optimizer {self.optimizer!r}; choose one of: {', '.join(METHODS)}")
        for name in self.networks:
            if name not in NETWORKS:
                raise PrismError(f"unknown network {name!r}; choose one of: {', '.join(NETWORKS)}")
        if not self.networks:
            raise PrismError(f"no network is given; choose some of: {', '.join(NETWORKS)}")
        if self.dtype not in ("float64", "float32"):
            raise PrismError(f"unknown dtype {self.dtype!r}; choose one of: float64, float32 (bf16 has no second ends)")
        for name, low in (("steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise PrismError(f"{name} must be a whole number of at least {low}, got {value!r}")
        for name, kind in (("beta1", "momentum"), ("beta2", "scaling")):
            if getattr(self, name) is not None and kind not in METHODS[self.optimizer]:
                raise PrismError(f"{self.optimizer} has no {name}: leave it out")
        weight = torch.nn.Parameter(torch.zeros(1))
        self.make_shadow([weight], lambda: weight.square().sum(), self.networks[0])  # whose constructors check the rest

    def make_shadow(self, parameters: Any, loss: Any, network: str) -> RodShadow:
        """Make optimizer and flows for a network."""
        lr = SETTINGS[self.optimizer][network] if self.lr is None else self.lr
        betas = zip((self.beta1, self.beta2), BETAS[self.optimizer], strict=True)
        beta1, beta2 = (usual if given is None else given for given, usual in betas)
        optimizer = Discrete(parameters, self.optimizer, lr, beta1, beta2)
        return RodShadow(
            optimizer, loss, self.warmup, self.substeps, self.form, self.floor, self.sharpness_every, self.seed
        )


def track(
    settings: TrackingSettings,
    folder: str | Path,
    records: Sequence[Record] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Run an experiment and write its folder.

    Args:
        settings: what to do.
        folder: where; made if missing.
        records: crystals for ``"prism"``; None computes alloys.
        progress: whether there are progress bars.

    Returns:
        A summary of every network, see :func:`summarize`.

    Raises:
        ValueError: if the folder holds an experiment of other settings, or the run diverges.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summaries, tables, titles = {}, {}, {}
    for name in settings.networks:
        found, tables[name] = _track_network(settings, name, folder, records, progress)
        summaries[name] = {"description": found["description"], "lr": found["lr"], **found["summary"]}
        summaries[name] = {key: math.nan if value is None else value for key, value in summaries[name].items()}
        titles[name] = f"{found['description']}\nlr {found['lr']:g}"
    plot_tracking(tables, titles, settings.optimizer, folder / "tracking.png")
    return summaries


def _track_network(
    settings: TrackingSettings, name: str, folder: Path, records: Sequence[Record] | None, progress: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run one network, or read what is there of it; give what its JSON file holds, and the columns of its table."""
    crystals = fingerprint({"all": records}) if name == "prism" and records is not None else None
    described = {**asdict(settings), "networks": name, "crystals": crystals}
    kept, table = folder / f"{name}.json", folder / f"{name}.csv"
    if kept.exists():
        try:
            found = json.loads(kept.read_text())
        except json.JSONDecodeError as error:
            raise PrismError(f"{str(kept)!r} is damaged ({error}): remove it, and the run is repeated") from error
        different = sorted(key for key in described if found["settings"].get(key) != described[key])
        if different:
            raise PrismError(
                f"{str(folder)!r} holds a run of {name} with other {', '.join(different)}: choose another folder"
            )
        return found, _read(table)
    problem = make_problem(name, settings.seed, getattr(torch, settings.dtype), records)
    shadow = settings.make_shadow(problem.model.parameters(), problem.loss, name)
    steps = range(settings.steps + settings.warmup)
    bar = tqdm(steps, desc=f"{settings.optimizer} {name}", unit="step", disable=not progress)
    rows: list[dict[str, Any]] = []
    try:
        rows.extend(shadow.step() for _ in bar)
    except ValueError as error:
        raise PrismError(f"{name}: {error}") from error
    finally:  # what there is of a run that diverged or was interrupted can be looked at
        if rows:
            _write(rows, table)
    columns = _read(table)
    found = {
        "settings": described,
        "description": problem.description,
        "lr": float(shadow.optimizer.param_groups[0]["lr"]),
        "summary": {key: value if math.isfinite(value) else None for key, value in summarize(columns).items()},
        "versions": {"prism-plugin": __version__, "torch": version("torch")},
    }
    write_json(kept, found)
    return found, columns


def summarize(table: dict[str, np.ndarray]) -> dict[str, float]:
    """Explicit errors of both flows, of the steps after the warm-up.

    Args:
        table: the columns of a run; NaN where there is nothing.

    Returns:
        ``mean_distance_*`` (over the steps), ``final_distance_*``, ``relative_rmse_*`` (root mean square of the
        distance, over the length of the way that the iterates' middle went); ``advantage``, the mean distance of the
        stable flow over that of the rod; ``edge_ratio``, the median of rod sharpness over threshold where the rod is
        open and steady (its length changes by less than a tenth in a step); ``open_share`` of the steps;
        ``nu_variation`` and ``nu_variation_rod``, the largest in a step in which the rod is open.
    """
    flows = np.isfinite(table["distance_rod"])
    rod, stable = table["distance_rod"][flows], table["distance_stable"][flows]
    is_open = table["open"][flows] > 0
    way = float(np.nansum(table["way"][flows]))
    found = {"steps": int(flows.sum()), "open_share": float(is_open.mean()) if flows.any() else math.nan}
    for name, distance in (("rod", rod), ("stable", stable)):
        found[f"mean_distance_{name}"] = float(distance.mean())
        found[f"final_distance_{name}"] = float(distance[-1])
        found[f"relative_rmse_{name}"] = float(np.sqrt((distance**2).mean()) / way)
    found["advantage"] = float(stable.mean() / rod.mean())
    length = table["rod_length"][flows]
    steady = is_open[:-1] & (np.abs(length[1:] - length[:-1]) < STEADY * length[:-1])
    found["edge_ratio"] = float(np.median(table["ratio"][flows][:-1][steady])) if steady.any() else math.nan
    for name in ("nu_variation", "nu_variation_rod"):
        values = table[name][flows][is_open]
        found[name] = float(values.max()) if is_open.any() else math.nan
    return found


def format_summary(summaries: dict[str, dict[str, Any]]) -> str:
    """Format the errors as a table."""
    lines = [
        f"{'network':<8} {'lr':>7} {'mean distance':>14} {'':>9} {'stable/rod':>11} {'open':>6} {'sharpness/edge':>20}",
        f"{'':<8} {'':>7} {'stable flow':>14} {'rod':>9} {'':>11} {'':>6} {'of the open rod':>20}",
    ]
    for name, s in summaries.items():
        lines.append(
            f"{name:<8} {s['lr']:>7g} {s['mean_distance_stable']:>14.3g} {s['mean_distance_rod']:>9.3g} "
            f"{s['advantage']:>11.1f} {s['open_share']:>6.0%} {s['edge_ratio']:>20.3f}"
        )
    return "\n".join(lines)


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numbers = ([row.get(key, "") for key in columns] for row in rows)
    write_table(path, [columns, *([int(n) if isinstance(n, bool) else n for n in row] for row in numbers)])


def _read(path: Path) -> dict[str, np.ndarray]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]}
