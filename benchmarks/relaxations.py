"""200 relaxations through torch-sim against the same one by one through ASE, with the universal potential.

Crystals of the validation part of DATA with at most 20 atoms, their cells scaled by up to 2 %, their atoms displaced by
0.03 Å; FIRE on positions and cell (Frechet filter), until no force is above 0.05 eV/Å, at most 500 steps. Both ways in
turn, a quarter of the crystals each time; the ratio is the median of the quarters'.

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
from prism_plugin.simulation import relax_one

STEPS, FORCE = 500, 0.05


def structures(path: Path, count: int) -> list:
    small = [one for one in read_records(path, "e_form") if one.split == "val" and len(one.atoms) <= 20]
    rng = np.random.default_rng(0)
    chosen = [small[index].atoms.copy() for index in rng.permutation(len(small))[:count]]
    for atoms in chosen:
        atoms.set_cell(atoms.cell.array * rng.uniform(0.98, 1.02), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
    return chosen


def together(some: list, model: TorchSimPRISM) -> tuple[np.ndarray, np.ndarray]:
    """Volumes, Å^3, and whether each is converged."""
    converged = torch_sim.generate_force_convergence_fn(FORCE)
    # The number of steps is counted over all that a batch does, not by crystal.
    state = torch_sim.optimize(
        some, model, optimizer=torch_sim.frechet_cell_fire, convergence_fn=converged, max_steps=STEPS
    )
    return state.volume.detach().numpy(), converged(state).numpy()


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
    together(every[:2], model)
    one_by_one(every[:2], calculator)
    seconds, found = [], []
    for part in np.array_split(np.arange(len(every)), 4):
        some = [every[index] for index in part]
        row = []
        for work, how in ((together, model), (one_by_one, calculator)):
            started = time.perf_counter()
            found.append(work(some, how))
            row.append(time.perf_counter() - started)
        seconds.append(row)
        print(f"{len(some)} crystals: torch-sim {row[0]:.0f} s, one by one {row[1]:.0f} s", flush=True)
    ratios = [one / many for many, one in seconds]
    volumes = [np.concatenate([volume for volume, _ in found[way::2]]) for way in (0, 1)]
    converged = [np.concatenate([flags for _, flags in found[way::2]]) for way in (0, 1)]
    both = converged[0] & converged[1]
    difference = 100 * np.abs(volumes[0] / volumes[1] - 1)[both]
    print(
        f"one by one takes {np.median(ratios):.2f} times as long ({', '.join(f'{ratio:.2f}' for ratio in ratios)}); "
        f"converged: {converged[0].sum()} and {converged[1].sum()} of {len(every)}; volumes where both are differ by "
        f"{np.median(difference):.3f} % in the median, by more than 1 % in {(difference > 1).sum()}"
    )


if __name__ == "__main__":
    main()
