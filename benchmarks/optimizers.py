"""Compare the optimizers of the table on PRISM: equal crystals, epochs, seeds and initial weights.

4,000 training crystals of at most 20 atoms, drawn once by a fixed seed, and all validation crystals of that size; the
validation MAE after every epoch, over epochs and over CPU seconds. Each run has a folder and is resumed or skipped when
it is there already, so that the command can be interrupted and repeated; with a share of the runs each, two processes
can work side by side.

    python benchmarks/optimizers.py DATA runs/optimizers --out docs/elra
    python benchmarks/optimizers.py DATA runs/libraries --libraries --epochs 8 --out docs/optimizers

The second one is of classes by their paths (docs/optimizers.md), each with a OneCycle schedule and its best rate at
seed 0, beside Muon, on a small CartNet.
"""

import argparse
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prism_plugin.data import Record, read_records, split_records
from prism_plugin.data.records import elements_of
from prism_plugin.files import replaced, write_json
from prism_plugin.training import TrainingSettings, train
from prism_plugin.training.plots import read_columns

MODEL = {
    "dim": 64,
    "num_layers": 2,
    "num_rbf": 32,
    "cutoff": 4.0,
    "superatom_readout": "mean",
    "multiscale_aggregation": "mean",
}
# The best of those in --scan (5 epochs, seed 0): options of the optimizer, and the batch size.
RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "Muon, AdamW + OneCycle": ("muon", {"lr": 8e-3}),
    "AdamW-ScheduleFree": ("adamw-schedulefree", {"lr": 8e-3}),
    "Adam + OneCycle": ("adam-onecycle", {"lr": 8e-3}),
    "SGD + OneCycle": ("sgd", {"lr": 0.1}),
    "SGD without momentum + OneCycle": ("sgd", {"lr": 0.5, "momentum": 0.0}),
    "ELRA, floor 0.1": ("elra", {"min_step": 0.1}),
    "ELRA, floor 0.3": ("elra", {"min_step": 0.3}),
}
# Class -> its rates; the validation MAE of seed 0 chooses, where the best is at an end with further ones: twice or half
# as large. Everything else is the class's own.
LIBRARIES: dict[str, tuple[float, ...]] = {
    "muon": (4e-3, 8e-3, 1.6e-2),
    "pytorch_optimizer.SOAP": (2e-3, 4e-3, 8e-3),
    "pytorch_optimizer.AdaMuon": (2e-3, 4e-3, 8e-3),
    "pytorch_optimizer.NorMuon": (4e-3, 8e-3, 1.6e-2),
    "pytorch_optimizer.MARS": (2e-3, 4e-3, 8e-3),
    "pytorch_optimizer.AdEMAMix": (2e-3, 4e-3, 8e-3),
    "pytorch_optimizer.Lion": (3e-4, 6e-4, 1.2e-3),
    "pytorch_optimizer.Kron": (1e-3, 4e-3, 1.6e-2),
}
SMALL = {"dim": 64, "num_layers": 2, "num_rbf": 32, "cutoff": 4.0, "experts": ("atomistic",), "atom_encoder": "cartnet"}
SCAN: dict[str, list[tuple[str, dict[str, object]]]] = {
    "schedulefree": [("adamw-schedulefree", {"lr": lr}) for lr in (2e-3, 4e-3, 8e-3, 1.6e-2)],
    "adam": [("adam-onecycle", {"lr": lr}) for lr in (2e-3, 4e-3, 8e-3, 1.6e-2)],
    "sgd": [("sgd", {"lr": lr}) for lr in (0.03, 0.1, 0.3)]
    + [("sgd", {"lr": lr, "momentum": 0.0}) for lr in (0.15, 0.5)],
    "muon": [("muon", {"lr": lr}) for lr in (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)],
    "elra": [
        ("elra", {}),
        ("elra", {"accumulate": 2}),
        ("elra", {"min_step": None}),
        ("elra", {"min_step": 0.02}),
        ("elra", {"min_step": 0.3}),
        ("elra", {"boost": False}),
        ("elra", {"dynamic": False}),
        ("elra", {"min_step": 1.0}),
        ("elra", {"min_step": 1.0, "max_step": 10.0}),
        ("elra", {"min_step": 0.3, "max_step": 10.0}),
        ("elra", {"batch_size": 8}),
        ("elra", {"batch_size": 8, "min_step": 0.3}),
        ("elra", {"kappa": False}),
        ("elra", {"weight_decay": 0.9997}),
        ("elra", {"growth": 10.0}),
    ],
    # A warm-up without end is plain Adam at a constant learning rate.
    "rod-flow": [
        ("rod-flow", {"like": "adam", "lr": lr, "warmup": warmup}) for lr in (2e-3, 8e-3) for warmup in (10, 10**9)
    ],
}


class Stopwatch(L.Callback):
    """Log the CPU and wall seconds since the start, at each validation's end."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.started = time.process_time(), time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read."""
        cpu, wall = time.process_time() - self.started[0], time.perf_counter() - self.started[1]
        trainer.logger.log_metrics(
            {"cpu_seconds": cpu, "wall_seconds": wall, "epoch": trainer.current_epoch}, trainer.global_step
        )


def subset(path: Path, target: str = "e_form", crystals: int = 4000, atoms: int = 20) -> dict[str, list[Record]]:
    """Draw training crystals of at most so many atoms, and take all validation crystals of that size."""
    parts = split_records(read_records(path, target))
    small = {name: [record for record in records if len(record.atoms) <= atoms] for name, records in parts.items()}
    order = np.random.default_rng(0).permutation(len(small["train"]))[:crystals]
    train_part = [small["train"][index] for index in sorted(order)]
    known = set(elements_of(train_part))
    return {"train": train_part, "val": [r for r in small["val"] if known.issuperset(r.atoms.symbols)]}


def run(
    parts: dict[str, list[Record]],
    optimizer: str,
    options: dict[str, object],
    seed: int,
    epochs: int,
    root: Path,
    model: dict[str, object] = MODEL,
) -> Path:
    options = {"batch_size": 32, **options}
    words = "_".join(f"{key}={value}" for key, value in options.items())
    folder = root / f"{optimizer}_{words}_epochs={epochs}_seed={seed}"
    if not (folder / "summary.json").exists():
        settings = TrainingSettings(
            target="formation_energy",
            unit="eV/atom",
            model=model,
            optimizer=optimizer,
            options={key: value for key, value in options.items() if key != "batch_size"},
            schedule="onecycle" if "." in optimizer else None,
            epochs=epochs,
            batch_size=options["batch_size"],
            batchnorm_batches=30,
            seed=seed,
        )
        print(folder.name, flush=True)
        train(settings, parts, folder, resume=True, progress=False, callbacks=[Stopwatch()])
    return folder


def read_curve(folder: Path) -> dict[str, np.ndarray]:
    """Validation MAE and CPU seconds of every epoch."""
    return read_columns(folder / "log", "epoch", ("val_mae", "cpu_seconds"))


def draw(curves: dict[str, list[dict[str, np.ndarray]]], path: Path) -> None:
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (name, seeds) in enumerate(curves.items()):
        mae = np.array([curve["val_mae"] for curve in seeds])
        seconds = np.mean([curve["cpu_seconds"] for curve in seeds], axis=0)
        for panel, x in zip(panels, (np.arange(mae.shape[1]) + 1, seconds), strict=True):
            panel.plot(x, mae.mean(0), color=f"C{number}", label=f"{name}: {mae[:, -1].mean():.4f}")
            panel.fill_between(x, mae.min(0), mae.max(0), color=f"C{number}", alpha=0.2, linewidth=0)
    panels[0].set(xlabel="epoch", ylabel="validation MAE (eV/atom)", yscale="log")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[1].set(xlabel="CPU seconds, one thread, validation included")
    ticks = [0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
    low, high = panels[0].get_ylim()
    panels[0].set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
    panels[0].set_yticks([], minor=True)
    panels[0].yaxis.set_major_formatter("{x:g}")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(title="mean of the last epoch", fontsize=9)
    FigureCanvasAgg(figure)
    with replaced(path) as aside:
        figure.savefig(aside, dpi=130)


def run_folder(root: Path, name: str, epochs: int, seed: int) -> Path:
    """Where the run of a variant goes, by its name."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return root / f"{plain}_epochs={epochs}_seed={seed}"


def make_parser(description: str, epochs: int | None) -> argparse.ArgumentParser:
    """Arguments of a benchmark that is many runs on the subset; without ``epochs`` it has no such option."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--out", type=Path, help="where the table and the picture go")
    if epochs is not None:
        parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th run from I on"
    )
    return parser


def compare_libraries(parts: dict[str, list[Record]], arguments: argparse.Namespace) -> None:
    """Choose a rate for each by seed 0, then run the other seeds with it."""

    def last(optimizer: str, rate: float, seed: int) -> tuple[float, float]:
        folder = run(parts, optimizer, {"lr": rate}, seed, arguments.epochs, arguments.folder, SMALL)
        curve = read_curve(folder)
        return float(curve["val_mae"][-1]), float(curve["cpu_seconds"][-1])

    table = {}
    for optimizer, rates in list(LIBRARIES.items())[arguments.share[0] :: arguments.share[1]]:
        scanned = {rate: last(optimizer, rate, 0) for rate in rates}
        while (best := min(scanned, key=lambda rate: scanned[rate][0])) in (min(scanned), max(scanned)):
            further = best * 2 if best == max(scanned) else best / 2
            scanned[further] = last(optimizer, further, 0)
        seeds = [last(optimizer, best, seed) for seed in range(arguments.seeds)]
        maes, seconds = ([one[k] for one in seeds] for k in (0, 1))
        scan = {f"{rate:g}": mae for rate, (mae, _) in sorted(scanned.items())}
        table[optimizer] = {"scan": scan, "lr": best, "val_mae": maes, "cpu_seconds": seconds}
        each = ", ".join(f"{mae:.4f}" for mae in maes)
        per_epoch = np.mean(seconds) / arguments.epochs
        print(f"| `{optimizer}` | {best:g} | {np.mean(maes):.4f} | {each} | {per_epoch:.1f} |", flush=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / "libraries.json", {"epochs": arguments.epochs, "runs": table})


def main() -> None:
    parser = make_parser(__doc__, epochs=20)
    parser.add_argument("--scan", choices=sorted(SCAN), help="learning rates or settings of one optimizer at seed 0")
    parser.add_argument("--libraries", action="store_true", help="classes by their paths, beside Muon")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = subset(arguments.data)
    print({name: len(records) for name, records in parts.items()}, flush=True)
    if arguments.libraries:
        compare_libraries(parts, arguments)
        return
    if arguments.scan:
        for optimizer, options in SCAN[arguments.scan][arguments.share[0] :: arguments.share[1]]:
            folder = run(parts, optimizer, options, 0, arguments.epochs, arguments.folder)
            print(f"{read_curve(folder)['val_mae'].round(4).tolist()}", flush=True)
        return
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in RUNS]
    for name, seed in jobs[arguments.share[0] :: arguments.share[1]]:
        run(parts, *RUNS[name], seed, arguments.epochs, arguments.folder)
    if arguments.out is None:
        return
    curves = {
        name: [
            read_curve(run(parts, *RUNS[name], seed, arguments.epochs, arguments.folder))
            for seed in range(arguments.seeds)
        ]
        for name in RUNS
    }
    draw(curves, arguments.out / "comparison.png")
    table = {
        name: {
            "options": RUNS[name][1],
            "val_mae": [c["val_mae"].round(5).tolist() for c in seeds],
            "cpu_seconds": [c["cpu_seconds"].round(1).tolist() for c in seeds],
        }
        for name, seeds in curves.items()
    }
    write_json(arguments.out / "comparison.json", table)
    print("| optimizer | validation MAE, mean of seeds | each seed | CPU s per epoch |\n|---|---|---|---|")
    for name, seeds in curves.items():
        last = [curve["val_mae"][-1] for curve in seeds]
        seconds = np.mean([curve["cpu_seconds"][-1] for curve in seeds]) / arguments.epochs
        print(f"| {name} | {np.mean(last):.4f} | {', '.join(f'{x:.4f}' for x in last)} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
