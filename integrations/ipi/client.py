"""Forces of the universal potential for i-PI, by ASE's socket client.

i-PI first, in another terminal (``pip install i-pi ase``), then this:

    python integrations/ipi/client.py --make-start    # start.xyz: 64 atoms of NaCl
    i-pi integrations/ipi/input.xml
    python integrations/ipi/client.py
"""

import argparse

from ase.build import bulk
from ase.calculators.socketio import SocketClient
from ase.io import read, write

from prism_plugin import PRISMCalculator, relax

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--make-start", action="store_true", help="write start.xyz and end")
parser.add_argument("--port", type=int, default=31415, help="that of input.xml")
arguments = parser.parse_args()
if arguments.make_start:
    atoms = relax(bulk("NaCl", "rocksalt", a=5.6, cubic=True)).repeat(2)
    atoms.calc = None
    write("start.xyz", atoms)
else:
    atoms = read("start.xyz")
    atoms.calc = PRISMCalculator(dtype="float64")
    SocketClient(host="localhost", port=arguments.port).run(atoms)
