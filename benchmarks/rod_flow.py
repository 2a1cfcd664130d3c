"""How well rod flow and stable flow follow nine optimizers: explicit errors on the 241-parameter network, three seeds.

Prints the tables of docs/rod_flow.md: both forms of the rod against the stable flow; the same with finer Euler steps; a
rod entered from below, with and without the rounding floor and in the outer form. With folders of `prism rodflow`, the
errors of their runs instead.

    python benchmarks/rod_flow.py [FOLDER ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prism_plugin.edge_of_stability import make_problem
from prism_plugin.edge_of_stability.tracker import BETAS, SETTINGS, summarize
from prism_plugin.optim import Discrete, RodShadow
from prism_plugin.optim.rod_flow.phase_space import METHODS

SEEDS = range(3)
STEPS = 400


def follow(shadow: RodShadow, steps: int) -> dict[str, np.ndarray]:
    rows = [shadow.step() for _ in range(steps + 10)][10:]
    return {key: np.array([row[key] for row in rows], dtype=float) for key in rows[0]}


def toy(method: str, seed: int, **settings) -> dict[str, np.ndarray]:
    problem = make_problem("toy", seed)
    optimizer = Discrete(problem.model.parameters(), method, SETTINGS[method]["toy"], *BETAS[method])
    return follow(RodShadow(optimizer, problem.loss, **settings), STEPS)


def mean(values: list[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(*cells: str) -> None:
    print()
    print_row(*cells)
    print("|" + "---|" * len(cells))


def moves(found: dict[str, float]) -> str:
    """Relative change of nu in a step: the largest, and along the rod."""
    return "" if np.isnan(found["nu_variation"]) else f"{found['nu_variation']:.2f}, {found['nu_variation_rod']:.2f}"


def listed(values: list[float]) -> str:
    return f"**{mean(values):.1f}** ({', '.join(f'{value:.1f}' for value in values)})"


def errors() -> None:
    print_head(
        "optimizer", "lr; betas", "mean distance: stable", "rod", "stable / rod (seeds)", "outer rod", "stable / outer",
        "RMSE / way: stable, rod", "last distance: stable, rod", "nu moves in a step: most, along the rod",
    )  # fmt: skip
    for method in METHODS:
        signed = [summarize(toy(method, seed)) for seed in SEEDS]
        outer = [summarize(toy(method, seed, form="outer")) for seed in SEEDS]
        column = {key: mean([one[key] for one in signed]) for key in signed[0] if "distance" in key or "rmse" in key}
        print_row(
            method,
            "; ".join([f"{SETTINGS[method]['toy']:g}", *(f"{beta:g}" for beta in BETAS[method] if beta)]),
            f"{column['mean_distance_stable']:.3f}",
            f"{column['mean_distance_rod']:.4f}",
            listed([one["advantage"] for one in signed]),
            f"{mean([one['mean_distance_rod'] for one in outer]):.4f}",
            f"{mean([one['advantage'] for one in outer]):.1f}",
            f"{column['relative_rmse_stable']:.3f}, {column['relative_rmse_rod']:.4f}",
            f"{column['final_distance_stable']:.3f}, {column['final_distance_rod']:.4f}",
            moves({key: max(one[key] for one in signed) for key in ("nu_variation", "nu_variation_rod")}),
        )


def finer_steps() -> None:
    print_head("optimizer", "stable / rod with Euler steps of 1/2", "1/4", "1/8")
    for method in ("gd", "heavy-ball", "rmsprop", "adam"):
        found = [mean([summarize(toy(method, seed, substeps=n))["advantage"] for seed in SEEDS]) for n in (2, 4, 8)]
        print_row(method, *(f"{value:.1f}" for value in found))


def from_below(seed: int, **settings) -> dict[str, np.ndarray]:
    """A harder function and gradient descent with lr 0.2: the edge comes when the rod is long closed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 5, dtype=torch.float64, generator=generator)
    y = 3 * ((2 * x[:, 0]).sin() * x[:, 1].cos())[:, None]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    return follow(RodShadow(optimizer, lambda: 0.5 * (net(x) - y).square().mean(), **settings), 800)


def entries() -> None:
    print_head("gd, lr 0.2, from below", "stable / rod (seeds)", "rod at the end: length, sharpness / threshold")
    for name, settings in {
        "signed, with the floor": {},
        "signed, without": {"floor": False},
        "outer, with the floor": {"form": "outer"},
    }.items():
        tables = [from_below(seed, **settings) for seed in SEEDS]
        ends = [f"{table['rod_length'][-1]:.1e}, {table['ratio'][-1]:.3f}" for table in tables]
        print_row(name, listed([summarize(table)["advantage"] for table in tables]), "; ".join(ends))


def runs(folders: list[Path]) -> None:
    print_head(
        "optimizer", "network", "lr", "mean distance: stable", "rod", "stable / rod", "RMSE / way: stable, rod", "open",
        "sharpness / threshold", "nu moves in a step: most, along the rod",
    )  # fmt: skip
    for path in [path for folder in folders for path in sorted(folder.glob("*.json"))]:
        found = json.loads(path.read_text())
        s = {key: np.nan if value is None else value for key, value in found["summary"].items()}
        settings = found["settings"]
        print_row(
            settings["optimizer"],
            settings["networks"],
            f"{found['lr']:g}",
            f"{s['mean_distance_stable']:.3f}",
            f"{s['mean_distance_rod']:.4f}",
            f"**{s['advantage']:.1f}**",
            f"{s['relative_rmse_stable']:.3f}, {s['relative_rmse_rod']:.4f}",
            f"{s['open_share']:.0%}",
            f"{s['edge_ratio']:.3f}",
            moves(s),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="of `prism rodflow`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.folders:
        runs(arguments.folders)
        return
    errors()
    finer_steps()
    entries()


if __name__ == "__main__":
    main()
