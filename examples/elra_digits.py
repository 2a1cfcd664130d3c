"""ELRA with a dynamic batch size on handwritten digits, in a plain PyTorch loop, beside SGD and Adam.

    python examples/elra_digits.py --out elra_digits.png

A 64-32-10 perceptron on scikit-learn's 1,797 images (1,437 to train on), micro-batches of 32, 40 epochs, 8 seeds, with
clean labels and with a fifth of the training labels replaced at random. About a minute; needs scikit-learn (pip install
'prism-plugin[examples]').
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer

from prism_plugin.optim import ELRA, BatchSizeControl

MICRO_BATCH = 32


def digits(seed: int, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on (a share of the labels random), images and labels to test on."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images / 16, labels, test_size=360, random_state=seed)
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(y)) < noise
    y[wrong] = generator.integers(0, 10, wrong.sum())
    return torch.tensor(x).float(), torch.tensor(y), torch.tensor(x_test).float(), torch.tensor(y_test)


def train(
    make: Callable[[list[nn.Parameter]], Optimizer],
    seed: int,
    epochs: int = 40,
    accumulate: int = 1,
    noise: float = 0.0,
    spoil: Callable[[int, Tensor], Tensor] = lambda window, loss: loss,
) -> dict[str, list[float]]:
    """Train once.

    Args:
        make: makes the optimizer.
        seed: of split, weights, order and noise.
        epochs: passes over the training images.
        accumulate: micro-batches per update; ELRA changes them.
        noise: share of random training labels.
        spoil: changes the loss of an update, to see what the optimizer makes of it.

    Returns:
        Test accuracy (%) of the last iterate and of the mean of iterates, alpha, accumulation and updates, per epoch.
    """
    x, y, x_test, y_test = digits(seed, noise)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = make(list(model.parameters()))
    elra = optimizer if isinstance(optimizer, ELRA) else None
    control = BatchSizeControl(accumulate, largest=len(x) // MICRO_BATCH // 2)
    history: dict[str, list[float]] = {name: [] for name in ("last", "mean", "alpha", "accumulate", "updates")}
    updates = 0
    for _ in range(epochs):
        order = torch.randperm(len(x))
        # Only full windows: what is left at the end of an epoch is skipped.
        size = MICRO_BATCH * control.accumulate
        for window in order[: len(x) // size * size].split(size):
            optimizer.zero_grad()
            losses = []
            for batch in window.split(MICRO_BATCH):
                loss = spoil(updates, cross_entropy(model(x[batch]), y[batch]))
                (loss / control.accumulate).backward()
                losses.append(loss.detach())
            if elra is None:
                optimizer.step()
            else:
                elra.step(loss=torch.stack(losses).mean())
            updates += 1
        history["last"].append(accuracy(model, x_test, y_test))
        if elra is not None:
            statistics = elra.end_cycle()
            if statistics is not None:
                control.update(*statistics)
            elra.eval()  # the mean of this epoch's accepted iterates goes into the weights ...
            history["mean"].append(accuracy(model, x_test, y_test))
            elra.train()  # ... and out again
        history["alpha"].append(float(optimizer.param_groups[0]["lr"]))
        history["accumulate"].append(control.accumulate)
        history["updates"].append(updates)
    return history


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * float((model(x).argmax(dim=1) == y).double().mean())


RUNS: dict[str, tuple[Callable, int]] = {
    "Adam, 1e-3": (lambda params: Adam(params, lr=1e-3), 1),
    "SGD, 0.1": (lambda params: SGD(params, lr=0.1), 1),
    "ELRA": (lambda params: ELRA(params, min_step=0.1, boost=True), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("elra_digits.png"))
    parser.add_argument("--dry-run", action="store_true", help="one seed, two epochs")
    arguments = parser.parse_args()
    seeds, epochs = (1, 2) if arguments.dry_run else (8, 40)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    print(f"{'test accuracy (%), mean ± std':<32}{'last iterate':>16}{'mean of iterates':>18}{'updates':>9}")
    for panel, noise in zip(figure.subplots(1, 2), (0.0, 0.2), strict=True):
        for number, (name, (make, accumulate)) in enumerate(RUNS.items()):
            runs = [train(make, seed, epochs, accumulate, noise) for seed in range(seeds)]
            cells = []
            for kind, line in (("last", "-"), ("mean", "--")):
                curves = np.array([run[kind] for run in runs])
                if curves.size == 0:
                    cells.append("")
                    continue
                label = f"{name}, mean of iterates" if kind == "mean" else name
                panel.plot(np.arange(epochs) + 1, curves.mean(0), line, color=f"C{number}", label=label)
                cells.append(f"{curves[:, -1].mean():.2f} ± {curves[:, -1].std():.2f}")
            updates = np.mean([run["updates"][-1] for run in runs])
            print(f"{f'{name}, {noise:.0%} random labels':<32}{cells[0]:>16}{cells[1]:>18}{updates:>9.0f}", flush=True)
        low = 92 if noise == 0 else 90
        panel.set(xlabel="epoch", ylabel="test accuracy (%)", title=f"{noise:.0%} random labels")
        if not arguments.dry_run:
            panel.set_ylim(low, 98)
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right")
    FigureCanvasAgg(figure)
    figure.savefig(arguments.out, dpi=130)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
