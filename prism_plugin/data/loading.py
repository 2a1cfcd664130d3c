"""Records -> crystal graphs -> batches of (graphs, targets)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from prism_plugin.batch import CrystalBatch, batch_graphs
from prism_plugin.data.records import Record
from prism_plugin.graph import CrystalGraph, build_graph

__all__ = ["GraphDataset", "make_loader"]


class GraphDataset(Dataset):
    """Crystal graphs with targets, in memory.

    Args:
        records: crystals and targets.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        name: shown at the progress bar.
        progress: whether there is a progress bar.

    Raises:
        ValueError: if a crystal is bad; the message names it.
    """

    def __init__(
        self, records: Sequence[Record], cutoff: float, cell_cutoff: float, name: str = "", progress: bool = True
    ) -> None:
        self.names = [record.name for record in records]
        self.targets = torch.tensor([record.target for record in records], dtype=torch.float64)
        self.graphs: list[CrystalGraph] = []
        for record in tqdm(records, desc=f"graphs {name}", unit="crystal", disable=not progress):
            try:
                self.graphs.append(build_graph(record.atoms, cutoff, cell_cutoff))
            except ValueError as error:
                raise ValueError(f"crystal {record.name!r}: {error}") from error

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.graphs)

    def __getitem__(self, index: int) -> tuple[CrystalGraph, Tensor]:
        """One graph and its target."""
        return self.graphs[index], self.targets[index]


class EpochSampler(Sampler[int]):
    """Shuffle by seed and epoch alone, so that a resumed training sees the order that it would have seen."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of crystals."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        """Indices in this epoch's order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())


def collate(samples: Sequence[tuple[CrystalGraph, Tensor]]) -> tuple[CrystalBatch, Tensor]:
    """Join samples into a batch and its targets, shape ``(crystals,)``."""
    graphs, targets = zip(*samples, strict=True)
    return batch_graphs(graphs), torch.stack(targets)


def make_loader(dataset: GraphDataset, batch_size: int, shuffle_seed: int | None = None) -> DataLoader:
    """Make a loader; with a ``shuffle_seed`` it shuffles anew every epoch."""
    sampler = None if shuffle_seed is None else EpochSampler(len(dataset), shuffle_seed)
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate)
