"""200 relaxations in lock step, through torch-sim, and one by one, with the universal potential.

Crystals of the validation part of DATA with at most 20 atoms, their cells scaled by up to 2 %, their atoms displaced by
0.03 Å; FIRE on positions and cell (Frechet filter), until no force is above 0.05 eV/Å, at most 500 steps. The ways in
turn, a quarter of the crystals each time; ratios are medians of the quarters'.

    python benchmarks/relaxations.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_sim

from prism_plugin import PRISMCalculator
from prism_plugin.calculators.torch_sim import TorchSimPRISM
from prism_plugin.data import read_records
from prism_plugin.errors import PrismError
from prism_plugin.simulation.relaxation import Relaxation, relax_many, relax_one

STEPS, FORCE = 500, 0.05


def structures(path: Path, count: int) -> list:
    small = [one for one in read_records(path, "e_form") if one.split == "val" and len(one.atoms) <= 20]
    rng = np.random.default_rng(0)
    chosen = [small[index].atoms.copy() for index in rng.permutation(len(small))[:count]]
    for atoms in chosen:
        atoms.set_cell(atoms.cell.array * rng.uniform(0.98, 1.02), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
    return chosen


def fire_on_cells() -> dict:
    """FIRE on positions and cell, as torch-sim 0.3 and later ones call it."""
    if hasattr(torch_sim, "frechet_cell_fire"):
        return {"optimizer": torch_sim.frechet_cell_fire}
    return {"optimizer": torch_sim.Optimizer.fire, "init_kwargs": {"cell_filter": torch_sim.CellFilter.frechet}}


def together(some: list, model: TorchSimPRISM) -> tuple[np.ndarray, np.ndarray]:
    """Volumes, Å^3, and whether each is converged."""
    converged = torch_sim.generate_force_convergence_fn(FORCE)
    # The number of steps is counted over all that a batch does, not by crystal.
    state = torch_sim.optimize(some, model, **fire_on_cells(), convergence_fn=converged, max_steps=STEPS)
    return state.volume.detach().numpy(), converged(state).numpy()


def lock_step(some: list, calculator: PRISMCalculator) -> tuple[np.ndarray, np.ndarray]:
    """The same; NaN where a relaxation left all bounds."""
    found = dict(relax_many(enumerate(some), calculator, fmax=FORCE, steps=STEPS))
    ended = [found[index] for index in range(len(some))]
    volumes = [one.atoms.get_volume() if isinstance(one, Relaxation) else np.nan for one in ended]
    return np.array(volumes), np.array([isinstance(one, Relaxation) and one.is_converged for one in ended])


def one_by_one(some: list, calculator: PRISMCalculator) -> tuple[np.ndarray, np.ndarray]:
    """The same; NaN where a relaxation left all bounds."""
    volumes, converged = [], []
    for atoms in some:
        try:
            done = relax_one(atoms.copy(), calculator, fmax=FORCE, steps=STEPS)
            volumes.append(done.atoms.get_volume())
            converged.append(done.is_converged)
        except PrismError:
            volumes.append(np.nan)
            converged.append(False)
    return np.array(volumes), np.array(converged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--crystals", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every = structures(arguments.data, arguments.crystals)
    model, calculator = TorchSimPRISM(device="cpu", dtype="float32"), PRISMCalculator(device="cpu")
    ways = {
        "one by one": lambda some: one_by_one(some, calculator),
        "lock step": lambda some: lock_step(some, calculator),
        "torch-sim": lambda some: together(some, model),
    }
    for work in ways.values():
        work(every[:2])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, list] = {way: [] for way in ways}
    for part in np.array_split(np.arange(len(every)), 4):
        for way, work in ways.items():
            started = time.perf_counter()
            found[way].append(work([every[index] for index in part]))
            seconds[way].append(time.perf_counter() - started)
        print(f"{len(part)} crystals:", {way: round(some[-1]) for way, some in seconds.items()}, "s", flush=True)
    volumes, converged = ({way: np.concatenate([two[k] for two in found[way]]) for way in ways} for k in (0, 1))
    alone = "one by one"
    for way in ways:
        ratios = np.divide(seconds[alone], seconds[way])
        both = converged[way] & converged[alone]
        difference = 100 * np.abs(volumes[way] / volumes[alone] - 1)[both]
        print(
            f"{way}: {np.median(ratios):.2f} times as fast ({', '.join(f'{ratio:.2f}' for ratio in ratios)}), "
            f"{converged[way].sum()} of {len(every)} converged; volumes where both are differ from those {alone} by "
            f"{np.median(difference):.4f} % in the median, {difference.max():.3f} % at most, by more than 1 % in "
            f"{(difference > 1).sum()}"
        )


if __name__ == "__main__":
    main()
