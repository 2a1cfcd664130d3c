"""Which crystals an epoch has, and in which order."""

from __future__ import annotations

import numpy as np
import torch
from ase.build import bulk

from prism_plugin.data import GraphDataset, Record, make_loader
from prism_plugin.data.loading import EpochSampler


def test_a_crystal_is_in_as_many_epochs_as_its_chance_says() -> None:
    chances = torch.linspace(0.05, 1, 97, dtype=torch.float64)
    chances[::5] = 1
    sampler = EpochSampler(97, seed=3, chances=chances)
    counts = np.zeros(97)
    epochs = 4000
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(set(drawn)) == len(sampler) == int(chances.sum())
        counts[drawn] += 1
    expected = chances.numpy() * len(sampler) / float(chances.sum())  # the rest of the sum is left out
    deviation = np.sqrt(expected * (1 - expected) / epochs) + 1e-3
    assert (abs(counts / epochs - expected) < 4 * deviation).all()


def test_an_epoch_is_drawn_by_seed_and_number_alone() -> None:
    chances = torch.full((50,), 0.5, dtype=torch.float64)
    first, again, other = (EpochSampler(50, seed, chances) for seed in (1, 1, 2))
    first.set_epoch(7)
    again.set_epoch(7)
    assert list(first) == list(again) != list(other)
    again.set_epoch(8)
    assert list(first) != list(again)


def test_a_loader_draws_large_cells_less_often() -> None:
    copper = bulk("Cu")
    cells = [copper, copper * (2, 1, 1), copper * (2, 2, 2)] * 8
    records = [Record(atoms, 0.0, f"{number}") for number, atoms in enumerate(cells)]
    dataset = GraphDataset(records, 3.0, 3.0, progress=False)
    loader = make_loader(dataset, 6, shuffle_seed=0, sample_atoms=2)
    sizes = np.concatenate([batch.sizes[:, 0] for batch, _ in loader])
    assert len(sizes) == 18
    assert np.count_nonzero(sizes <= 2) >= 15  # all of at most two atoms, but for the last place of the sum
    everything = np.concatenate([batch.sizes[:, 0] for batch, _ in make_loader(dataset, 6, shuffle_seed=0)])
    assert sorted(everything) == [1] * 8 + [2] * 8 + [8] * 8
