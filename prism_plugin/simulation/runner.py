"""Files of structures -> a table with a row for each: what the verbs of the command line share.

A bad structure is a row with a reason; what is in the table already is not done again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from prism_plugin.calculators import PRISMCalculator
from prism_plugin.data.sources import frames_of, iterate_structures
from prism_plugin.errors import OF_A_STRUCTURE, PrismError
from prism_plugin.files import locked
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.prediction import examine, formula_and_size, reason_in_row
from prism_plugin.tables import WEIGHTS, modified, open_table, warn_of_newer

__all__ = ["Given", "Run", "one_by_one", "run_files"]


@dataclass(frozen=True)
class Given:
    """A structure that something is done with.

    Attributes:
        name: that it has in the table.
        atoms: the structure.
        place: for what is written of it: a path without suffix, for a file or a folder.
        doubts: what should be looked at.
    """

    name: str
    atoms: Atoms
    place: Path
    doubts: str


_Outcome = tuple[Given, "Sequence[Any] | Exception"]


@dataclass(frozen=True)
class Run:
    """What is done with each structure.

    Attributes:
        verb: names the table: ``OUT/VERB.csv``.
        columns: of its values.
        work: gives them, or the error of a structure that is at fault (:data:`~prism_plugin.errors.OF_A_STRUCTURE`),
            in any order; takes structures as it has room for them.
        settings: what the values depend on, beside the model; as JSON has it.
        doubt: says what is doubtful in values; an empty text if nothing is.
        last: what the work writes last of a structure, behind its place (``".extxyz"``, ``"/md.png"``): where that is
            there already, the place is another structure's; an empty text if it writes nothing of its own.
        resume: looks after what the work writes for several structures, before it goes on; given the names of those
            that are done, in the order of the table.
    """

    verb: str
    columns: Sequence[str]
    work: Callable[[Iterator[Given]], Iterator[_Outcome]]
    settings: Mapping[str, Any]
    last: str = ""
    resume: Callable[[Sequence[str]], None] | None = None
    doubt: Callable[[Sequence[Any]], str] | None = None


def one_by_one(work: Callable[[Given], Sequence[Any]]) -> Callable[[Iterator[Given]], Iterator[_Outcome]]:
    """Make the work of a :class:`Run` of what gives the values of one structure."""

    def of_all(structures: Iterator[Given]) -> Iterator[_Outcome]:
        for given in structures:
            try:
                yield given, work(given)
            except OF_A_STRUCTURE as error:
                yield given, error

    return of_all


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
        ValueError: if another process is at the table, it is another model's or of other settings, or results would lie
            among the structures.
    """
    paths = list(paths)
    writes_structures = not run.last.startswith("/")  # and not a folder of each
    if writes_structures and any(Path(path).is_dir() and Path(path).resolve() == out.resolve() for path in paths):
        raise PrismError(
            f"{str(out)!r} is the folder of the structures, where results would be structures of the next call; give "
            "another one for them"
        )
    out.mkdir(parents=True, exist_ok=True)
    table = out / f"{run.verb}.csv"
    digests = sorted(weights_digest(model.state_dict()) for model in calculator.models)
    header = ("name", "formula", "atoms", *run.columns, "warnings", "error")
    counts = {"done": 0, "kept": 0, "failed": 0}
    kept: list[str] = []
    with locked(table):
        written = modified(table)
        rows = open_table(table, header, {WEIGHTS: digests, **run.settings})
        done = {name: row[-1] for name, row in rows.items()}
        if run.resume is not None:
            run.resume([name for name, reason in done.items() if not reason])
        # The last of the values says where that of each row lies.
        taken = {row[-3].removesuffix(run.last).lower() for row in rows.values() if run.last}
        with (
            open(table, "a", newline="", encoding="utf-8") as file,
            tqdm(desc=run.verb, unit="structure", disable=not progress) as bar,
        ):

            def write(name: str, atoms: Atoms | None, outcome: Sequence[Any] | Exception, doubts: str = "") -> None:
                row = _row(run, name, atoms, outcome, doubts)
                counts["failed" if row[-1] else "done"] += 1
                csv.writer(file).writerow(row)
                file.flush()
                bar.update()

            def structures() -> Iterator[Given]:
                for name, found in chain.from_iterable(starmap(frames_of, iterate_structures(paths))):
                    if name in done:
                        counts["failed" if done[name] else "kept"] += 1
                        kept.append(name)
                        continue
                    place = _place(out, name, run.last, taken)
                    try:
                        if isinstance(found, PrismError):
                            raise found
                        _, doubts = examine(found, calculator.models)
                    except OF_A_STRUCTURE as error:
                        write(name, None if isinstance(found, PrismError) else found.atoms, error)
                    else:
                        yield Given(name, found.atoms, place, doubts)

            for given, outcome in run.work(structures()):
                write(given.name, given.atoms, outcome, given.doubts)
    warn_of_newer(kept, written)
    return counts


def _row(run: Run, name: str, atoms: Atoms | None, outcome: Sequence[Any] | Exception, doubts: str) -> list[str]:
    """Return one row of the table, the reason at its end."""
    about = ("", "") if atoms is None else formula_and_size(atoms)
    if isinstance(outcome, Exception):
        return [name, *about, *[""] * len(run.columns), "", reason_in_row(name, outcome)]
    doubts = "; ".join(filter(None, [doubts, "" if run.doubt is None else run.doubt(outcome)]))
    return [name, *about, *map(_text, outcome), doubts, ""]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.8g}" if np.isfinite(value) else ""  # there is none, as a volume of a molecule
    return str(value)


def _place(out: Path, name: str, last: str, taken: set[str]) -> Path:
    """Return a place for what is written of a structure, where nothing lies that is not its own."""
    path, hash_, frame = name.partition("#")
    called = f"{Path(path).stem}-{frame}" if hash_ else Path(path).stem
    plain = re.sub(r"[^\w.+-]+", "_", called).strip("._")[:100] or "structure"
    plain = re.sub("POSCAR|CONTCAR|CENTCAR", lambda found: found[0].lower(), plain)  # ASE takes these for VASP's
    given, number = plain, 2
    while given.lower() in taken or (last and (out / f"{given}{last}").exists()):
        given, number = f"{plain}-{number}", number + 1
    taken.add(given.lower())
    return out / given
