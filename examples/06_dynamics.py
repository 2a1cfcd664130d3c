"""Train a potential on energies, forces and stresses, run molecular dynamics with it, and draw what it conserves.

Copper: the training data are computed here by ASE's EMT. With --model MODEL --element Si (or another) the dynamics is
that of a potential from before (prism train --data Si.extxyz --target pes --out runs/si; MODEL is runs/si/model).
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure
from tqdm import tqdm

from prism_plugin import PRISMCalculator
from prism_plugin.data import PES, Record, split_records
from prism_plugin.tasks.potential import Potential
from prism_plugin.training import TrainingSettings, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="folder of a potential; without it one is trained, which takes two minutes")
parser.add_argument("--element", default="Cu", help="of the crystal")
parser.add_argument("--repeat", type=int, default=2, help="cubic cells along each axis")
parser.add_argument("--picoseconds", type=float, default=2.0)
parser.add_argument("--timestep", type=float, default=1.0, help="fs")
parser.add_argument("--temperature", type=float, default=300.0, help="K, after equipartition")
parser.add_argument("--out", default="dynamics.png", help="the picture")
parser.add_argument("--dry-run", action="store_true", help="little data, few steps: seconds")
arguments = parser.parse_args()


def copper(count: int) -> list[Record]:
    """Rattled and strained crystals of 32 atoms with what EMT says of them."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        atoms = bulk("Cu", cubic=True) * 2
        strain = rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.uniform(0.02, 0.2), size=atoms.positions.shape)
        atoms.calc = EMT()
        energy, gradients = atoms.get_potential_energy(), (atoms.get_forces(), atoms.get_stress(voigt=False))
        atoms.calc = None
        records.append(Record(atoms, float(energy), str(number), None, *gradients))
    return records


with TemporaryDirectory() as folder:
    model = arguments.model
    if model is None:
        how = {**Potential.recipe, "epochs": 2 if arguments.dry_run else 60, "model": {"dim": 32, "cutoff": 4.5}}
        parts = split_records(copper(20 if arguments.dry_run else 150))
        scores = train(TrainingSettings(PES, **how), parts, Path(folder) / "run")["scores"]["test"]
        print(f"test RMSE: {scores['energy_rmse']:.2f} meV/atom, {scores['forces_rmse']:.3f} eV/Å", end="")
        print(f" (forces have {scores['rms_forces']:.3f})")
        model = Path(folder) / "run" / "model"
    calculator = PRISMCalculator(model, compute_forces=True, dtype="float64")

atoms = bulk(arguments.element, cubic=True).repeat(arguments.repeat)
atoms.calc = calculator
# A crystal at rest gives half of its kinetic energy to the bonds.
thermalize_momenta(atoms, 2 * arguments.temperature, rng=np.random.default_rng(1), exact_temperature=True)
Stationary(atoms)
dynamics = VelocityVerlet(atoms, timestep=arguments.timestep * units.fs)
steps = 20 if arguments.dry_run else round(1000 * arguments.picoseconds / arguments.timestep)
totals, temperatures = [], []
with tqdm(total=steps, desc="dynamics", unit="step") as bar:

    def note() -> None:
        totals.append(1000 * atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())
        bar.update(len(totals) - 1 - bar.n)

    dynamics.attach(note)
    dynamics.run(steps)

time = np.arange(len(totals)) * arguments.timestep / 1000
change = np.array(totals) - totals[0]
drift = float(np.polyfit(time, change, 1)[0] * time[-1])
figure = Figure(figsize=(7, 5.2), layout="constrained")
energy, heat = figure.subplots(2, 1, sharex=True)
energy.plot(time, change, color="#1f4e9c", linewidth=0.7)
energy.plot(time, np.polyval(np.polyfit(time, change, 1), time), color="#d95f02", label=f"drift {drift:.1e} meV/atom")
energy.set(ylabel="total energy (meV/atom)\nsince the start", title=f"{atoms.symbols}, NVE, {arguments.timestep:g} fs")
energy.legend(loc="upper right")
heat.plot(time, temperatures, color="#1f4e9c", linewidth=0.7)
heat.set(xlabel="time (ps)", ylabel="temperature (K)")
figure.savefig(arguments.out, dpi=150)
half = len(temperatures) // 2
print(
    f"{len(atoms)} atoms, {time[-1]:g} ps at {np.mean(temperatures[half:]):.0f} K: drift {drift:.2e} meV/atom, "
    f"largest change {np.abs(change).max():.2e} meV/atom; picture: {arguments.out}"
)
