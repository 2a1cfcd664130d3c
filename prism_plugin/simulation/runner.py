"""Files of structures -> a table with a row for each: what the verbs of the command line share.

A bad structure is a row with a reason; what is in the table already is not done again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from prism_plugin.calculators import PRISMCalculator
from prism_plugin.data.sources import frames_of, iterate_structures
from prism_plugin.errors import PrismError
from prism_plugin.files import locked
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.doubts import doubts_of
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.tables import open_table

__all__ = ["Run", "run_files"]

# What a structure, or a library below that computes with it, can be at fault for.
_OF_THE_STRUCTURE = (PrismError, MemoryError, np.linalg.LinAlgError)


@dataclass(frozen=True)
class Run:
    """What is done with each structure.

    Attributes:
        verb: names the table: ``OUT/VERB.csv``.
        columns: of its values.
        work: gives them, of atoms and a place: a path without suffix, for a file or a folder.
        settings: what the values depend on, beside the model; as JSON has it.
    """

    verb: str
    columns: Sequence[str]
    work: Callable[[Atoms, Path], Sequence[Any]]
    settings: Mapping[str, Any]


def run_files(
    paths: Iterable[str | Path], calculator: PRISMCalculator, run: Run, out: Path, progress: bool = True
) -> dict[str, int]:
    """Do something with every structure of files.

    Args:
        paths: as of :func:`prism_plugin.data.sources.iterate_structures`.
        calculator: of the model that it is done with.
        run: what is done.
        out: folder; gets the table, and what the work writes.
        progress: whether there is a progress bar.

    Returns:
        How many are ``"done"``, ``"kept"`` from before, and ``"failed"`` (now or before).

    Raises:
        ValueError: if another process is at the table, or it is another model's or of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = out / f"{run.verb}.csv"
    digests = sorted(weights_digest(model.state_dict()) for model in calculator.models)
    header = ("name", "formula", "atoms", *run.columns, "warnings", "error")
    counts = {"done": 0, "kept": 0, "failed": 0}
    with locked(table):
        done = open_table(table, header, {"sha256_of_weights": digests, **run.settings})
        taken: set[str] = set()
        with (
            open(table, "a", newline="", encoding="utf-8") as file,
            tqdm(desc=run.verb, unit="structure", disable=not progress) as bar,
        ):
            for name, found in _structures(paths):
                place = out / _file_name(name, taken)
                if name in done:
                    counts["failed" if done[name] else "kept"] += 1
                    continue
                row = _row(name, found, calculator, run, place)
                counts["failed" if row[-1] else "done"] += 1
                csv.writer(file).writerow(row)
                file.flush()
                bar.update()
    return counts


def _structures(paths: Iterable[str | Path]) -> Iterator[tuple[str, Any]]:
    for name, source in iterate_structures(paths):
        yield from frames_of(name, source)


def _row(name: str, found: Any, calculator: PRISMCalculator, run: Run, place: Path) -> list[str]:
    """Return one row of the table, the reason at its end."""
    about = ["", ""]
    try:
        if isinstance(found, PrismError):
            raise found
        about = [found.atoms.get_chemical_formula(mode="metal", empirical=True), str(len(found.atoms))]
        doubts = list(found.doubts)
        for model in calculator.models:
            graph = build_graph(found.atoms, *model.cutoffs)
            model.check_elements(graph.crystals.elements)
            doubts += [*doubts_of(graph).values(), *filter(None, [model.rare_among(graph.crystals.elements)])]
        values = [_text(value) for value in run.work(found.atoms, place)]
    except _OF_THE_STRUCTURE as error:
        reason = str(error).removeprefix(f"{name}: ") or type(error).__name__
        return [name, *about, *[""] * len(run.columns), "", " ".join(reason[:500].split())]
    return [name, *about, *values, "; ".join(dict.fromkeys(doubts)), ""]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.8g}" if np.isfinite(value) else ""  # there is none, as a volume of a molecule
    return str(value)


def _file_name(name: str, taken: set[str]) -> str:
    """Return a name for files of a structure, each once."""
    path, hash_, frame = name.partition("#")
    called = f"{Path(path).stem}-{frame}" if hash_ else Path(path).stem
    plain = re.sub(r"[^\w.+-]+", "_", called).strip("._")[:100] or "structure"
    given, number = plain, 2
    while given.lower() in taken:
        given, number = f"{plain}-{number}", number + 1
    taken.add(given.lower())
    return given
