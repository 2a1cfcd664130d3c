"""Equations of state, elastic constants and phonons of a crystal with a potential, by matcalc (extra ``simulate``).

Every function takes atoms, a calculator and a folder, into which it writes numbers and a picture, and returns a row of
a table.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from prism_plugin.errors import PrismError
from prism_plugin.files import write_table
from prism_plugin.matgl_bridge import import_matcalc
from prism_plugin.simulation.plots import plot_bands, plot_elastic, plot_equation_of_state
from prism_plugin.simulation.relaxation import LOGARITHM, with_one_blas_thread

__all__ = ["check_options", "doubt_of", "elastic_constants", "equation_of_state", "phonons"]

_IMAGINARY = -0.1  # THz; above it the acoustic modes at Γ are meant, which are not exactly 0
_FEWEST_POINTS = 5  # the equation of state has four parameters
_SHEAR_STRAINS = (-0.02, -0.01, 0.01, 0.02)  # matcalc's own, to 6 %, leave the linear range of soft crystals


@with_one_blas_thread
def equation_of_state(
    atoms: Atoms, calculator: Calculator, folder: Path, fmax: float = 0.01, strain: float = 0.06, points: int = 11
) -> dict[str, float]:
    """Fit energies over volumes by Birch and Murnaghan (third order).

    Args:
        atoms: a crystal; it is relaxed first, and its shape and positions at each volume.
        calculator: what computes.
        folder: gets ``eos.csv`` and ``eos.png``.
        fmax: of the relaxations, eV/Å.
        strain: largest change of the cell's lengths.
        points: number of volumes.

    Returns:
        Volume at the least energy (Å^3/atom), bulk modulus there (GPa), and R^2 of the fit.

    Raises:
        ValueError: if it is no crystal, has constraints, does not relax, or the energies have no minimum.
    """
    check_options(fmax=fmax, strain=strain, points=points)
    matcalc = import_matcalc()
    _check_crystal(atoms)
    from pymatgen.analysis.eos import BirchMurnaghan

    calculation = matcalc.EOSCalc(calculator, max_abs_strain=strain, n_points=points, fmax=fmax, r2_min=-np.inf)
    with _reported("no equation of state"), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of a fit that has not converged
        warnings.filterwarnings("ignore", LOGARITHM)
        found = calculation.calc(atoms)
        curve = BirchMurnaghan(found["eos"]["volumes"], found["eos"]["energies"])
        curve.fit()
    pairs = np.array([found["eos"]["volumes"], found["eos"]["energies"]]) / len(atoms)
    if not pairs[0, 0] * len(atoms) < curve.v0 < pairs[0, -1] * len(atoms):
        raise PrismError("no equation of state: the energies have no minimum within the volumes")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[f"{value:.8g}" for value in pair] for pair in pairs.T]
    write_table(folder / "eos.csv", [("volume (Å^3/atom)", "energy (eV/atom)"), *rows])
    fine = np.linspace(pairs[0, 0], pairs[0, -1], 200)
    plot_equation_of_state(pairs, (fine, curve.func(fine * len(atoms)) / len(atoms)), folder / "eos.png")
    return {
        "volume (Å^3/atom)": float(curve.v0) / len(atoms),
        "bulk modulus (GPa)": float(curve.b0_GPa),
        "R^2": float(found["r2_score_bm"]),
    }


@with_one_blas_thread
def elastic_constants(atoms: Atoms, calculator: Calculator, folder: Path, fmax: float = 0.01) -> dict[str, float]:
    """Fit the elastic tensor to the stresses of strained cells, whose atoms relax.

    Args:
        atoms: a crystal; it is relaxed first.
        calculator: what computes.
        folder: gets ``elastic.csv`` (the tensor in Voigt's notation, GPa, in the axes of the IEEE standard of 1987, as
            the Materials Project has it: of a cubic crystal along the edges of the cube) and ``elastic.png``.
        fmax: of the relaxations, eV/Å.

    Returns:
        Bulk and shear modulus (Voigt, Reuss, Hill) and Young's modulus (GPa).

    Raises:
        ValueError: if it is no crystal, has constraints, or does not relax.
    """
    check_options(fmax=fmax)
    matcalc = import_matcalc()
    _check_crystal(atoms)
    calculation = matcalc.ElasticityCalc(
        calculator,
        shear_strains=_SHEAR_STRAINS,
        fmax=fmax,
        relax_structure=True,
        relax_deformed_structures=True,
        units_GPa=True,
        r2_min=-np.inf,  # it counts the components that are zero by symmetry, where it says nothing
    )
    with _reported("no elastic constants"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", LOGARITHM)
        found = calculation.calc(atoms)
    try:
        turned = found["elastic_tensor"].convert_to_ieee(found["structure"], initial_fit=False)
    except ValueError as error:
        raise PrismError(f"no elastic constants: the IEEE's axes are not found: {error}") from error
    tensor = np.asarray(turned.voigt)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "elastic.csv", [[f"{value:.6g}" for value in row] for row in tensor])
    plot_elastic(tensor, folder / "elastic.png")
    return {
        "bulk modulus (GPa)": float(found["bulk_modulus_vrh"]),
        "shear modulus (GPa)": float(found["shear_modulus_vrh"]),
        "Young's modulus (GPa)": float(found["youngs_modulus"]),
    }


def phonons(
    atoms: Atoms, calculator: Calculator, folder: Path, fmax: float = 1e-4, min_length: float = 15.0
) -> dict[str, float]:
    """Compute phonons from forces in supercells with one atom displaced, by phonopy.

    Args:
        atoms: a crystal; it is relaxed first.
        calculator: what computes; in float64.
        folder: gets ``phonon.yaml`` (phonopy's), ``thermal.csv`` and ``phonons.png`` (bands and density of states).
        fmax: of the relaxation, eV/Å.
        min_length: least length of the supercell's vectors, Å.

    Returns:
        Highest and lowest frequency (THz; imaginary ones are negative), heat capacity at 300 K (J/(K mol)) of a mole of
        the cell.

    Raises:
        ValueError: if it is no crystal, has constraints, or does not relax.
    """
    check_options(fmax=fmax, min_length=min_length)
    matcalc = import_matcalc()
    _check_crystal(atoms)
    folder.mkdir(parents=True, exist_ok=True)
    calculation = matcalc.PhononCalc(
        calculator,
        fmax=fmax,
        min_length=min_length,
        write_phonon=str(folder / "phonon.yaml"),
        imaginary_freq_tol=_IMAGINARY,
    )
    with _reported("no phonons"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", LOGARITHM)
        warnings.filterwarnings("ignore", ".*acoustic mode.*")  # the thermal properties are computed again, without
        found = calculation.calc(atoms)
    phonon = found["phonon"]
    phonon.run_thermal_properties(t_min=0, t_max=1000, t_step=10, exclude_gamma_acoustic=True)
    thermal = phonon.thermal_properties
    rows = np.array([thermal.temperatures, thermal.free_energy, thermal.entropy, thermal.heat_capacity]).T
    titles = ("temperature (K)", "free energy (kJ/mol)", "entropy (J/(K mol))", "heat capacity (J/(K mol))")
    write_table(folder / "thermal.csv", [titles, *[[f"{value:.8g}" for value in row] for row in rows]])
    plot_bands(phonon, folder / "phonons.png")
    frequencies = np.asarray(found["frequencies"])
    return {
        "highest frequency (THz)": float(frequencies.max()),
        "lowest frequency (THz)": float(frequencies.min()),
        "heat capacity at 300 K (J/(K mol))": float(np.interp(300, rows[:, 0], rows[:, 3])),
    }


def doubt_of(row: Mapping[str, float]) -> str:
    """Say what is doubtful in what one of these functions returned; an empty text if nothing is."""
    negative = [name for name in row if name.endswith("modulus (GPa)") and row[name] <= 0]
    if negative:
        what = negative[0].removesuffix(" (GPa)")
        return f"the {what} is not positive: to this potential the structure does not resist a strain"
    lowest = row.get("lowest frequency (THz)", 0.0)
    if not lowest <= _IMAGINARY:
        return ""
    return (
        f"imaginary frequencies, down to {lowest:.2f} THz: to this potential the structure is no minimum of the "
        "energy, and the thermal properties mean nothing"
    )


def check_options(**options: float) -> None:
    """Raise ValueError unless numbers have a meaning: lengths, forces and strains above 0, and points enough to fit."""
    for name, value in options.items():
        least = _FEWEST_POINTS if name == "points" else 0
        if not (np.isfinite(value) and value > 0 and value >= least):
            raise PrismError(f"{name} must be {f'at least {least}' if least else 'positive'}, got {value}")
    if options.get("strain", 0) >= 1:
        raise PrismError(f"strain is a share of the cell's lengths, below 1, got {options['strain']}")


def _check_crystal(atoms: Atoms) -> None:
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        raise PrismError("this needs a crystal: a cell with three vectors that is periodic along all of them")
    if atoms.constraints:
        raise PrismError("the structure has constraints (or selective dynamics), which do not hold here: remove them")


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Say what it means that a fit, or the relaxation before it, failed."""
    from pymatgen.analysis.eos import EOSError

    try:
        yield
    except (EOSError, RuntimeWarning, np.linalg.LinAlgError) as error:
        raise PrismError(f"{what}: {error}") from error
    except RuntimeError as error:
        if "did not converge" not in str(error):
            raise
        raise PrismError(f"{what}: {error}") from error
