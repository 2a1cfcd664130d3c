"""Records -> crystal graphs -> batches of (graphs, targets).

Targets are one number for each crystal, or :class:`EnergyLabels`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from prism_plugin.data.records import Record
from prism_plugin.devices import send
from prism_plugin.distributed import rank_and_size
from prism_plugin.errors import PrismError
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.store import graph_store
from prism_plugin.graph.structure import Structure

__all__ = ["EnergyLabels", "GraphDataset", "make_datasets", "make_loader"]


class EnergyLabels(NamedTuple):
    """What a potential learns, in float64.

    Attributes:
        energy: total energies, eV, shape ``(crystals,)``.
        forces: eV/Å, shape ``(atoms, 3)``.
        virial: stress times the volume of the cell, eV, shape ``(crystals, 3, 3)``; NaN where it is unknown.
    """

    energy: Tensor
    forces: Tensor
    virial: Tensor


class GraphDataset(Dataset):
    """Crystal graphs with targets.

    Args:
        records: crystals and targets.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        progress: whether there is a progress bar.
        cache: folder for the graphs on disk, where another run finds them; None keeps them in memory.
        waves: whether the model reads plane waves (``model.has_waves``), which are then counted once.

    Raises:
        ValueError: if a crystal is bad; the message names it.
    """

    def __init__(
        self,
        records: Sequence[Record],
        cutoff: float,
        cell_cutoff: float,
        progress: bool = True,
        cache: str | Path | None = None,
        waves: bool = False,
    ) -> None:
        self.names = [record.name for record in records]
        self.targets = torch.tensor([record.target for record in records], dtype=torch.float64)
        structures = [(record.name, _structure_of(record)) for record in records]
        graphs = graph_store(structures, cutoff, cell_cutoff, progress, cache)
        self.graphs = graphs.with_waves() if waves else graphs
        self.forces = [record.forces for record in records]
        self.stresses = [record.stress for record in records]

    def subset(self, indices: np.ndarray) -> GraphDataset:
        """Return some of the crystals, in this order; the graphs are shared."""
        part = copy.copy(self)
        part.names = [self.names[index] for index in indices]
        part.targets = self.targets[indices]
        part.graphs = self.graphs.subset(indices)
        part.forces = [self.forces[index] for index in indices]
        part.stresses = [self.stresses[index] for index in indices]
        return part

    def to(self, device: torch.device | str, tensors: dict[str, Tensor] | None = None) -> GraphDataset:
        """Return the data set with graphs and targets on a device, where its batches are then made.

        ``tensors`` are those of the graphs, where they were moved before for another part of the same crystals.
        """
        there = copy.copy(self)
        there.graphs = self.graphs.to(device) if tensors is None else replace(self.graphs, tensors=tensors)
        there.targets = self.targets.to(device)
        return there

    @property
    def has_forces(self) -> bool:
        """Whether the crystals have forces; all have, or none has."""
        return bool(self.forces) and self.forces[0] is not None

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.graphs)

    def __getitem__(self, index: int) -> tuple[CrystalBatch, Any]:
        """Return one crystal with its target or labels."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> tuple[CrystalBatch, Any]:
        """Return a batch of crystals with their targets, shape ``(crystals,)``, or their labels."""
        batch = self.graphs.batch(indices)
        targets = self.targets.index_select(0, send(list(indices), self.targets.device))
        if not self.has_forces:
            return batch, targets
        forces = torch.from_numpy(
            np.concatenate([forces for forces in (self.forces[index] for index in indices) if forces is not None])
        )
        return batch, EnergyLabels(targets, forces, self.stress(indices) * batch.volume.cpu().view(-1, 1, 1))

    def stress(self, indices: Sequence[int]) -> Tensor:
        """Return stresses, eV/Å^3, shape ``(crystals, 3, 3)``; NaN where it is unknown."""
        unknown = np.full((3, 3), np.nan)
        found = [self.stresses[index] for index in indices]
        return torch.from_numpy(np.stack([unknown if stress is None else stress for stress in found]))


def _structure_of(record: Record) -> Structure:
    try:
        return record.structure
    except ValueError as error:
        raise PrismError(f"crystal {record.name!r}: {error}") from error


def make_datasets(
    parts: Mapping[str, Sequence[Record]],
    cutoff: float,
    cell_cutoff: float,
    progress: bool = True,
    cache: str | Path | None = None,
    waves: bool = False,
) -> dict[str, GraphDataset]:
    """Build the graphs of all parts together, and give each part its own.

    With a ``cache`` they lie there once, however the same crystals are divided: for all folds and seeds of a
    cross-validation.

    Args:
        parts: records by the name of their part; an empty one has no data set.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        progress: whether there is a progress bar.
        cache: folder for the graphs on disk; None keeps them in memory.
        waves: whether the model reads plane waves.

    Raises:
        ValueError: if a crystal is bad; the message names it.
    """
    filled = {name: records for name, records in parts.items() if records}
    records = [record for part in filled.values() for record in part]
    by_name = sorted(range(len(records)), key=lambda index: records[index].name)
    together = GraphDataset([records[index] for index in by_name], cutoff, cell_cutoff, progress, cache, waves)
    ends = np.cumsum([len(part) for part in filled.values()])
    return {
        name: together.subset(places)
        for name, places in zip(filled, np.split(np.argsort(by_name), ends[:-1]), strict=True)
    }


class EpochSampler(Sampler[int]):
    """Shuffle by seed and epoch alone, so that a resumed training sees the order that it would have seen.

    Args:
        size: number of crystals.
        seed: of the order.
        chances: probability of each crystal to be in an epoch, float64, shape ``(size,)``; None: all are.
    """

    def __init__(self, size: int, seed: int, chances: Tensor | None = None) -> None:
        self.size = size
        self.seed = seed
        self.chances = chances
        self.count = size if chances is None else max(1, int(chances.sum()))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of crystals of an epoch, the same for all epochs."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """Indices in this epoch's order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        if self.chances is not None:
            # Systematic sampling: along the summed chances one crystal at each whole step from a random start.
            steps = torch.rand((), dtype=torch.float64, generator=generator) + torch.arange(self.count)
            places = torch.searchsorted(self.chances[order].cumsum(0), steps, right=True)
            order = order[places.clamp(max=self.size - 1)]
        return iter(order.tolist())


class BatchSampler(Sampler[list[int]]):
    """Cut an order of crystals into batches, and divide them among the processes of a data-parallel training.

    A shuffled order is for training: each batch is divided, so that all processes together see the batches that one
    alone would see. A last batch with fewer crystals than processes is left out, because some would get none. Any other
    order is for validation: it is divided before it is cut, so that every crystal has its turn.

    Attributes:
        first: the batch with which the next iteration begins; those after it begin with 0.
        given: how many batches of the present iteration are given out.
    """

    def __init__(self, sampler: EpochSampler | range, batch_size: int) -> None:
        self.sampler = sampler  # Lightning looks for it here, to tell it the epoch
        self.batch_size = batch_size
        self.first = self.given = 0

    def __len__(self) -> int:
        """Number of batches."""
        rank, processes = rank_and_size()
        if isinstance(self.sampler, EpochSampler):
            whole, rest = divmod(len(self.sampler), self.batch_size)
            return whole + (rest >= processes)
        return -(-len(self.sampler[rank::processes]) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one batch after the other; of each the part of this process."""
        rank, processes = rank_and_size()
        shuffled = isinstance(self.sampler, EpochSampler)
        order = list(self.sampler) if shuffled else list(self.sampler)[rank::processes]
        first, self.first = self.first, 0
        for number in range(first, len(self)):
            self.given = number + 1
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[rank::processes] if shuffled else batch


class ResumableLoader(DataLoader):
    """A loader of whole batches that a training which is resumed within an epoch goes on with."""

    def __init__(self, dataset: GraphDataset, batches: BatchSampler) -> None:
        # The data set makes whole batches: nothing is left to collate.
        super().__init__(dataset, batch_sampler=batches, collate_fn=_as_it_is)
        self.batches = batches

    def state_dict(self) -> dict[str, int]:
        """Return the batch that comes next; Lightning puts it into checkpoints."""
        return {"batch": self.batches.given % len(self.batches)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration with the batch that would have come."""
        self.batches.first = self.batches.given = state["batch"]


def make_loader(
    dataset: GraphDataset, batch_size: int, shuffle_seed: int | None = None, sample_atoms: int | None = None
) -> ResumableLoader:
    """Make a loader.

    Args:
        dataset: crystals and targets.
        batch_size: crystals of a batch.
        shuffle_seed: to shuffle anew every epoch; None keeps the order, and all crystals.
        sample_atoms: a crystal of n atoms is in an epoch with probability min(1, ``sample_atoms`` / n); None: all are.
    """
    if shuffle_seed is None:
        return ResumableLoader(dataset, BatchSampler(range(len(dataset)), batch_size))
    chances = None
    if sample_atoms is not None:
        chances = (sample_atoms / torch.from_numpy(dataset.graphs.atoms).double()).clamp(max=1)
    return ResumableLoader(dataset, BatchSampler(EpochSampler(len(dataset), shuffle_seed, chances), batch_size))


def _as_it_is(batch: Any) -> Any:
    return batch
