"""Measure the memory and the time from a Matbench file of 132,752 structures to graphs on disk.

The crystals are copies of those in DATA, each with its atoms displaced by up to 0.01 Å, in a file of the size and the
format of matbench_mp_e_form. Memory is what the process and its workers hold for themselves (USS), twice a second.

    python benchmarks/memory.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz /tmp/memory
"""

import argparse
import gzip
import hashlib
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from prism_plugin.data import load_named, make_datasets, read_records


def write_frame(data: Path, path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    records = read_records(data, "e_form")
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(json.dumps({"index": list(range(count)), "columns": ["structure", "e_form"]})[:-1])
        file.write(', "data": [')
        for number in range(count):
            atoms = records[number % len(records)].atoms
            positions = atoms.positions + rng.uniform(-0.01, 0.01, size=atoms.positions.shape)
            fractions = positions @ np.linalg.inv(atoms.cell.array)
            structure = {
                "@module": "pymatgen.core.structure",
                "@class": "Structure",
                "charge": None,
                "lattice": {"matrix": atoms.cell.array.tolist()},
                "sites": [
                    {"species": [{"element": symbol, "occu": 1}], "abc": abc, "xyz": xyz, "label": symbol}
                    for symbol, abc, xyz in zip(atoms.symbols, fractions.tolist(), positions.tolist(), strict=True)
                ],
            }
            file.write((", " if number else "") + json.dumps([structure, records[number % len(records)].target]))
        file.write("]}")


class Watch(threading.Thread):
    """Sample the memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Sample until the program ends."""
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().uss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.5)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("folder", type=Path, help="for the file and the graphs, about 4 GB")
parser.add_argument("--count", type=int, default=132_752)
arguments = parser.parse_args()

folder = arguments.folder
folder.mkdir(parents=True, exist_ok=True)
frame = folder / "matbench_mp_e_form.json.gz"
if not frame.exists():
    write_frame(arguments.data, folder / "writing.gz", arguments.count)
    os.replace(folder / "writing.gz", frame)
os.environ["MATMINER_DATA"] = str(folder)
from matminer.datasets import dataset_retrieval  # noqa: E402  # the published hash is that of the published file

dataset_retrieval._dataset_dict = dataset_retrieval._load_dataset_dict()
dataset_retrieval._dataset_dict["matbench_mp_e_form"]["hash"] = hashlib.sha256(frame.read_bytes()).hexdigest()

watch = Watch()
watch.start()
started = time.perf_counter()
parts = load_named("matbench_mp_e_form", "formation_energy", fold=0)
read = time.perf_counter()
print(f"file {frame.stat().st_size / 1e9:.2f} GB; read in {read - started:.0f} s, peak {watch.peak / 1e9:.2f} GB")
datasets = make_datasets(parts, 5.0, 15.0, progress=False, cache=folder / "graphs")
built = time.perf_counter()
size = sum(file.stat().st_size for file in (folder / "graphs").rglob("*.bin"))
print(f"graphs in {built - read:.0f} s, {size / 1e9:.2f} GB on disk, peak {watch.peak / 1e9:.2f} GB")
again = make_datasets(parts, 5.0, 15.0, progress=False, cache=folder / "graphs")
print(f"found again in {time.perf_counter() - built:.1f} s")
edges = int(datasets["train"].graphs.sizes[:, 1].sum())  # all parts lie together
print(f"{sum(len(dataset) for dataset in again.values()):,} crystals, {edges:,} atomistic edges")
