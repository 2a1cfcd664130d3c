"""Score the models that ship, on all validation crystals; with --install, put a trained one in its place first.

python benchmarks/default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz
python benchmarks/default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz --name prism-mp2018-gap --install RUN
python benchmarks/default_model.py ../shared/data/mp_elastic/mp_elastic_train.jsonl.xz --name prism-mp-log10-k
"""

import argparse
import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from matplotlib.figure import Figure
from pymatgen.core import Element

from prism_plugin import PRISM, build_graph, load, pretrained
from prism_plugin.data import Record
from prism_plugin.data.augmentation import random_rotations, rotate_batch
from prism_plugin.data.records import count_crystals
from prism_plugin.data.shipped import parts_of, read_target
from prism_plugin.evaluation import split_graphs
from prism_plugin.figures import save_figure
from prism_plugin.files import replaced
from prism_plugin.tasks.classification import Classification
from prism_plugin.tasks.plots import plot_elements
from prism_plugin.tasks.regression import Regression
from prism_plugin.training.fit import still_rare
from prism_plugin.training.plots import plot_learning_curve, read_log

HERE = Path(__file__).parent
FOLDER = Path(pretrained.__file__).parent
DOCS = HERE.parent / "docs" / "default_model"
TURNS = 8
_SOURCES = (
    ". Split and labels: the\nJARVIS leaderboard (public domain); structures as distributed with kdmsit/MEGNet (MIT) "
    "and WyckoffTransformer\n(Apache-2.0)."
)
OF_2018 = {
    "data": "Materials Project release 2018.6.1",
    "log": "(The log of the training has bfloat16 products and BatchNorm statistics of 100 batches, and a "
    "slightly\nother number.)",
    "split": "The official train and validation parts of the JARVIS leaderboard's `megnet` tasks, as far as structures "
    "could be had (57.5 %).",
    "command": "python examples/train_default_model.py DATA RUN --target {target} --seed {seed}{init}",
    "sources": _SOURCES,
}
OF_MODULI = {
    "data": "the Materials Project with elastic constants",
    "log": "Most of these crystals are among those that the model of energies learned from, with their energies.",
    "split": "A tenth, drawn at random, validates. The cross-validation has five folds; of the other four of each a "
    "tenth chooses the epoch.",
    "command": "python examples/elastic_models.py DATA RUN --target {target}",
    "sources": _SOURCES,
    "unbounded": "",
    "limits": "* directions of single crystals: it is the average of Voigt, Reuss and Hill;\n* other temperatures;\n"
    "* crystals that are not relaxed;",
}
# Target -> what the card says of it.
TEXTS: dict[str, dict[str, str]] = {
    "formation_energy": {
        **OF_2018,
        "about": "Formation energy per atom of inorganic crystals, in eV/atom.",
        "predicts": "formation energy per atom (PBE / PBE+U with the corrections of Materials Project release "
        "2018.6.1), relative to the elements; `PRISMCalculator` multiplies it by the number of atoms",
        "unbounded": "",
        "limits": "* forces, stresses, relaxation, phonons or dynamics: it has seen relaxed crystals only, and nobody "
        "has validated its gradients;\n* comparing energies with those of later Materials Project releases, whose "
        "corrections differ;\n* deciding on stability alone: its error is larger than many distances from the convex "
        "hull;",
    },
    "band_gap": {
        **OF_2018,
        "about": "Band gap of inorganic crystals as PBE gives it, in eV.",
        "predicts": "band gap of PBE / PBE+U (Materials Project release 2018.6.1): 0 for a metal, and less than "
        "experiments have for a semiconductor",
        "unbounded": "; a prediction can be a little below 0",
        "limits": "* gaps as experiments measure them, or optical ones;\n* telling metals from semiconductors where "
        "the answer lies within its error of 0;\n* crystals that are not relaxed;",
    },
    "metal": {
        **OF_2018,
        "about": "Whether an inorganic crystal is a metal by PBE: the probability that its gap is 0.",
        "predicts": "probability that PBE / PBE+U (Materials Project release 2018.6.1) finds no gap",
        "unbounded": "",
        "limits": "* metals as experiments find them: PBE closes some gaps;\n* crystals that are not relaxed;",
    },
    "log10_k_vrh": {
        **OF_MODULI,
        "about": "Bulk modulus of inorganic crystals, as log10 of its value in GPa.",
        "predicts": "log10 of the bulk modulus (Voigt-Reuss-Hill, PBE) in GPa",
    },
    "log10_g_vrh": {
        **OF_MODULI,
        "about": "Shear modulus of inorganic crystals, as log10 of its value in GPa.",
        "predicts": "log10 of the shear modulus (Voigt-Reuss-Hill, PBE) in GPa",
    },
}


# Elements as they are; DFT's formation energies are 0, of diamond 0.13 eV/atom (Materials Project).
KNOWN = {
    "diamond": bulk("C", "diamond", a=3.573),
    "Si": bulk("Si", "diamond", a=5.469),
    "Al": bulk("Al", "fcc", a=4.039),
    "Cu": bulk("Cu", "fcc", a=3.621),
}


SIZES = ("1 to 20 atoms", "21 to 60", "61 to 200")
CLASSES = (
    "metals and intermetallics",
    "metals with metalloids",
    "metals with nonmetals (ionic)",
    "without metals (covalent, molecular)",
)
RARENESS = ("below 300", "300 to 1,000", "above")
ORDER = {"size": SIZES, "class": CLASSES, "rareness": RARENESS}


def classes(records: list[Record]) -> np.ndarray:
    """Name the class of each crystal by its elements, as pymatgen calls metals and metalloids."""

    def name(record: Record) -> str:
        elements = [Element(symbol) for symbol in set(record.atoms.symbols)]
        if all(one.is_metal for one in elements):
            return CLASSES[0]
        if not any(one.is_metal for one in elements):
            return CLASSES[3]
        both = all(one.is_metal or one.is_metalloid for one in elements)
        return CLASSES[1] if both else CLASSES[2]

    return np.array([name(record) for record in records])


def by_rareness(records: list[Record], train: list[Record]) -> np.ndarray:
    """Name the group of each crystal by the training crystals that have its rarest element."""
    seen = count_crystals(train)
    fewest = [min(seen[symbol] for symbol in set(record.atoms.symbols)) for record in records]
    return np.array([RARENESS[(count >= 300) + (count >= 1000)] for count in fewest])


def task_of_model(model: PRISM) -> Regression:
    """Return what a model does: a number, or one of two classes."""
    return Classification() if model.task_type == Classification.name else Regression()


def score(model: PRISM, parts: dict[str, list[Record]]) -> tuple[dict[str, Any], np.ndarray]:
    """Score a model on the validation crystals; give the predictions, too.

    The groups have the MAE; of two classes the share of crystals that are taken for the other one.
    """
    records = parts["val"]
    target = np.array([record.target for record in records])
    graphs = [build_graph(record.atoms, model.cutoff, model.cell_cutoff) for record in records]
    predicted = model.predict_graphs(graphs).double().numpy()
    # The answer depends a little on the orientation: the same crystals, turned at random.
    generator = torch.Generator().manual_seed(0)
    batches = list(split_graphs(graphs, 64))

    def turn() -> np.ndarray:
        with torch.no_grad():
            answers = [model(rotate_batch(batch, random_rotations(len(batch), generator))) for batch in batches]
        return torch.cat(answers).double().numpy()

    turns = np.array([turn() for _ in range(TURNS if model.arguments["directions"] else 1)])
    mean = float(np.mean([record.target for record in parts["train"]]))
    task = task_of_model(model)
    scores: dict[str, Any] = {
        **task.score(target, predicted, mean),
        f"{task.metric}_rotated": task.score(target, turns[0], mean)[task.metric],
        f"{task.metric}_mean_of_turns": task.score(target, turns.mean(axis=0), mean)[task.metric],
        "rotation_difference": float(np.abs(turns[0] - predicted).mean()),
    }
    error = np.abs(predicted - target)
    if model.task_type == "classification":
        error = np.round(error)
    else:
        scores["median"] = float(np.median(error))
    atoms = np.array([len(record.atoms) for record in records])
    sizes = np.array(SIZES)[(atoms > 20).astype(int) + (atoms > 60)]
    groups = {"size": sizes, "class": classes(records), "rareness": by_rareness(records, parts["train"])}
    for key, of_each in groups.items():
        of_group = {name: error[of_each == name] for name in ORDER[key]}
        scores[f"by_{key}"] = {name: (float(some.mean()), len(some)) for name, some in of_group.items() if len(some)}
    if model.target == "formation_energy":
        told = model.predict_structure(list(KNOWN.values())).double().numpy()
        scores["elements"] = dict(zip(KNOWN, told.tolist(), strict=True))
    return scores, predicted


def plot_sizes(sizes: np.ndarray, errors: np.ndarray, target: str, unit: str, path: Path) -> None:
    """Draw the error over the number of atoms."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    panel = figure.subplots()
    edges = np.array([1, 3, 5, 9, 13, 17, 25, 41, 61, 101, 201])
    for low, high in pairwise(edges):
        inside = errors[(sizes >= low) & (sizes < high)]
        if len(inside):
            middle = np.sqrt(low * (high - 1))
            spread = inside.std() / np.sqrt(len(inside))
            panel.errorbar(middle, inside.mean(), spread, fmt="o", color="#1f4e9c", capsize=3)
            place = (middle, inside.mean() + spread)
            panel.annotate(f"n={len(inside)}", place, (0, 4), textcoords="offset points", fontsize=7, ha="center")
    panel.set(xscale="log", ylim=(0, None), xlabel="atoms in the cell", ylabel=f"MAE of {target} ({unit})")
    panel.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], ["1", "2", "5", "10", "20", "50", "100", "200"])
    panel.minorticks_off()
    panel.set_title(f"{len(errors):,} validation crystals; bars: standard error", fontsize=10)
    panel.grid(alpha=0.3)
    save_figure(figure, path)


def describe(model: PRISM, scores: dict[str, Any]) -> dict[str, str]:
    """Say what a card says of the kind of model."""
    cutoff = f"{model.cutoff:g} Å"
    groups = {
        key: ", ".join(f"{value:.4f} ({name}, {count:,})" for name, (value, count) in scores[f"by_{key}"].items())
        for key in ("size", "class", "rareness")
    }
    told = {
        **groups,
        "bound": TEXTS[model.target]["unbounded"] if model.minimum is None else f"; never below {model.minimum:g}",
        "experts": f"Of PRISM's experts: {', '.join(model.expert_names)}; the settings say in which form.",
    }
    if model.task_type == "classification":
        told["metric"] = "share taken for the other class"
        told["score"] = (
            "**{share:.4f}** of all {crystals:,} validation crystals, at a probability of 1/2 (ROC AUC {roc_auc:.4f}, "
            "cross-entropy {cross_entropy:.4f} nats; predicting the share of the class: "
            "{mean_predictor_cross_entropy:.4f})"
        ).format(share=1 - scores["accuracy"], **scores)
    else:
        told["metric"] = "MAE"
        told["score"] = (
            "**{mae:.4f} {unit}** over all {crystals:,} validation crystals (RMSE {rmse:.4f}, median {median:.4f}; "
            "predicting the mean: {mean_predictor_mae:.4f})"
        ).format(unit=model.unit, **scores)
    if model.expert_names == ("atomistic",):
        told["experts"] = (
            "Of PRISM's four experts only the atomistic one is in use (with CartNet's atom encoder): at this size and "
            "with so many epochs it learns most (docs/what_was_tried.md, docs/ablations.md)."
        )
    if model.arguments["directions"]:
        metric = task_of_model(model).metric
        told["orientation"] = (
            "the model is not quite invariant under rotation: turned at random, the same crystals give "
            f"{scores[f'{metric}_rotated']:.4f} (not turned: {scores[metric]:.4f}); a prediction moves by "
            f"{scores['rotation_difference']:.5f} on average; the mean over {TURNS} orientations gives "
            f"{scores[f'{metric}_mean_of_turns']:.4f}"
        )
        told["supercells"] = f"the model sees atoms and their neighbors within {cutoff}, not the cell"
    else:
        told["orientation"] = "exact: a turned or mirrored crystal has the same prediction"
        told["supercells"] = f"neighbors within {cutoff}, waves of the lattice and means over the atoms are the same"
    return told


def cross_validated(run: Path, model: PRISM) -> str:
    """Say in a row of the card what a cross-validation beside the run gave."""
    file = run.parent / "cross_validation.json"
    if not file.exists():
        return ""
    found = json.loads(file.read_text())
    folds = ", ".join(f"{mae:.4f}" for mae in found["folds"])
    return (
        f"| five-fold cross-validation, MAE | **{found['mae']:.4f} {model.unit}** over {found['crystals']:,} crystals, "
        f"each by a model that has not seen it ({folds}) |\n"
    )


def joined_logs(before: Path | None, run: Path, metric: str) -> dict[str, np.ndarray]:
    """Put the epochs of a run behind those of a log like the ones in docs/, counted from 0 on."""
    found = read_log(run / "log", metric)
    if before is not None:
        earlier = np.genfromtxt(before, delimiter=",", names=True)
        found = {key: np.concatenate([earlier[key], values]) for key, values in found.items()}
    return {**found, "epoch": np.arange(len(found["epoch"]))}


def trainings(name: str, run: Path, model: PRISM) -> list[dict[str, Any]]:
    """Return the settings of all trainings of a model, the last of which is the run.

    A run that began as a model of its own target has gone on with the one that ships under this name.
    """
    settings = json.loads((run / "settings.json").read_text())
    del settings["data"]  # a fingerprint
    if json.loads((run / "summary.json").read_text()).get("initial_model") != model.target:
        return [settings]
    had = pretrained.saved_metadata(name)
    if had["settings"] == settings:
        raise SystemExit(f"{run} is the model that ships as {name} already")
    return [*had.get("before", []), had["settings"], settings]


def install(
    name: str, run: Path, model: PRISM, parts: dict[str, list[Record]], scores: dict[str, Any], note: str
) -> None:
    """Write the model with its scores, its card, its log and its pictures."""
    each = trainings(name, run, model)
    seen = count_crystals(parts["train"])
    started = "dim" not in each[0]["model"]  # sizes are given from scratch only
    if started:
        rare = still_rare(load(pretrained.DEFAULT_MODEL), parts["train"], another=True)
    else:
        rare = {symbol: count for symbol, count in seen.items() if count < pretrained.RARE}
    rare = dict(sorted(rare.items()))
    metadata = {"settings": each[-1], "before": each[:-1], "scores": {"val": scores}, "rare_elements": rare}
    model.save(FOLDER / name, metadata=metadata)
    texts = TEXTS[model.target]
    sizes = [len(record.atoms) for record in parts["train"]]

    def command(settings: dict[str, Any], init: str) -> str:
        return texts["command"].format(target=model.target, seed=settings["seed"], init=init)

    about, limits = texts["about"], texts["limits"]
    if name in pretrained.COMMITTEE:
        others = " and ".join(f"`{other}`" for other in pretrained.COMMITTEE if other != name)
        if name == pretrained.DEFAULT_MODEL:
            about = f"The default model of prism-plugin. {about}"
        about += f" With {others} it is the committee `prism_plugin.COMMITTEE`."
        limits += (
            "\n* `energy_std` of the committee as an error bar: errors are several times as large, and all three can "
            "be wrong together (docs/default_model.md#committee);"
        )
    values = {
        **scores,
        **texts,
        **describe(model, scores),
        "note": f" {note}" if note else "",
        "cross_validated": cross_validated(run, model),
        "command": command(each[0], f" --init {pretrained.DEFAULT_MODEL}" if started else ""),
        "further": "".join(
            f" Then, into another folder, `{command(one, ' --init RUN/model --epochs ' + str(one['epochs']))}`."
            for one in each[1:]
        ),
        "smallest": min(sizes),
        "largest": max(sizes),
        "recipe": "from the model of energies" if started else f"the preset `mp2018/{model.target}`",
        "about": about,
        "limits": limits,
        "name": name,
        "unit": model.unit,
        "target": model.target,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "settings": "\n".join(json.dumps(one) for one in each),
        "train": len(parts["train"]),
        "epochs": each[0]["epochs"],
        "seed": each[0]["seed"],
        "elements": len(seen),
        "few": "that no training crystal has, or hardly any"
        if started
        else f"with fewer than {pretrained.RARE} training crystals",
        "rare": ", ".join(f"{symbol} ({count})" for symbol, count in rare.items()),
    }
    with replaced(FOLDER / name / "README.md") as path:
        path.write_text((HERE / "default_model_card.md").read_text().format(**values))
    docs = DOCS / name
    docs.mkdir(parents=True, exist_ok=True)
    task = task_of_model(model)
    metric = task.metric
    log = joined_logs(docs / "training_log.csv" if each[1:] else None, run, metric)
    with replaced(docs / "training_log.csv") as path, open(path, "w", newline="") as file:
        rows = zip(log["epoch"], log[f"train_{metric}"], log[f"val_{metric}"], strict=True)
        writer = csv.writer(file)
        writer.writerow(("epoch", f"train_{metric}", f"val_{metric}"))
        writer.writerows((int(epoch) + 1, f"{a:.5f}", f"{b:.5f}") for epoch, a, b in rows)
    plot_learning_curve(log, metric, task.metric_label(model.unit), scores, docs / "learning_curve.png")


def draw(name: str, model: PRISM, records: list[Record], predicted: np.ndarray) -> None:
    """Draw parity, and the error by element and by number of atoms."""
    docs = DOCS / name
    target = np.array([record.target for record in records])
    error = predicted - target
    label = task_of_model(model).draw({"val": (target, predicted)}, model, docs)
    numbers = [np.unique(record.atoms.numbers) for record in records]
    plot_elements(numbers, error, label, model.unit or "1", "val", docs / "elements.png")
    sizes = np.array([len(record.atoms) for record in records])
    plot_sizes(sizes, np.abs(error), label.replace("_", " "), model.unit or "1", docs / "atoms.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", nargs="+", default=None, help="of models; all that ship")
    parser.add_argument(
        "--install",
        type=Path,
        metavar="RUN",
        help="run that becomes the one model of --name, or has gone on with it",
    )
    parser.add_argument("--note", default="", help="what the card is to say of the training besides")
    arguments = parser.parse_args()
    shipped = pretrained.available_models()
    names = arguments.name or [name for name, one in shipped.items() if one.target in TEXTS]
    if arguments.install is not None and len(names) != 1:
        parser.error("--install needs one --name")
    for name in names:
        model = load(name if arguments.install is None else arguments.install / "model")
        if name in shipped and load(name).target != model.target:
            parser.error(f"{name} predicts {load(name).target}, the run {model.target}")
        parts = parts_of(read_target(arguments.data, model.target))
        scores, predicted = score(model, parts)
        print(name, json.dumps(scores, indent=1))
        if arguments.install is not None:
            install(name, arguments.install, model, parts, scores, arguments.note)
            draw(name, model, parts["val"], predicted)


if __name__ == "__main__":
    main()
