"""Many crystal graphs in a few flat arrays: the fields of a batch in compact types, in memory, on disk or on a device.

A graph as tensors costs ten Python objects; 132,752 of them are better kept as arrays, one after the other, in types as
narrow as their numbers. On disk the arrays are memory-mapped: processes share them, and what is not read costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed
from torch import Tensor
from tqdm import tqdm

from prism_plugin.devices import send
from prism_plugin.errors import PrismError
from prism_plugin.files import replaced, sweep
from prism_plugin.graph.batching import EDGES_PER_BATCH, cut, pairs_of_one_element
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph
from prism_plugin.graph.reciprocal import lay_out, reciprocal_index
from prism_plugin.graph.structure import Structure

__all__ = ["GraphStore", "graph_store"]

_FORMAT = 2
# Name -> (what it is counted by, shape of one, type on disk, type in a batch). An image of more than 32,767 cells is
# refused. Edges are counted within their crystal.
_ARRAYS: dict[str, tuple[str, tuple[int, ...], str, torch.dtype]] = {
    "atomic_numbers": ("atoms", (), "uint8", torch.int64),
    "positions": ("atoms", (3,), "float64", torch.float64),
    "lattice": ("crystals", (3, 3), "float64", torch.float64),
    "cell": ("crystals", (3, 3), "float64", torch.float64),
    "pbc": ("crystals", (3,), "bool", torch.bool),
    "reduction": ("crystals", (3, 3), "int32", torch.int64),
    "edge_index": ("edges", (2,), "int32", torch.int64),
    "edge_image": ("edges", (3,), "int16", torch.int32),
    "cell_image": ("cells", (3,), "int16", torch.int32),
}
_COUNTED = ("atoms", "edges", "cells")
# Work of one task of a worker process, and the number of crystals from which on workers pay.
_CHUNK = 256
_PARALLEL_FROM = 4096

_Piece = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class GraphStore(Sequence[CrystalGraph]):
    """A read-only sequence of crystal graphs.

    Attributes:
        tensors: the fields of all crystals, one after the other, in compact types.
        numbers: atomic numbers of all atoms on the host, shape ``(atoms,)``.
        sizes: number of atoms, edges and cell edges of each crystal, shape ``(crystals, 3)``, on the host.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        order: which of the crystals are members, and in which order.
        waves: coefficients of the plane waves of all crystals, and how many each has; None where nothing needs them.
    """

    tensors: dict[str, Tensor]
    numbers: np.ndarray
    sizes: np.ndarray
    cutoff: float
    cell_cutoff: float
    order: np.ndarray
    waves: tuple[np.ndarray, np.ndarray] | None = None

    @staticmethod
    def of(arrays: _Piece, cutoff: float, cell_cutoff: float) -> GraphStore:
        """Hold arrays as :func:`_build` makes them."""
        tensors = {name: torch.from_numpy(arrays[name]) for name in _ARRAYS}
        sizes = np.array(arrays["sizes"])
        return GraphStore(tensors, arrays["atomic_numbers"], sizes, cutoff, cell_cutoff, np.arange(len(sizes)))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.sizes, axis=0) - self.sizes

    @cached_property
    def costs(self) -> np.ndarray:
        """Edges of each member, with the pairs of atoms that may be similar, shape ``(crystals,)``."""
        pairs = pairs_of_one_element(self.numbers, self.sizes[:, 0])
        return (self.sizes[:, 1] + pairs)[self.order]

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.order)

    @property
    def atoms(self) -> np.ndarray:
        """Number of atoms of each crystal, shape ``(crystals,)``."""
        return self.sizes[self.order, 0]

    def elements(self, index: int) -> np.ndarray:
        """Atomic numbers of the elements of one crystal, each once."""
        place = self.order[index]
        start = self._starts[place, 0]
        return np.unique(self.numbers[start : start + self.sizes[place, 0]])

    def subset(self, indices: np.ndarray) -> GraphStore:
        """Some of the graphs, in this order; the tensors are shared."""
        return replace(self, order=self.order[indices])

    def to(self, device: torch.device | str) -> GraphStore:
        """Return the store with its tensors on a device, where its batches are then made."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def with_waves(self) -> GraphStore:
        """Return the store with the plane waves of all crystals, which its batches then need not count."""
        cells, flags = self.tensors["lattice"].cpu().numpy(), self.tensors["pbc"].cpu().numpy()
        found = [reciprocal_index(cell, pbc).astype(np.int16) for cell, pbc in zip(cells, flags, strict=True)]
        counts = np.array([len(index) for index in found], dtype=np.int64)
        index = np.concatenate(found) if found else np.zeros((0, 3), dtype=np.int16)
        return replace(self, waves=(index, counts))

    @property
    def nbytes(self) -> int:
        """Size of the tensors, bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def batch(self, indices: Sequence[int] | np.ndarray) -> CrystalBatch:
        """Make a batch of some crystals, in this order."""
        places = self.order[np.asarray(indices, dtype=np.int64)]
        sizes, starts = self.sizes[places], self._starts[places]
        device = self.tensors["lattice"].device
        where = {"crystals": send(places, device)}
        for column, name in enumerate(_COUNTED):
            where[name] = _ranges(starts[:, column], sizes[:, column], device)
        found = {
            name: self.tensors[name].index_select(0, where[counted]).to(kind)
            for name, (counted, _, _, kind) in _ARRAYS.items()
        }
        first_atom = np.cumsum(sizes[:, 0]) - sizes[:, 0]
        shift = torch.repeat_interleave(
            send(first_atom, device),
            send(sizes[:, 1], device),
            output_size=int(sizes[:, 1].sum()),
        )
        present = [self.numbers[start : start + count] for start, count in zip(starts[:, 0], sizes[:, 0], strict=True)]
        found["edge_index"] = found["edge_index"].T.contiguous() + shift
        batch = CrystalBatch(
            **found,
            sizes=sizes,
            elements=tuple(np.unique(np.concatenate(present)).tolist()),
            cutoff=self.cutoff,
            cell_cutoff=self.cell_cutoff,
        )
        if self.waves is not None:
            index, counts = self.waves
            rows = _ranges(self._wave_starts[places], counts[places], torch.device("cpu")).numpy()
            vars(batch)["waves"] = lay_out(index[rows], counts[places], sizes[:, 0]).to(device)
        return batch

    @cached_property
    def _wave_starts(self) -> np.ndarray:
        counts = np.zeros(0, dtype=np.int64) if self.waves is None else self.waves[1]
        return np.cumsum(counts) - counts

    def split(self, most_crystals: int, most_edges: int = EDGES_PER_BATCH) -> Iterator[CrystalBatch]:
        """Iterate over all crystals in batches, as :meth:`CrystalBatch.split` does."""
        for start, stop in cut(self.costs, most_crystals, most_edges):
            yield self.batch(np.arange(start, stop))

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
        return CrystalGraph(self.batch([index]))


def _ranges(starts: np.ndarray, counts: np.ndarray, device: torch.device) -> Tensor:
    """Join ranges of rows: ``starts[0], starts[0] + 1, ..., starts[1], ...``."""
    before = send(starts - (np.cumsum(counts) - counts), device)
    total = int(counts.sum())
    rows = torch.arange(total, device=device)
    return rows + torch.repeat_interleave(before, send(counts, device), output_size=total)


def graph_store(
    structures: Sequence[tuple[str, Structure]],
    cutoff: float,
    cell_cutoff: float,
    progress: bool = True,
    cache: str | Path | None = None,
) -> GraphStore:
    """Build the graphs of structures, in worker processes where there are many.

    Args:
        structures: names for messages, and checked structures.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        progress: whether there is a progress bar.
        cache: folder for arrays on disk, found again by a hash of crystals and cutoffs; None keeps them in memory.

    Raises:
        ValueError: if a crystal is bad; the message names it.
    """
    pieces = _pieces(structures, cutoff, cell_cutoff, progress)
    if cache is None:
        gathered = list(pieces)
        joined = {
            key: np.concatenate([piece.pop(key) for piece in gathered]) if gathered else _empty(key)
            for key in ("sizes", *_ARRAYS)
        }
        return GraphStore.of(joined, cutoff, cell_cutoff)
    folder = Path(cache) / f"graphs-{_key(structures, cutoff, cell_cutoff)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # one process builds, others that want the same graphs wait for it
        arrays = _opened(folder)
        if arrays is None:
            sweep(folder.parent, folder.name)
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            with replaced(folder) as aside:
                _write(aside, pieces)
            arrays = _opened(folder)
    if arrays is None:
        raise PrismError(f"the graph cache {str(folder)!r} is damaged; delete it")
    return GraphStore.of(arrays, cutoff, cell_cutoff)


def _pieces(
    structures: Sequence[tuple[str, Structure]], cutoff: float, cell_cutoff: float, progress: bool
) -> Iterator[_Piece]:
    """Arrays of consecutive chunks of structures, in order."""
    chunks = [structures[start : start + _CHUNK] for start in range(0, len(structures), _CHUNK)]
    workers = cpu_count() if len(structures) >= _PARALLEL_FROM else 1
    made: Iterable[_Piece]
    if workers > 1:
        tasks = (delayed(_build)(chunk, cutoff, cell_cutoff) for chunk in chunks)
        made = Parallel(n_jobs=workers, return_as="generator")(tasks)
    else:
        made = (_build(chunk, cutoff, cell_cutoff) for chunk in chunks)
    with tqdm(total=len(structures), desc="graphs", unit="crystal", disable=not progress) as bar:
        for piece in made:
            yield piece
            bar.update(len(piece["sizes"]))


def _build(crystals: Sequence[tuple[str, Structure]], cutoff: float, cell_cutoff: float) -> _Piece:
    """Build graphs and join their arrays."""
    graphs = []
    for name, structure in crystals:
        try:
            graph = build_graph(structure, cutoff, cell_cutoff)
            images = torch.cat([graph.edge_image, graph.cell_image]).abs()
            if len(images) and images.max() > np.iinfo(np.int16).max:
                raise PrismError("an edge spans more than 32,767 cells; give the crystal in a reduced basis")
        except ValueError as error:
            raise PrismError(f"crystal {name!r}: {error}") from error
        graphs.append(graph.crystals)
    piece = {"sizes": np.concatenate([graph.sizes for graph in graphs])}
    for key, (_, _, kind, _) in _ARRAYS.items():
        values = [getattr(graph, key).numpy() for graph in graphs]
        if key == "edge_index":
            values = [value.T for value in values]
        piece[key] = np.concatenate(values).astype(kind)
    return piece


def _empty(key: str) -> np.ndarray:
    if key == "sizes":
        return np.zeros((0, len(_COUNTED)), dtype=np.int64)
    _, shape, kind, _ = _ARRAYS[key]
    return np.zeros((0, *shape), dtype=kind)


def _key(structures: Sequence[tuple[str, Structure]], cutoff: float, cell_cutoff: float) -> str:
    """Hash what the graphs are made of."""
    digest = hashlib.sha256(f"{_FORMAT} {cutoff!r} {cell_cutoff!r} {len(structures)}".encode())
    for _, one in structures:
        for values in (one.numbers, one.positions, one.cell, one.pbc):
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
            # "c": torch wants arrays that could be written to; nothing that is written reaches the file.
            arrays[key] = np.memmap(folder / f"{key}.bin", like.dtype, "c", shape=shape) if shape[0] else like
    except (OSError, ValueError, KeyError):
        return None
    return arrays
