"""The two-dimensional problems of the ELRA paper: its Tables 1 and 2 and its Fig. 3, beside torch's optimizers.

    python examples/elra_toy_problems.py --out elra_toy_problems.png

A step is one update of the point; ELRA's soft restarts count. Everything is float64 and takes half a minute.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import Adadelta, Adam, Optimizer, RMSprop

from prism_plugin.optim import ELRA

BOWL = (lambda x: 3 * x[0] ** 2 + 24 * x[1] ** 2, (-5.75, 1.75))
ROSENBROCK = (lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, (-3.0, -2.0))
FAR_ROSENBROCK = (ROSENBROCK[0], (-11.0, 121.0))
SADDLE = (lambda x: x[0] ** 2 - x[1] ** 2, (1.0, 1e-9))

# problem, threshold, what the paper gives for Adam, RMSprop and ELRA
TABLES = {
    "bowl, f < 1e-1": (BOWL, 1e-1, ("128", "142", "9")),
    "bowl, f < 1e-6": (BOWL, 1e-6, ("184", "never", "12")),
    "Rosenbrock (-3, -2), f < 1": (ROSENBROCK, 1.0, ("208", "176", "10")),
    "Rosenbrock (-11, 121), f < 1": (FAR_ROSENBROCK, 1.0, ("> 10,000", "> 10,000", "300")),
    "saddle, f < -1": (SADDLE, -1.0, ("-", "-", "8")),
}
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "Adam": lambda params: Adam(params, lr=0.05, betas=(0.8, 0.9)),
    "RMSprop": lambda params: RMSprop(params, lr=0.05, alpha=0.9),
    "ELRA": lambda params: ELRA(params, max_step=None),
}
FIGURE_3 = {
    "ELRA": (OPTIMIZERS["ELRA"], "C0"),
    "Adam": (lambda params: Adam(params, lr=0.01), "C1"),
    "AdaDelta": (lambda params: Adadelta(params, lr=1.0), "C2"),
    "RMSprop": (lambda params: RMSprop(params, lr=0.01), "C3"),
}


def follow(problem: tuple, make: Callable, below: float, most: int = 20_000, degrees: float = 0.0) -> tuple[list, list]:
    """Go from the start until the function is below a threshold, in coordinates turned by an angle.

    Returns:
        Function values and points in the problem's own coordinates, from the start on.
    """
    function, start = problem
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    point = torch.nn.Parameter(turn @ torch.tensor(start, dtype=torch.float64))
    optimizer = make([point])
    values, points = [float(function(start))], [start]
    while values[-1] >= below and len(values) <= most:
        optimizer.zero_grad()
        loss = function(turn.T @ point)
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
        own = turn.T @ point.detach()
        points.append(tuple(own.tolist()))
        values.append(float(function(own)))
    return values, points


def steps(problem: tuple, make: Callable, below: float, most: int = 20_000) -> str:
    return counted(follow(problem, make, below, most)[0], below)


def counted(values: list, below: float) -> str:
    """How many steps a path took, or that it did not get there."""
    return f"{'' if values[-1] < below else '> '}{len(values) - 1:,}"


def draw(path: Path, most: int) -> dict[str, dict[int, str]]:
    """Draw Fig. 3; give the steps of each optimizer at 0 and at 45 degrees."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    taken: dict[str, dict[int, str]] = {}
    for name, (make, color) in FIGURE_3.items():
        for degrees, line, mark in ((0, "-", "+"), (45, "--", "x")):
            values, points = follow(SADDLE, make, -1.0, most, degrees)
            count = counted(values, -1.0)
            taken.setdefault(name, {})[degrees] = count
            label = f"{name}, {degrees}°: {count} steps"
            left.plot(range(len(values)), values, line, color=color, label=label)
            every = max(1, len(points) // 15)
            size, above = (11, 5) if name == "ELRA" else (6, 2)
            right.plot(
                *zip(*points, strict=True), mark + line, color=color, ms=size, lw=0.8, markevery=every, zorder=above
            )
    left.set(xlabel="step", ylabel="f = x1² - x2²", xscale="symlog", ylim=(-2, 1.1), title="Steps to f < -1")
    left.legend(fontsize=8)
    right.set(
        xlabel="x1", ylabel="x2", xlim=(-0.1, 1.1), ylim=(-0.2, 1.5), title="Paths (+ 0°, x 45°; some of the points)"
    )
    for panel in (left, right):
        panel.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("elra_toy_problems.png"))
    parser.add_argument("--dry-run", action="store_true", help="at most 300 steps")
    arguments = parser.parse_args()
    most = 300 if arguments.dry_run else 20_000
    print(f"{'measured (paper)':<30}" + "".join(f"{name:>24}" for name in OPTIMIZERS))
    for title, (problem, below, paper) in TABLES.items():
        cells = [
            f"{steps(problem, make, below, most)} ({given})"
            for make, given in zip(OPTIMIZERS.values(), paper, strict=True)
        ]
        print(f"{title:<30}" + "".join(f"{cell:>24}" for cell in cells))
    print("\nFig. 3, steps to f < -1 on the saddle, unturned / turned by 45 degrees:")
    for name, taken in draw(arguments.out, most).items():
        print(f"{name:<10}{taken[0]:>6} / {taken[45]}")
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
