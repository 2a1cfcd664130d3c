"""Formation energies of a few crystals with the default model, through the ASE calculator and in one batch."""

import argparse

from ase.build import bulk

from prism_plugin import PRISMCalculator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--dry-run", action="store_true", help="the same: this example takes a second")
parser.parse_args()

crystals = {
    "NaCl, rocksalt": bulk("NaCl", "rocksalt", a=5.69),
    "MgO, rocksalt": bulk("MgO", "rocksalt", a=4.25),
    "ZnS, zincblende": bulk("ZnS", "zincblende", a=5.45),
    "CsCl": bulk("CsCl", "cesiumchloride", a=4.21),
    "GaAs, zincblende": bulk("GaAs", "zincblende", a=5.75),
}
calculator = PRISMCalculator("prism-mp2018-eform")

# One at a time, as any ASE program does it. The energy is extensive: per atom times the number of atoms.
for name, atoms in crystals.items():
    atoms.calc = calculator
    print(f"{name:<18} {atoms.get_potential_energy() / len(atoms):8.3f} eV/atom")

# All at once, through the model itself.
together = calculator.model.predict_structure(list(crystals.values()))
print(f"mean of the batch  {together.mean().item():8.3f} {calculator.model.unit}")
