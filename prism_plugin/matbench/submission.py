"""Predictions of all folds -> a submission folder in Matbench's format, validated by matbench itself.

Beside it goes a folder of pictures: of each task our score beside the published top ten, and the predictions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prism_plugin.data import DATASETS
from prism_plugin.data.matbench_files import FOLDS
from prism_plugin.errors import PrismError
from prism_plugin.figures import save_figure
from prism_plugin.files import replaced, write_json_gz
from prism_plugin.matbench.official import check_results, leaderboard, new_benchmark, official_hash
from prism_plugin.matbench.task_run import CONFIGURATION, key_of, read_predictions
from prism_plugin.tasks.classification import Classification
from prism_plugin.tasks.plots import plot_classes, plot_parity

__all__ = ["assemble"]

_REFERENCE = (
    "@article{sole2026prism, title={{PRISM}: Periodic Representation with multIscale and Similarity graph Modelling "
    "for enhanced crystal structure property prediction}, author={Sol{\\'e}, {\\`A}. and Mosella-Montoro, A. and "
    "Cardona, J. and Aravena, D. and G{\\'o}mez-Coca, S. and Ruiz, E. and Ruiz-Hidalgo, J.}, "
    "journal={npj Computational Materials}, year={2026}, doi={10.1038/s41524-026-02074-1}}"
)
_ALGORITHM = (
    "PRISM, a graph network for crystals: atoms and one superatom per cell, four expert modules (atomistic, cell, "
    "multiscale, similarity in feature space), mixed by learned weights; trained with random rotations. "
    "Implementation: prism-plugin."
)
_SEED = re.compile(r"seed-(0|[1-9]\d*)\.json")
_Folder = tuple[Path, Mapping[str, Any], Sequence[int]]  # with its configuration and its seeds


def assemble(
    folders: Sequence[str | Path],
    out: str | Path,
    authors: str,
    scripts: Sequence[str | Path],
    algorithm: str = "PRISM",
    notes: str = "",
    allow_local_data: bool = False,
) -> str:
    """Make a submission folder ``matbench_v0.1_<algorithm>``.

    Args:
        folders: those that :meth:`TaskRun.run` returned, or one that holds them; one configuration for each task.
        out: where the submission folder goes, and a folder of pictures.
        authors: for ``info.json``.
        scripts: the programs that made the runs and the submission, which must hold one.
        algorithm: short name, unique on the leaderboard.
        notes: free text for ``info.json``.
        allow_local_data: also take runs on other data than the official; the folder then says that it is no submission.

    Returns:
        The scores as matbench computes them, fold by fold, among the published top ten.

    Raises:
        FileExistsError: if there is such a submission folder already.
        ImportError: if matbench is not installed.
        ValueError: if folds or seeds are missing, configurations are mixed, predictions are damaged, data are not the
            official ones, or matbench does not take the result; then nothing is written.
    """
    if not authors.strip():
        raise PrismError("the authors are missing: a submission names them")
    if not re.fullmatch(r"\w[\w ().+-]*", algorithm):
        raise PrismError(f"the name of the algorithm must be letters, digits and any of ' ().+-_', got {algorithm!r}")
    found = _find(folders)
    taken = {name for _, had, _ in found for name, _, _ in leaderboard(had["task"])}
    if algorithm in taken:
        raise PrismError(f"there is an algorithm {algorithm!r} on the leaderboard already; choose another --algorithm")
    local = [str(had["task"]) for _, had, _ in found if had["data_sha256"] != official_hash(had["task"])]
    if local and not allow_local_data:
        raise PrismError(
            f"{', '.join(local)}: the data are not the official ones, so this is no submission; --allow-local-data "
            "assembles it nevertheless, for a trial"
        )
    name = f"matbench_v0.1_{algorithm.replace(' ', '_')}" + ("_local" if local else "")
    out = Path(out)
    for path in (out / name, out / f"{name}-pictures"):
        if path.exists():
            raise FileExistsError(f"{str(path)!r} exists; move it away, or choose another --out or --algorithm")
    benchmark = new_benchmark([str(had["task"]) for _, had, _ in found])
    truths = {}
    versions: set[str] = set()
    for folder, had, seeds in found:
        pair, used = _record(benchmark.tasks_map[had["task"]], folder, had, seeds)
        truths[str(had["task"])] = pair
        versions |= used
    benchmark.add_metadata({"algorithm": algorithm, "prism_plugin": found[0][1]["prism_plugin"]})
    info = {
        "authors": authors,
        "algorithm": algorithm,
        "algorithm_long": _ALGORITHM,
        "bibtex_refs": _REFERENCE,
        "requirements": {"python": [*sorted(versions), f"matbench=={version('matbench')}"]},
        "notes": _notes(found, local, notes),
    }
    reports = []
    with replaced(out / f"{name}-pictures") as pictures, replaced(out / name) as aside:
        pictures.mkdir()
        aside.mkdir()
        write_json_gz(aside / "results.json.gz", benchmark.as_dict())
        (aside / "info.json").write_text(json.dumps(info, indent=1))
        for script in map(Path, scripts):
            (aside / script.name).write_bytes(script.read_bytes())
        scores = check_results(aside / "results.json.gz").scores
        for task, truth in truths.items():
            folds = [fold.scores for fold in benchmark.tasks_map[task].results.values()]
            who = f"{algorithm} (on other data)" if task in local else algorithm
            reports.append(_report(task, who, folds, scores[task], truth, task not in local, pictures / task))
    return "\n\n".join(reports)


def _find(folders: Sequence[str | Path]) -> list[_Folder]:
    """Find the folders of runs, and check that they fit together."""
    places = []
    for folder in map(Path, folders):
        inside = [folder] if (folder / CONFIGURATION).exists() else sorted(folder.glob(f"*/{CONFIGURATION}"))
        places += [path if path.is_dir() else path.parent for path in inside]
        if not inside:
            raise PrismError(f"{str(folder)!r} is no folder of examples/matbench/run.py, and holds none")
    had: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for place in dict.fromkeys(path.resolve() for path in places):
        configuration = _configuration(place)
        task = str(configuration["task"])
        if task in had:
            other, first = had[task]
            if first == configuration:
                raise PrismError(f"{other} and {place} are one run in two places; copy the files of one into the other")
            raise PrismError(
                f"configurations are mixed: {other} and {place} are both of {task} and differ in "
                f"{', '.join(_differences(first, configuration))}; name one of them"
            )
        had[task] = place, configuration
    versions = {str(configuration["prism_plugin"]) for _, configuration in had.values()}
    if len(versions) > 1:
        raise PrismError(f"configurations are mixed: the runs are of prism-plugin {' and '.join(sorted(versions))}")
    return [(place, configuration, _seeds(place)) for place, configuration in had.values()]


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        configuration = json.loads((folder / CONFIGURATION).read_text())
        task, key = configuration["task"], key_of(configuration)
    except (ValueError, KeyError, TypeError) as error:
        raise PrismError(
            f"{folder / CONFIGURATION} is damaged ({error}); delete it and repeat the command that made it"
        ) from error
    if folder.name != f"{task}-{key}":
        raise PrismError(f"{folder} should be called {task}-{key}: was the folder renamed, or {CONFIGURATION} edited?")
    return configuration


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what differs in two configurations."""
    flat = [{**had, **had["settings"], **had["settings"]["model"]} for had in (one, other)]
    names = (flat[0].keys() | flat[1].keys()) - {"settings", "model"}
    return sorted(name for name in names if flat[0].get(name) != flat[1].get(name))


def _seeds(folder: Path) -> list[int]:
    """Seeds of a run, which every fold must have."""
    had = {
        fold: {int(name[1]) for path in (folder / f"fold-{fold}").glob("*") if (name := _SEED.fullmatch(path.name))}
        for fold in range(FOLDS)
    }
    seeds = sorted(set().union(*had.values()))
    missing = [f"fold {fold} seed {seed}" for seed in seeds or [0] for fold in range(FOLDS) if seed not in had[fold]]
    if missing:
        raise PrismError(
            f"{folder} is not complete: {', '.join(missing)} missing; run them, or move the other files of that seed "
            "away (a benchmark is five folds, with the same seeds each)"
        )
    return seeds


def _record(
    task: Any, folder: Path, configuration: Mapping[str, Any], seeds: Sequence[int]
) -> tuple[tuple[np.ndarray, np.ndarray], set[str]]:
    """Record five folds of a task, the mean over seeds and its spread.

    Returns:
        Targets and predictions of all folds, shape ``(crystals,)`` each, and the versions that made them.
    """
    classes = task.metadata.task_type == Classification.name
    key = key_of(configuration)
    pairs = []
    versions: set[str] = set()
    for fold in range(FOLDS):
        found = [
            read_predictions(folder / f"fold-{fold}" / f"seed-{seed}.json", task.dataset_name, key, fold, seed)
            for seed in seeds
        ]
        versions |= {f"{name}=={number}" for one in found for name, number in one["versions"].items()}
        names = list(task.validation[f"fold_{fold}"].test)
        target = np.array([found[0]["rows"][name][0] for name in names])
        predictions = np.array([[one["rows"][name][1] for name in names] for one in found])
        task.df = pd.DataFrame(
            {task.metadata.input_type: None, task.metadata.target: target.astype(bool if classes else float)},
            index=names,
        )
        several = len(seeds) > 1 and not classes  # matbench takes no spread of classes
        task.record(
            fold,
            predictions.mean(axis=0),
            # A spread of exactly zero would make matbench write NaN limits.
            std=np.maximum(predictions.std(axis=0, ddof=1), np.finfo(float).tiny) if several else None,
            params={
                "configuration": dict(configuration),
                "seeds": list(seeds),
                "best_epochs": [one["best_epoch"] for one in found],
                "validation": {str(seed): one["validation"] for seed, one in zip(seeds, found, strict=True)},
            },
        )
        pairs.append((target, predictions.mean(axis=0)))
    truth, means = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return (truth, means), versions


def _notes(found: Sequence[_Folder], local: Sequence[str], notes: str) -> str:
    lines = [notes] if notes else []
    if local:
        lines.append(f"NOT A SUBMISSION: {', '.join(local)} ran on other data than the official ones.")
    for _, configuration, seeds in found:
        lines.append(
            f"{configuration['task']}: preset {configuration['preset']}, mean of {len(seeds)} training(s) with seed "
            f"{', '.join(map(str, seeds))}; validation: {configuration['validation']}; all settings are among the "
            "parameters of each fold."
        )
    return " ".join(lines)


def _report(
    task: str,
    who: str,
    folds: Sequence[Mapping[str, float]],
    scores: Any,
    truth: tuple[np.ndarray, np.ndarray],
    comparable: bool,
    pictures: Path,
) -> str:
    """Format a task's scores beside the published top ten, and draw them."""
    ((name, target),) = DATASETS[task].targets.items()
    if not comparable:
        name = f"{name} (other data)"
    classes = target.task_type == Classification.name
    metric = "rocauc" if classes else "mae"
    mean, std = float(scores[metric].mean), float(scores[metric].std)
    rows = [*leaderboard(task), (who, mean, std)]
    if comparable:
        rows.sort(key=lambda row: -row[1] if classes else row[1])
    label = "ROC AUC of labels" if classes else f"MAE ({target.unit})" if target.unit else "MAE"
    each = ", ".join(f"{fold[metric]:.4f}" for fold in folds)
    lines = [f"{task}: {label} of the folds {each}; mean {mean:.4f} +- {std:.4f}"]
    if classes:  # matbench 0.6 makes labels of probabilities before it computes the area
        area = Classification().score(*truth, float(truth[0].mean()))["roc_auc"]
        lines.append(f"   ROC AUC of the probabilities, all folds together: {area:.4f}")
        plot_classes({"test": truth}, {"test": area}, name, f"{pictures}-predictions.png")
    else:
        plot_parity({"test": truth}, name, target.unit, f"{pictures}-predictions.png")
    lines += [f"{'->' if row[0] == who else '  '} {row[0]:<40} {row[1]:8.4f} +- {row[2]:.4f}" for row in rows]
    _plot_rank(rows, who, task if comparable else f"{task}: {who}, not comparable", label, Path(f"{pictures}.png"))
    return "\n".join(lines)


def _plot_rank(rows: Sequence[tuple[str, float, float]], who: str, title: str, label: str, path: Path) -> None:
    """Draw the published top ten and this result as bars."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.subplots()
    for place, (name, mean, std) in enumerate(rows):
        panel.barh(place, mean, xerr=std, color="#d95f02" if name == who else "#8da0cb", ecolor="0.3", capsize=2)
        panel.text(0, place, f" {mean:.4g} ± {std:.2g}", va="center", fontsize=8)
    panel.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=9)
    panel.invert_yaxis()
    panel.set(xlabel=f"{label}, mean and standard deviation over the five folds", title=title)
    save_figure(figure, path)
