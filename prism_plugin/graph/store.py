"""Many crystal graphs in a few flat arrays, in memory or in files on disk.

A graph as tensors costs ten Python objects; 132,752 of them are better kept as arrays, one after the other, in types as
narrow as their numbers. On disk the arrays are memory-mapped: processes share them, and what is not read costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import overload

import numpy as np
import torch
from ase import Atoms
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from prism_plugin.data.records import Record
from prism_plugin.files import replaced
from prism_plugin.graph.crystals import CrystalGraph
from prism_plugin.graph.structure import build_graph

__all__ = ["GraphStore", "graph_store"]

_FORMAT = 1
# Name -> (what it is counted by, shape of one, type). An image of more than 32,767 cells is refused.
_ARRAYS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "atomic_numbers": ("atoms", (), "uint8"),
    "positions": ("atoms", (3,), "float64"),
    "lattice": ("crystals", (3, 3), "float64"),
    "pbc": ("crystals", (3,), "bool"),
    "reduction": ("crystals", (3, 3), "int32"),
    "edge_index": ("edges", (2,), "int32"),
    "edge_image": ("edges", (3,), "int16"),
    "cell_image": ("cells", (3,), "int16"),
}
_SIZES = ("atoms", "edges", "cells")
# Work of one task of a worker process, and the number of crystals from which on workers pay.
_CHUNK = 256
_PARALLEL_FROM = 4096

_Piece = dict[str, np.ndarray]


class GraphStore(Sequence[CrystalGraph]):
    """A read-only sequence of crystal graphs.

    Args:
        arrays: the arrays of all crystals, one after the other, and ``"sizes"``: number of atoms, edges and cell edges
            of each crystal, shape ``(crystals, 3)``.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        order: which of the crystals are members, and in which order; None takes all as they lie.
    """

    def __init__(self, arrays: _Piece, cutoff: float, cell_cutoff: float, order: np.ndarray | None = None) -> None:
        self.arrays = arrays
        self.cutoff = cutoff
        self.cell_cutoff = cell_cutoff
        self.order = np.arange(len(arrays["sizes"])) if order is None else order
        ends = np.cumsum(arrays["sizes"], axis=0)
        self._ends = dict(zip(_SIZES, np.vstack([np.zeros((1, 3), dtype=ends.dtype), ends]).T, strict=True))

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.order)

    @property
    def atoms(self) -> np.ndarray:
        """Number of atoms of each crystal, shape ``(crystals,)``."""
        return self.arrays["sizes"][self.order, 0]

    def subset(self, indices: np.ndarray) -> GraphStore:
        """Some of the graphs, in this order; the arrays are shared."""
        return GraphStore(self.arrays, self.cutoff, self.cell_cutoff, self.order[indices])

    @overload
    def __getitem__(self, index: int) -> CrystalGraph: ...
    @overload
    def __getitem__(self, index: slice) -> list[CrystalGraph]: ...
    def __getitem__(self, index: int | slice) -> CrystalGraph | list[CrystalGraph]:
        """One graph, or a list of them."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"no graph {index} among {len(self)}")
        place = int(self.order[index])
        found = {}
        for name, (counted, _, _) in _ARRAYS.items():
            if counted == "crystals":
                part = self.arrays[name][place]
            else:
                part = self.arrays[name][self._ends[counted][place] : self._ends[counted][place + 1]]
            found[name] = np.array(part)  # a copy: tensors must not write to the store
        return CrystalGraph(
            atomic_numbers=torch.from_numpy(found["atomic_numbers"].astype(np.int64)),
            positions=torch.from_numpy(found["positions"]),
            lattice=torch.from_numpy(found["lattice"]),
            pbc=torch.from_numpy(found["pbc"]),
            edge_index=torch.from_numpy(np.ascontiguousarray(found["edge_index"].T)),
            edge_image=torch.from_numpy(found["edge_image"].astype(np.int32)),
            cell_image=torch.from_numpy(found["cell_image"].astype(np.int32)),
            reduction=torch.from_numpy(found["reduction"].astype(np.int64)),
            cutoff=self.cutoff,
            cell_cutoff=self.cell_cutoff,
        )


def graph_store(
    records: Sequence[Record],
    cutoff: float,
    cell_cutoff: float,
    progress: bool = True,
    cache: str | Path | None = None,
) -> GraphStore:
    """Build the graphs of records, in worker processes where there are many.

    Args:
        records: the crystals.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        progress: whether there is a progress bar.
        cache: folder for arrays on disk, found again by a hash of crystals and cutoffs; None keeps them in memory.

    Raises:
        ValueError: if a crystal is bad; the message names it.
    """
    pieces = _pieces(records, cutoff, cell_cutoff, progress)
    if cache is None:
        gathered = list(pieces)
        joined = {
            key: np.concatenate([piece.pop(key) for piece in gathered]) if gathered else _empty(key)
            for key in ("sizes", *_ARRAYS)
        }
        return GraphStore(joined, cutoff, cell_cutoff)
    folder = Path(cache) / f"graphs-{_key(records, cutoff, cell_cutoff)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # one process builds, others that want the same graphs wait for it
        arrays = _opened(folder)
        if arrays is None:
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            with replaced(folder) as aside:
                _write(aside, pieces)
            arrays = _opened(folder)
    if arrays is None:
        raise ValueError(f"the graph cache {str(folder)!r} is damaged; delete it")
    return GraphStore(arrays, cutoff, cell_cutoff)


def _pieces(records: Sequence[Record], cutoff: float, cell_cutoff: float, progress: bool) -> Iterator[_Piece]:
    """Arrays of consecutive chunks of records, in order."""
    chunks = [
        [(record.name, record.atoms) for record in records[start : start + _CHUNK]]
        for start in range(0, len(records), _CHUNK)
    ]
    workers = cpu_count() if len(records) >= _PARALLEL_FROM else 1
    made: Iterable[_Piece]
    if workers > 1:
        tasks = (delayed(_build)(chunk, cutoff, cell_cutoff) for chunk in chunks)
        made = Parallel(n_jobs=workers, return_as="generator")(tasks)
    else:
        made = (_build(chunk, cutoff, cell_cutoff) for chunk in chunks)
    with tqdm(total=len(records), desc="graphs", unit="crystal", disable=not progress) as bar:
        for piece in made:
            yield piece
            bar.update(len(piece["sizes"]))


def _build(crystals: Sequence[tuple[str, Atoms]], cutoff: float, cell_cutoff: float) -> _Piece:
    """Build graphs and join their arrays."""
    graphs = []
    for name, atoms in crystals:
        try:
            graph = build_graph(atoms, cutoff, cell_cutoff)
            images = torch.cat([graph.edge_image, graph.cell_image]).abs()
            if len(images) and images.max() > np.iinfo(np.int16).max:
                raise ValueError("an edge spans more than 32,767 cells; give the crystal in a reduced basis")
        except ValueError as error:
            raise ValueError(f"crystal {name!r}: {error}") from error
        graphs.append(graph)
    piece = {"sizes": np.array([(len(g), g.edge_index.shape[1], len(g.cell_image)) for g in graphs], dtype=np.int64)}
    for key, (counted, _, kind) in _ARRAYS.items():
        values = [getattr(graph, key).numpy() for graph in graphs]
        if key == "edge_index":
            values = [value.T for value in values]
        piece[key] = (np.stack(values) if counted == "crystals" else np.concatenate(values)).astype(kind)
    return piece


def _empty(key: str) -> np.ndarray:
    if key == "sizes":
        return np.zeros((0, 3), dtype=np.int64)
    _, shape, kind = _ARRAYS[key]
    return np.zeros((0, *shape), dtype=kind)


def _key(records: Sequence[Record], cutoff: float, cell_cutoff: float) -> str:
    """Hash what the graphs are made of."""
    digest = hashlib.sha256(f"{_FORMAT} {cutoff!r} {cell_cutoff!r} {len(records)}".encode())
    for record in records:
        atoms = record.atoms
        for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:24]


def _write(folder: Path, pieces: Iterable[_Piece]) -> None:
    """Write arrays as they come; ``done.json`` is last."""
    folder.mkdir()
    totals = dict.fromkeys(("sizes", *_ARRAYS), 0)
    with ExitStack() as stack:
        files = {key: stack.enter_context(open(folder / f"{key}.bin", "wb")) for key in totals}
        for piece in pieces:
            for key, values in piece.items():
                files[key].write(values.tobytes())
                totals[key] += len(values)
    (folder / "done.json").write_text(json.dumps(totals))


def _opened(folder: Path) -> _Piece | None:
    """Map the arrays of a folder; None if they are not there, or not whole."""
    try:
        totals = json.loads((folder / "done.json").read_text())
        arrays = {}
        for key in ("sizes", *_ARRAYS):
            like = _empty(key)
            shape = (int(totals[key]), *like.shape[1:])
            if (folder / f"{key}.bin").stat().st_size != np.prod(shape, dtype=np.int64) * like.itemsize:
                return None
            arrays[key] = np.memmap(folder / f"{key}.bin", like.dtype, "r", shape=shape) if shape[0] else like
    except (OSError, ValueError, KeyError):
        return None
    return arrays
