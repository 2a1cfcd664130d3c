"""Bulk prediction: files of structures -> a table, as a stream.

Structures are read, predicted and written a few at a time, so that memory grows with none of them. What is in the table
already is not predicted again: an interrupted run goes on with the same command. A bad structure is a row with a
reason.
"""

from __future__ import annotations

import csv
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from prism_plugin.committee import bounded, check_committee, how_far, interval_levels, mean_and_spread
from prism_plugin.data.frame import Frame
from prism_plugin.data.sources import Source, frames_of, iterate_structures
from prism_plugin.devices import find_device
from prism_plugin.errors import PrismError
from prism_plugin.evaluation import evaluation, halved, split_graphs
from prism_plugin.files import locked, sweep
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph
from prism_plugin.graph.doubts import doubts_of
from prism_plugin.graph.structure import read_structure
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.model import PRISM
from prism_plugin.pretrained import load, model_folder, models_in
from prism_plugin.tables import WEIGHTS, modified, open_table, warn_of_newer

__all__ = ["examine", "formula_and_size", "predict_files", "reason_in_row"]

_Row = tuple[str, ...]  # with the error at its end
_Answer = tuple[float, np.ndarray, str]  # prediction, features, why there is none
_CHUNK = 64
_NOT_FINITE = "the prediction is not finite: the model is damaged, or cannot treat this structure"


def predict_files(
    paths: Iterable[str | Path],
    model: str | Path | Sequence[str | Path],
    out: str | Path,
    device: str = "auto",
    devices: int = 1,
    batch_size: int = _CHUNK,
    progress: bool = True,
) -> dict[str, int]:
    """Predict structures and write a table with one row each, in their order.

    Args:
        paths: what :func:`iterate_structures` reads.
        model: name of a shipped model, folder of a saved one, or a list of these that predict one property: their
            mean is predicted, and in a column of its own the standard deviation of their predictions.
        out: the CSV; columns name, formula, atoms, the target with its unit, the same with ``_std`` for several models,
            where the models have a domain (:class:`prism_plugin.domain.Domain`) the half widths of the intervals,
            ``_68`` and ``_95`` (of potentials: of the largest error of a force), and ``novelty``; warnings (what is
            doubtful in a structure, elements that the model has hardly seen, a crystal far from the training crystals),
            error. If it is there, what it has is kept and the
            rest is added. Beside it lies ``OUT.model.json``, by which a table knows its
            models.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        devices: number of processes; each has a GPU of its own where ``device`` is CUDA. With more than one the calling
            script needs ``if __name__ == "__main__"``.
        batch_size: structures that are read and predicted together.
        progress: whether there is a progress bar.

    Returns:
        How many were ``"predicted"``, ``"kept"`` from before, and ``"failed"`` (now or before; the reason is in the
        table, and its row is deleted to try again).

    Raises:
        FileNotFoundError: if there is no such model.
        TypeError: if ``model`` is neither a name, a folder nor a list of them.
        ValueError: if another process writes the table, it is another model's, the models predict different things or
            are twice the same, or an argument is bad.
    """
    if devices < 1 or batch_size < 1:
        raise PrismError(f"devices and batch_size must be at least 1, got {devices} and {batch_size}")
    kind = find_device(device).type
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise PrismError(f"{devices} CUDA devices are asked for, {torch.cuda.device_count()} are here")
    given = models_in(model)
    if not given:
        raise PrismError("the list of models is empty; give at least one")
    loaded = [load(one) for one in given]
    check_committee(loaded)
    if Path(out).is_dir():
        raise PrismError(f"{str(out)!r} is a folder: give the name of a CSV file for the table")
    with locked(out):
        sweep(Path(out).parent, Path(out).name)
        return _write_table(paths, loaded, given, Path(out), kind, devices, batch_size, progress)


def _write_table(
    paths: Iterable[str | Path],
    loaded: Sequence[PRISM],
    given: Sequence[str | Path],
    out: Path,
    kind: str,
    devices: int,
    batch_size: int,
    progress: bool,
) -> dict[str, int]:
    written = modified(out)
    done = {name: row[-1] for name, row in _open_table(out, loaded).items()}
    counts = {"predicted": 0, "kept": 0, "failed": 0}
    kept: list[str] = []

    def new() -> Iterator[tuple[str, Source]]:
        for name, source in iterate_structures(paths):
            if name in done:
                counts["failed" if done[name] else "kept"] += 1
                kept.append(name)
            else:
                yield name, source

    stream = new()
    chunks = iter(lambda: list(islice(stream, batch_size)), [])
    places = [f"{kind}:{number}" if kind == "cuda" else kind for number in range(devices)]
    with (
        open(out, "a", newline="", encoding="utf-8") as file,
        tqdm(desc="predict", unit="crystal", disable=not progress) as bar,
    ):
        for rows in _in_order(chunks, loaded, given, places):
            again = [row[0] for row in rows if row[0] in done]  # of a file with several, which is read again
            before = [done[name] for name in again]
            kept += again
            rows = [row for row in rows if row[0] not in done]
            counts["failed"] += sum(map(bool, before))
            counts["kept"] += len(before) - sum(map(bool, before))
            csv.writer(file).writerows(rows)
            file.flush()
            failed = sum(bool(row[-1]) for row in rows)
            counts["failed"] += failed
            counts["predicted"] += len(rows) - failed
            bar.update(len(rows))
    warn_of_newer(kept, written)
    return counts


def _open_table(out: Path, models: Sequence[PRISM]) -> dict[str, list[str]]:
    """Make the table with its header, or check the one that is there; give its rows by their names."""
    target, unit = models[0].target, models[0].unit
    digests = sorted(weights_digest(model.state_dict()) for model in models)
    about = {"target": target, "unit": unit, WEIGHTS: digests if len(digests) > 1 else digests[0]}
    suffixes = ("", "_std") if len(models) > 1 else ("",)
    levels = interval_levels(models)
    name, of_width = bounded(models)
    named = [(target + suffix, unit) for suffix in suffixes]
    named += [(f"{name}_{round(100 * level)}", of_width) for level in levels or ()]
    values = [f"{name} ({unit})" if unit else name for name, unit in named]
    novelty = [] if levels is None else ["novelty"]
    header = ("name", "formula", "atoms", *values, *novelty, "warnings", "error")
    return open_table(out, header, about)


def _in_order(
    chunks: Iterator[list[tuple[str, Source]]],
    models: Sequence[PRISM],
    names: Sequence[str | Path],
    places: Sequence[str],
) -> Iterator[list[_Row]]:
    """Predict chunk after chunk, here or in processes that have a bounded number of chunks ahead."""
    if len(places) == 1:
        for model in models:
            model.to(torch.device(places[0]))
        for chunk in chunks:
            yield _predict(chunk, models)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for place in places:
        queue.put(place)
    threads = max(1, torch.get_num_threads() // len(places))
    folders = [str(model_folder(name)) for name in names]
    with ProcessPoolExecutor(len(places), context, _start, (queue, folders, threads)) as pool:
        ahead: deque[Future[list[_Row]]] = deque()
        try:
            for chunk in chunks:
                ahead.append(pool.submit(_predict, chunk))
                if len(ahead) > 2 * len(places):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process has ended, for want of memory perhaps, or because the script that calls this lacks "
                "if __name__ == '__main__'; the table keeps what is done: repeat it with a smaller batch_size or fewer "
                "devices"
            ) from error


_worker_models: list[PRISM] = []


def _start(queue: Any, folders: Sequence[str], threads: int) -> None:
    """Load the models of a worker process."""
    torch.set_num_threads(threads)
    place = torch.device(queue.get())
    _worker_models.extend(load(folder).to(place) for folder in folders)


def _predict(chunk: Sequence[tuple[str, Source]], models: Sequence[PRISM] | None = None) -> list[_Row]:
    models = models or _worker_models
    if not models:
        raise RuntimeError("the worker process has no model")
    graphs: dict[tuple[float, float], list[CrystalGraph]] = {model.cutoffs: [] for model in models}
    about: list[tuple[str, ...]] = []  # name, formula, atoms, doubts, why there is no prediction
    for name, frame in chain.from_iterable(starmap(frames_of, chunk)):
        try:
            if isinstance(frame, PrismError):
                raise frame
            built, doubts = examine(frame, models)
        except (ValueError, OSError, MemoryError) as error:
            about.append((name, "", "", "", reason_in_row(name, error)))
        else:
            for cutoffs, graph in built.items():
                graphs[cutoffs].append(graph)
            about.append((name, *formula_and_size(frame.atoms), doubts, ""))
    answers = [_answers(model, graphs[model.cutoffs]) for model in models]
    columns = [values for values in mean_and_spread([values for values, _, _ in answers]) if values is not None]
    far = how_far(models, [features for _, features, _ in answers])
    numbers_of = np.column_stack([*columns, *([] if far is None else (far.half_widths, far.novelty))])
    digits = [*[8] * len(columns), *[3] * (numbers_of.shape[1] - len(columns))]
    reasons_of = zip(*[reasons for _, _, reasons in answers], strict=True)
    values = enumerate(zip(numbers_of.tolist(), reasons_of, strict=True))
    rows: list[_Row] = []
    for *of_structure, doubt, reason in about:
        place, (numbers, too_large) = (0, ([], ())) if reason else next(values)
        reason = next(filter(None, too_large), reason)
        problem = reason if reason or np.isfinite(numbers).all() else _NOT_FINITE
        texts = [""] * len(digits)
        if not problem:
            texts = [f"{number:.{digit}g}" for number, digit in zip(numbers, digits, strict=True)]
        if far is not None and not problem:
            doubt = "; ".join(filter(None, [doubt, far.warning(place)]))
        rows.append((*of_structure, *texts, doubt, problem))
    return rows


def _answers(model: PRISM, graphs: Sequence[CrystalGraph]) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Predict crystals; those that do not fit into memory are NaN, with the reason.

    Returns:
        The predictions, shape ``(crystals,)``; what the model's domain, if it has one, compares of them; the reasons.
    """
    lost = np.full(0 if model.domain is None else model.domain.mean.shape[0], np.nan)

    def evaluate(crystals: CrystalBatch) -> list[_Answer]:
        values = model(crystals).double().cpu().numpy()
        features = [lost] * len(crystals) if model.domain is None else model.domain_features(crystals)
        return [(value, one, "") for value, one in zip(values, features, strict=True)]

    found: list[_Answer] = []
    with torch.no_grad(), evaluation(model):
        for batch in split_graphs(graphs, max(1, len(graphs))):
            found += halved(evaluate, batch, too_large=lambda error: (np.nan, lost, str(error)))
    values, features, reasons = zip(*found, strict=True) if found else ((), (), ())
    return np.array(values, dtype=float), list(features), list(reasons)


def examine(frame: Frame, models: Sequence[PRISM]) -> tuple[dict[tuple[float, float], CrystalGraph], str]:
    """Look at a structure of a file before models treat it.

    Returns:
        Its graphs by the models' cutoffs, and what should be looked at, in one text.

    Raises:
        ValueError: if it is bad, or one that a model cannot read.
    """
    structure = read_structure(frame.atoms)
    graphs = {model.cutoffs: build_graph(structure, *model.cutoffs) for model in models}
    doubts = [*frame.doubts, *chain.from_iterable(doubts_of(graph).values() for graph in graphs.values())]
    for model in models:
        graph = graphs[model.cutoffs]
        model.check_crystal(graph.crystals.elements, graph.pbc)
        doubts += filter(None, [model.rare_among(graph.crystals.elements)])
        doubts += [] if model.extent is None else model.extent.doubts(graph).values()
    return graphs, "; ".join(dict.fromkeys(doubts))


def formula_and_size(atoms: Atoms) -> tuple[str, str]:
    """Return the reduced formula and the number of atoms, as a table has them."""
    return atoms.get_chemical_formula(mode="metal", empirical=True), str(len(atoms))


def reason_in_row(name: str, error: BaseException) -> str:
    """Say in a row of a table, which has the structure's name, what was wrong with it."""
    reason = str(error).removeprefix(f"{name}: ") or type(error).__name__
    return " ".join(reason[:500].split())
