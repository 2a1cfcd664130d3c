"""One crystal after the other through ASE against all of them in one call of the calculator.

Crystals of DATA with at most 20 atoms, the default model, float32; both ways in turn, several times, medians.

    python benchmarks/calculator.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from prism_plugin import PRISMCalculator
from prism_plugin.data import read_records

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("--crystals", type=int, default=512)
parser.add_argument("--repeats", type=int, default=5)
arguments = parser.parse_args()

records = read_records(arguments.data, "e_form")
crystals = [record.atoms for record in records if record.split == "val" and len(record.atoms) <= 20]
crystals = crystals[: arguments.crystals]
print(
    f"{len(crystals)} crystals, {sum(map(len, crystals)) / len(crystals):.1f} atoms, {torch.get_num_threads()} threads"
)
for forces in (False, True):
    calculator = PRISMCalculator("prism-mp2018-eform", compute_forces=forces)
    calculator.predict(crystals[:64])  # warm up
    times: dict[str, list[float]] = {"one by one": [], "in one call": []}
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        for atoms in crystals:
            calculator.get_property("forces" if forces else "energy", atoms)
        times["one by one"].append(time.perf_counter() - started)
        started = time.perf_counter()
        calculator.predict(crystals, progress=False)
        times["in one call"].append(time.perf_counter() - started)
    each = {name: 1000 * median(values) / len(crystals) for name, values in times.items()}
    told = ", ".join(f"{name} {value:.2f} ms a crystal" for name, value in each.items())
    print(
        f"{'with' if forces else 'without'} forces: {told}; {each['one by one'] / each['in one call']:.1f} times faster"
    )
