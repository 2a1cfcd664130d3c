"""Molecular dynamics with a potential, by ASE's integrators: NVE, NVT (Bussi) and NPT (Martyna-Tobias-Klein)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io import Trajectory
from ase.md.bussi import Bussi
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from prism_plugin.errors import PrismError
from prism_plugin.files import replaced, sweep, write_table

__all__ = ["COLUMNS", "DynamicsSettings", "run_dynamics"]

COLUMNS = ("time (ps)", "temperature (K)", "potential energy (eV)", "total energy (eV)", "volume (Å^3)")
_HOTTEST = 20.0  # times the temperature asked for, and 10,000 K: the structure has fallen apart


@dataclass(frozen=True)
class DynamicsSettings:
    """How atoms move.

    Attributes:
        ensemble: ``"nve"``, ``"nvt"`` or ``"npt"``.
        temperature: K; of ``"nve"`` that of the first velocities, half of which becomes potential energy.
        pressure: GPa, of ``"npt"``.
        timestep: fs.
        steps: how many.
        every: steps between two frames of the trajectory.
        seed: of velocities and thermostat.
    """

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    temperature: float = 300.0
    pressure: float = 0.0
    timestep: float = 1.0
    steps: int = 1000
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise PrismError(f"unknown ensemble {self.ensemble!r}; choose one of: nve, nvt, npt")
        numbers = {name: getattr(self, name) for name in ("temperature", "timestep", "steps", "every")}
        for name, value in numbers.items():
            if not (np.isfinite(value) and value > 0):
                raise PrismError(f"{name} must be positive, got {value}")
        if self.seed < 0:
            raise PrismError(f"the seed must be at least 0, got {self.seed}")
        if not np.isfinite(self.pressure):
            raise PrismError(f"the pressure must be finite, got {self.pressure}")


def run_dynamics(
    atoms: Atoms, calculator: Calculator, settings: DynamicsSettings, folder: Path, progress: bool = False
) -> dict[str, Any]:
    """Move atoms, and write ``trajectory.traj`` and ``log.csv`` (:data:`COLUMNS`) into a folder.

    Args:
        atoms: the structure; stays as it is.
        calculator: what computes.
        settings: how.
        folder: made if missing; what it has is replaced.
        progress: whether there is a progress bar.

    Returns:
        Mean ``"temperature"`` (K) and ``"volume"`` (Å^3) of the second half, ``"drift"`` of the total energy over the
        run (meV/atom/ps, by least squares; NaN but with ``"nve"``), and the ``"log"``, shape ``(frames, 5)``.

    Raises:
        ValueError: if the structure falls apart, has no cell for a pressure, or constraints then, or nothing can move.
    """
    if settings.ensemble == "npt" and not (atoms.cell.rank == 3 and atoms.pbc.all()):
        raise PrismError("a pressure needs a cell with three vectors that is periodic along all of them")
    if settings.ensemble == "npt" and atoms.constraints:
        raise PrismError("the structure has constraints, which the ensemble npt cannot hold: take nvt, or remove them")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("trajectory.traj", "log.csv"):
        sweep(folder, name)
    moving = atoms.copy()
    moving.calc = calculator
    rng = np.random.default_rng(settings.seed)
    thermalize_momenta(moving, settings.temperature, rng=rng)
    if len(moving) > 1:
        Stationary(moving)
    if settings.ensemble == "nvt" and not moving.get_kinetic_energy() > 0:
        raise PrismError(f"nothing moves at {settings.temperature} K: all atoms are held by constraints, or too cold")
    rows: list[tuple[float, ...]] = []
    with replaced(folder / "trajectory.traj") as aside, Trajectory(aside, "w", moving) as trajectory:
        integrator = _integrator(moving, settings, rng)
        with tqdm(total=settings.steps, desc="md", unit="step", disable=not progress) as bar:
            for _ in integrator.irun(settings.steps):
                if integrator.nsteps % settings.every == 0:
                    rows.append(_row(moving, integrator.nsteps * settings.timestep / 1000))
                    _check(rows[-1], settings)
                    trajectory.write()
                bar.update(integrator.nsteps - bar.n)
    write_table(folder / "log.csv", [COLUMNS, *[[f"{value:.8g}" for value in row] for row in rows]])
    log = np.array(rows)
    second = log[len(log) // 2 :]
    is_conserved = settings.ensemble == "nve" and len(log) > 1
    slope = np.polyfit(log[:, 0], log[:, 3], 1)[0] if is_conserved else np.nan
    return {
        "temperature": float(second[:, 1].mean()),
        "volume": float(second[:, 4].mean()),
        "drift": float(1000 * slope / len(moving)),
        "log": log,
    }


def _integrator(atoms: Atoms, settings: DynamicsSettings, rng: np.random.Generator) -> Any:
    step = settings.timestep * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if settings.ensemble == "nvt":
        return Bussi(atoms, step, temperature_K=settings.temperature, taut=100 * units.fs, rng=rng)
    return IsotropicMTKNPT(
        atoms,
        step,
        temperature_K=settings.temperature,
        pressure_au=settings.pressure * units.GPa,
        tdamp=100 * step,
        pdamp=1000 * step,
    )


def _row(atoms: Atoms, time: float) -> tuple[float, ...]:
    volume = atoms.get_volume() if atoms.cell.rank == 3 else np.nan
    return time, atoms.get_temperature(), atoms.get_potential_energy(), atoms.get_total_energy(), volume


def _check(row: tuple[float, ...], settings: DynamicsSettings) -> None:
    """Raise ValueError where nothing can come of going on."""
    hottest = max(_HOTTEST * settings.temperature, 10_000)
    if not np.isfinite(row[2]) or not row[1] < hottest:
        raise PrismError(
            f"falls apart: after {row[0]:.4g} ps its temperature is {row[1]:.4g} K; try a shorter --timestep"
        )
