"""How accurate a model is after so much CPU time: PRISM, the peers that are installed, and features with boosted trees.

The same training crystals (those of optimizers.py) and validation crystals for all, formation energy, one thread, and
the same CPU time of training for each; a run finds out how long its step takes, and its schedule of the rate fits what
is left. Peers have the sizes of peers.py, and the optimizer, rate, schedule and loss of their authors; batches of 32
for all, smaller than most of theirs, as so little time has too few updates of large ones. Building graphs, features
and validating are not counted; the table has them apart. A run is a file and is skipped when it is there, so that the
command can be interrupted and repeated, and called in the environments of several peers before one draws the picture.

    python benchmarks/time_to_accuracy.py DATA RUNS --seconds 900 --out docs/performance
    python benchmarks/time_to_accuracy.py DATA RUNS --seconds 2700 --crystals 12000 --atoms 30 --out docs/performance
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from optimizers import make_parser, subset
from peers import Contestant, contestants, ours
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from tqdm.auto import tqdm

from prism_plugin import PRISM
from prism_plugin.data import Record
from prism_plugin.data.augmentation import random_rotations, rotate_batch
from prism_plugin.data.records import elements_of
from prism_plugin.figures import save_figure
from prism_plugin.files import write_json
from prism_plugin.optim import make_optimizer
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import reestimate_batchnorm

BATCH = 32
POINTS = 8  # validations of a run
WARM, TIMED = 5, 20  # steps before the time of one is known
_Made = tuple[torch.optim.Optimizer, LRScheduler]
_Maker = Callable[[Iterator[torch.nn.Parameter], int], _Made]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        optimizer: parameters, number of steps -> optimizer and schedule.
        loss: predictions, targets -> loss; both in units of the training targets' standard deviation.
        clip: largest norm of the gradient; None: any.
        rotate: whether training crystals are turned.
        bfloat16: whether products are in bfloat16.
        reestimates: whether the statistics of BatchNorm are taken anew, from 100 batches, before a validation, which
            counts; else they are running averages.
        source: where it is from.
    """

    optimizer: _Maker
    loss: Callable[[Tensor, Tensor], Tensor]
    source: str
    clip: float | None = None
    rotate: bool = False
    bfloat16: bool = False
    reestimates: bool = False


def _prism(parameters: Iterator[torch.nn.Parameter], steps: int) -> _Made:
    how = Regression.recipe
    return make_optimizer(how["optimizer"], parameters, steps, {"lr": how["lr"], **how["options"]})


def _onecycle(kind: type[torch.optim.Optimizer], **options: Any) -> _Maker:
    def make(parameters: Iterator[torch.nn.Parameter], steps: int) -> _Made:
        optimizer = kind(parameters, lr=1e-3, **options)
        return optimizer, OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)

    return make


def _matgl(parameters: Iterator[torch.nn.Parameter], steps: int) -> _Made:
    optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-8)
    return optimizer, CosineAnnealingLR(optimizer, steps, eta_min=1e-5)


_OF_MATGL = Recipe(_matgl, functional.mse_loss, "matgl's ModelLightningModule: Adam 1e-3, cosine to 1e-5, MSE")
RECIPES: dict[str, Recipe] = {
    "PRISM": Recipe(
        _prism,
        functional.l1_loss,
        "`prism train`: Muon, OneCycle, L1, in bfloat16",
        clip=Regression.recipe["clip"],
        bfloat16=True,
        reestimates=True,
    ),
    "CartNet twin": Recipe(
        _onecycle(torch.optim.Adam), functional.l1_loss, "Solé et al.: Adam 1e-3, OneCycle, L1, turned", rotate=True
    ),
    "MEGNet (matgl)": _OF_MATGL,
    "M3GNet (matgl)": _OF_MATGL,
    "TensorNet (matgl)": _OF_MATGL,
    "CHGNet (matgl)": _OF_MATGL,
    "ALIGNN": Recipe(
        _onecycle(torch.optim.AdamW, weight_decay=1e-5), functional.mse_loss, "its config: AdamW 1e-3, OneCycle, MSE"
    ),
}
TREES = "matminer + boosted trees"


def make(elements: tuple[str, ...], seed: int = 0) -> tuple[dict[str, Contestant], list[str]]:
    """Make all models that are installed; PRISM is the recipe of ``prism train``."""
    found, missing = contestants(256, 4, seed)
    models = {one.name: one for one in found}
    models["PRISM"] = ours("PRISM", PRISM(element_types=elements, **Regression.recipe["model"]))
    return {name: models[name] for name in RECIPES if name in models}, missing


def learn(
    one: Contestant, recipe: Recipe, parts: Mapping[str, list[Record]], seconds: float, seed: int
) -> dict[str, Any]:
    """Train for so many CPU seconds.

    Returns:
        Validation MAE, training MAE of the steps before and CPU seconds at each of the validations; and the seconds for
        a graph and for a prediction.
    """
    started = time.process_time()
    graphs = {name: [one.build(r.atoms) for r in tqdm(records, desc="graphs")] for name, records in parts.items()}
    building = (time.process_time() - started) / sum(map(len, graphs.values()))
    targets = {name: torch.tensor([r.target for r in records]) for name, records in parts.items()}
    mean, std = targets["train"].mean(), targets["train"].std()
    rng = np.random.default_rng(seed)
    turning = torch.Generator().manual_seed(seed)

    def batch_of(indices: np.ndarray) -> Any:
        batch = one.collate([graphs["train"][index] for index in indices])
        return rotate_batch(batch, random_rotations(len(indices), turning)) if recipe.rotate else batch

    def draws() -> Iterator[np.ndarray]:
        while True:
            order = rng.permutation(len(graphs["train"]))
            yield from (order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH))

    def step(indices: np.ndarray) -> float:
        one.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            answer = one.predict(one.model, batch_of(indices)).view(-1).float()
        loss = recipe.loss(answer, (targets["train"][indices] - mean) / std)
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(one.model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        return float((answer.detach() * std + mean - targets["train"][indices]).abs().mean())

    def validated() -> tuple[float, float]:
        """Return the MAE and the seconds of one prediction."""
        one.model.eval()
        began = time.process_time()
        answers = []
        for i in range(0, len(graphs["val"]), BATCH):
            batch = one.collate(graphs["val"][i : i + BATCH])
            with torch.no_grad():
                answers.append(one.predict(one.model, batch).view(-1))
        spent = (time.process_time() - began) / len(graphs["val"])
        return float((torch.cat(answers) * std + mean - targets["val"]).abs().mean()), spent

    weights = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    order = draws()
    optimizer, schedule = recipe.optimizer(one.model.parameters(), WARM + TIMED + 1)
    for number in range(WARM + TIMED):
        if number == WARM:
            started = time.process_time()
        step(next(order))
    each = (time.process_time() - started) / TIMED
    one.model.load_state_dict(weights)
    steps = max(POINTS, int(seconds / each))
    optimizer, schedule = recipe.optimizer(one.model.parameters(), steps)
    curve: dict[str, list[float]] = {"cpu_seconds": [], "val_mae": [], "train_mae": []}
    spent, predicting, errors = 0.0, 0.0, []
    ends = {round(steps * (k + 1) / POINTS) for k in range(POINTS)}
    for number in tqdm(range(1, steps + 1), desc=one.name, mininterval=5):
        started = time.process_time()
        errors.append(step(next(order)))
        if number in ends and recipe.reestimates:
            reestimate_batchnorm(one.model, (batch_of(next(order)) for _ in range(100)))
        spent += time.process_time() - started
        if number in ends:
            mae, predicting = validated()
            curve["cpu_seconds"].append(spent)
            curve["val_mae"].append(mae)
            curve["train_mae"].append(float(np.mean(errors)))
            errors = []
    return {**curve, "steps": steps, "parameters": one.parameters, "graph": building, "prediction": predicting}


def grow(parts: Mapping[str, list[Record]], seconds: float, seed: int) -> dict[str, Any]:
    """Boosted trees on Magpie's features of the composition and those of density and symmetry (matminer)."""
    import pandas
    from matminer.featurizers.base import MultipleFeaturizer
    from matminer.featurizers.composition import ElementProperty
    from matminer.featurizers.structure import DensityFeatures, GlobalSymmetryFeatures
    from pymatgen.io.ase import AseAtomsAdaptor
    from sklearn.ensemble import HistGradientBoostingRegressor

    started = time.process_time()
    magpie = ElementProperty.from_preset("magpie")
    geometry = MultipleFeaturizer([DensityFeatures(), GlobalSymmetryFeatures(["spacegroup_num", "n_symmetry_ops"])])

    def features(record: Record) -> list[float]:
        structure = AseAtomsAdaptor.get_structure(record.atoms)
        return [*magpie.featurize(structure.composition), *geometry.featurize(structure)]

    tables = {
        name: pandas.DataFrame([features(record) for record in tqdm(records, desc="features")])
        for name, records in parts.items()
    }
    making = (time.process_time() - started) / sum(map(len, parts.values()))
    targets = {name: np.array([record.target for record in records]) for name, records in parts.items()}
    model = HistGradientBoostingRegressor(
        loss="absolute_error", learning_rate=0.05, max_iter=2000, early_stopping=False, random_state=seed
    )
    started = time.process_time()
    model.fit(tables["train"].to_numpy(float), targets["train"])
    spent = time.process_time() - started
    started = time.process_time()
    errors = {name: abs(model.predict(table.to_numpy(float)) - targets[name]).mean() for name, table in tables.items()}
    predicting = (time.process_time() - started) / sum(map(len, parts.values()))
    if spent > seconds:
        raise RuntimeError(f"the trees took {spent:.0f} s of {seconds:.0f}")
    curve = {"cpu_seconds": [spent], "val_mae": [float(errors["val"])], "train_mae": [float(errors["train"])]}
    return {**curve, "steps": 2000, "parameters": None, "graph": making, "prediction": predicting}


def draw(table: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    for number, (name, seeds) in enumerate(table.items()):
        seconds = np.mean([one["cpu_seconds"] for one in seeds], axis=0)
        maes = np.array([one["val_mae"] for one in seeds])
        color = f"C{number}"
        panel.plot(seconds, maes.mean(0), "o-", color=color, markersize=3, label=f"{name}: {maes[:, -1].mean():.3f}")
        panel.fill_between(seconds, maes.min(0), maes.max(0), color=color, alpha=0.2, linewidth=0)
    panel.set(xlabel="CPU seconds of training, one thread", ylabel="validation MAE (eV/atom)", yscale="log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.grid(alpha=0.3, which="both")
    panel.legend(title="at the end")
    save_figure(figure, path)


def main() -> None:
    parser = make_parser(__doc__, epochs=None)
    parser.add_argument("--seconds", type=float, default=900, help="CPU seconds of each training")
    parser.add_argument("--crystals", type=int, default=4000)
    parser.add_argument("--atoms", type=int, default=20, help="most atoms of a crystal")
    parser.add_argument("--models", nargs="+", choices=[*RECIPES, TREES], default=[*RECIPES, TREES], metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = subset(arguments.data, crystals=arguments.crystals, atoms=arguments.atoms)
    counts = f"{len(parts['train'])}-crystals-of-{arguments.atoms}-{arguments.seconds:g}-s"
    elements = tuple(elements_of(parts["train"]))
    installed, missing = make(elements)
    print({name: len(records) for name, records in parts.items()}, "not installed:", missing or "none", flush=True)
    files = {
        (name, seed): arguments.folder / counts / f"{name}, seed {seed}.json"
        for seed in range(arguments.seeds)
        for name in arguments.models
    }
    for (name, seed), file in list(files.items())[arguments.share[0] :: arguments.share[1]]:
        if file.exists() or (name != TREES and name not in installed):
            continue
        print(file.stem, flush=True)
        if name == TREES:
            found = grow(parts, arguments.seconds, seed)
        else:
            found = learn(make(elements, seed)[0][name], RECIPES[name], parts, arguments.seconds, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    if arguments.out is None:
        return
    table: dict[str, list[dict[str, Any]]] = {}
    for (name, _), file in files.items():
        if file.exists():
            table.setdefault(name, []).append(json.loads(file.read_text()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    label = f"time_to_accuracy-{len(parts['train'])}"
    draw(table, arguments.out / f"{label}.png")
    write_json(arguments.out / f"{label}.json", {"seconds": arguments.seconds, "runs": table})
    words = ("model", "weights", "updates", "validation MAE (eV/atom), mean", "each seed", "training MAE", "graphs/s")
    print(f"| {' | '.join(words)} | predictions/s |\n|---|---|---|---|---|---|---|---|")
    for name, seeds in sorted(table.items(), key=lambda item: np.mean([one["val_mae"][-1] for one in item[1]])):
        last = [one["val_mae"][-1] for one in seeds]
        weights = f"{seeds[0]['parameters']:,}" if seeds[0]["parameters"] else ""
        steps, train_mae, graph, prediction = (
            np.mean([one[key][-1] if key == "train_mae" else one[key] for one in seeds])
            for key in ("steps", "train_mae", "graph", "prediction")
        )
        each = ", ".join(f"{mae:.4f}" for mae in last)
        numbers = f"{np.mean(last):.4f} | {each} | {train_mae:.4f} | {1 / graph:,.0f} | {1 / prediction:,.0f}"
        print(f"| {name} | {weights} | {steps:,.0f} | {numbers} |")


if __name__ == "__main__":
    main()
