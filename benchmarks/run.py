"""Speed and memory of PRISM beside its twins and its peers: one command, a table and a picture.

Batches of 64 crystals of 16 atoms (alloys on a body-centred lattice, rattled; about 40 neighbors within 5 Å), models of
the sizes of benchmarks/peers.py, all in one process and in turn, medians; CPU time as well as wall time. Then: graph
building, memory, cells of 8 to 10,000 atoms, and a single small crystal. Nothing is read but the default model.

    python benchmarks/run.py OUT                  # about half an hour on two cores
    python benchmarks/run.py OUT --parts batch    # only some, see --help
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import matplotlib as mpl
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from peers import Contestant, contestants, ours

from prism_plugin import PRISM, PRISMCalculator, batch_graphs, build_graph
from prism_plugin.data import GraphDataset, Record, make_loader, rotate_batch
from prism_plugin.data.augmentation import random_rotations
from prism_plugin.data.loading import EnergyLabels
from prism_plugin.forces import energies_with_gradients
from prism_plugin.pretrained import COMMITTEE, load
from prism_plugin.tasks.potential import PotentialLoss

mpl.use("Agg")
from matplotlib import pyplot as plt

DIM, LAYERS, CRYSTALS = 256, 4, 64


def alloy(seed: int, repeat: int = 2) -> Atoms:
    """16 atoms (for ``repeat`` = 2) of four elements, at 12.9 Å^3 per atom."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Fe", "bcc", a=2.955, cubic=True) * (repeat, repeat, repeat)
    elements = rng.choice([3, 8, 11, 12, 13, 14, 16, 20, 22, 26, 29, 30, 38, 56], 4, replace=False)
    atoms.numbers = rng.permutation(np.resize(elements, len(atoms)))
    atoms.rattle(0.05, rng=rng)
    return atoms


def rocksalt(atoms: int) -> Atoms:
    """A rattled NaCl cell of about so many atoms; half of all pairs are of one element, and similar."""
    repeat = max(1, round((atoms / 8) ** (1 / 3)))
    cell = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeat, repeat, max(1, round(atoms / 8 / repeat**2)))
    cell.rattle(0.02, seed=0)
    return cell


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Run all jobs in turn; median wall and CPU seconds of each. One round before does not count."""
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            started, used = time.perf_counter(), time.process_time()
            job()
            if number:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    return {name: (median(wall[name]), median(cpu[name])) for name in jobs}


def forward_and_step(
    one: Contestant, batch: object, autocast: bool = False, onednn: bool = True
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A forward pass and a training step; ``autocast`` for products in bfloat16."""
    optimizer = torch.optim.AdamW(one.model.parameters(), lr=1e-6)
    context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    def infer() -> None:
        torch._C._set_mkldnn_enabled(onednn)
        one.model.eval()
        with torch.no_grad(), context:
            one.predict(one.model, batch)
        torch._C._set_mkldnn_enabled(True)

    def learn() -> None:
        torch._C._set_mkldnn_enabled(onednn)
        one.model.train()
        optimizer.zero_grad()
        with context:
            loss = one.predict(one.model, batch).float().abs().mean()
        loss.backward()
        optimizer.step()
        torch._C._set_mkldnn_enabled(True)

    return infer, learn


def batch_part(rounds: int) -> tuple[str, dict[str, tuple[float, float]]]:
    """Forward passes and training steps of everybody."""
    everybody, missing = contestants(DIM, LAYERS)
    crystals = [alloy(seed) for seed in range(CRYSTALS)]
    forward: dict[str, Callable[[], object]] = {}
    step: dict[str, Callable[[], object]] = {}

    def add(name: str, one: Contestant, batch: object, autocast: bool = False, onednn: bool = True) -> None:
        forward[name], step[name] = forward_and_step(one, batch, autocast, onednn)

    parameters = {}
    for one in everybody:
        batch = one.collate([one.build(atoms) for atoms in crystals])
        add(one.name, one, batch)
        parameters[one.name] = one.parameters
        if one.name == "PRISM":
            edges = batch.edge_index.shape[1]
            for name, keywords in (("PRISM, MKL", {"onednn": False}), ("PRISM, bfloat16", {"autocast": True})):
                add(name, one, batch, **keywords)
                parameters[name] = one.parameters
    forwards, steps = interleaved(forward, rounds), interleaved(step, rounds)
    reference = "CartNet twin"
    lines = [
        f"{edges:,} atomistic edges; ratios of wall time to the CartNet twin's.",
        "",
        "| model | parameters | forward, s (CPU s) | ratio | step, s (CPU s) | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name in forward:
        told = [
            f"{times[name][0]:.3f} ({times[name][1]:.3f}) | {times[name][0] / times[reference][0]:.2f}"
            for times in (forwards, steps)
        ]
        lines.append(f"| {name} | {parameters[name]:,} | {' | '.join(told)} |")
    lines += [f"\nNot installed: {reason}" for reason in missing]
    return "\n".join(lines), {name: (forwards[name][0], steps[name][0]) for name in forward}


def graphs_part(rounds: int) -> str:
    """Graph building and batching, and how it compares with inference."""
    everybody, _ = contestants(DIM, LAYERS)
    crystals = [alloy(seed) for seed in range(CRYSTALS)]
    everybody = [one for one in everybody if "twin" not in one.name]
    jobs = {one.name: lambda one=one: one.collate([one.build(atoms) for atoms in crystals]) for one in everybody}
    built = interleaved(jobs, rounds)
    inference = {}
    for one in everybody:
        one.model.eval()
        batch = jobs[one.name]()
        with torch.no_grad():
            inference[one.name] = interleaved({"": lambda one=one, batch=batch: one.predict(one.model, batch)}, rounds)[
                ""
            ]
    lines = ["| graphs of | ms per crystal | part of its inference |", "|---|---|---|"]
    for name, (wall, _) in built.items():
        lines.append(f"| {name} | {1000 * wall / CRYSTALS:.2f} | {100 * wall / inference[name][0]:.0f} % |")
    return "\n".join(lines)


def alone(code: str) -> list[float]:
    """Run code in a process of its own; the numbers that it prints."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    done = subprocess.run(
        [sys.executable, "-c", threads + code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [float(number) for number in done.stdout.split()]


def peak() -> int:
    """Most memory that this process has held so far, kB (Linux)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open(encoding="utf-8") if "VmHWM" in line)


def memory_part(rounds: int) -> str:
    """Peak memory above that before, per atomistic edge; the memory and the time of recomputation."""
    lines = ["| | kB per atomistic edge and layer | s |", "|---|---|---|"]
    for name, make, learn in (
        ("CartNet twin, step", "twins.cartnet(PRISM())", True),
        ("PRISM, naive twin, step", "twins.naive(PRISM())", True),
        ("PRISM, step", "PRISM()", True),
        ("PRISM, step, recompute", "PRISM()", True),
        ("PRISM, naive twin, forward", "twins.naive(PRISM())", False),
        ("PRISM, forward", "PRISM()", False),
    ):
        extra, seconds, edges = alone(f"""
import statistics, time, run, twins
from prism_plugin import PRISM, batch_graphs, build_graph
batch = batch_graphs([build_graph(run.alloy(seed)) for seed in range({CRYSTALS})])
small = batch_graphs([build_graph(run.alloy(0))])
torch.manual_seed(0)
model = {make}
model.recompute = {"recompute" in name}
def work(batch):
    model.train({learn})
    if {learn}:
        model.zero_grad()
        model(batch).abs().mean().backward()
    else:
        with torch.no_grad():
            model(batch)
work(small)
before = run.peak()
times = []
for _ in range({rounds}):
    started = time.perf_counter()
    work(batch)
    times.append(time.perf_counter() - started)
print(run.peak() - before, statistics.median(times), batch.edge_index.shape[1])
""")
        lines.append(f"| {name} | {extra / edges / LAYERS:.1f} | {seconds:.2f} |")
    return "\n".join(lines)


SIZES = (8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 10_000)


def cells_part(out: Path) -> str:
    """Inference on one cell of 8 to 10,000 atoms: time, peak memory, slopes, and a picture."""
    kinds = {
        "PRISM": "PRISM()",
        "PRISM without similarity": "PRISM(experts=('atomistic', 'cell', 'multiscale'))",
        "default model": "load()",
    }
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    lines = ["| model | atoms | graph, s | inference, s | peak memory, GB |", "|---|---|---|---|---|"]
    for name, make in kinds.items():
        rows = []
        for size in SIZES:
            atoms, graph, seconds, peak = alone(f"""
import statistics, time, run
from prism_plugin import PRISM, batch_graphs, build_graph
from prism_plugin.forces import energies_with_gradients
from prism_plugin.pretrained import COMMITTEE, load
from prism_plugin.tasks.potential import PotentialLoss
atoms = run.rocksalt({size})
torch.manual_seed(0)
model = {make}.eval()
started = time.perf_counter()
batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff)])
built = time.perf_counter() - started
times = []
with torch.no_grad():
    while len(times) < 2 or len(times) < 7 and sum(times) < 5:
        started = time.perf_counter()
        model(batch)
        times.append(time.perf_counter() - started)
        if times[0] > 60:
            break
print(len(atoms), built, statistics.median(times), run.peak() / 1e6)
""")
            rows.append((atoms, graph, seconds, peak))
            lines.append(f"| {name} | {atoms:,.0f} | {graph:.3f} | {seconds:.3f} | {peak:.2f} |")
            print(lines[-1], flush=True)
        table = np.array(rows).T
        large = table[0] >= 200
        slope = np.polyfit(np.log(table[0, large]), np.log(table[2, large]), 1)[0]
        lines.append(f"| {name} | slope from 200 atoms | | N^{slope:.2f} | |")
        times.loglog(table[0], table[2], "o-", label=f"{name}: $N^{{{slope:.2f}}}$")
        memory.loglog(table[0], table[3], "o-", label=name)
    times.set(xlabel="atoms in the cell", ylabel="inference, s", title=f"time, {torch.get_num_threads()} threads")
    times.legend(frameon=False)
    memory.axhline(24, color="0.6", linestyle=":")
    memory.set(xlabel="atoms in the cell", ylabel="peak memory of the process, GB", title="memory")
    for panel in (times, memory):
        panel.grid(alpha=0.3)
    figure.savefig(out / "cells.png", dpi=110)
    return "\n".join(lines)


def data_part(rounds: int) -> str:
    """Whether training waits for its data: graphs built anew in every epoch, or once and then only batched."""
    records = [Record(alloy(seed), 0.0, str(seed)) for seed in range(4 * CRYSTALS)]
    model = PRISM(dim=DIM, num_layers=LAYERS)
    dataset = GraphDataset(records, model.cutoff, model.cell_cutoff, progress=False)
    generator = torch.Generator().manual_seed(0)
    batch = next(iter(make_loader(dataset, CRYSTALS, shuffle_seed=0)))[0]

    def step() -> None:
        model.zero_grad()
        model(batch).abs().mean().backward()

    def build() -> None:
        for record in records:
            build_graph(record.atoms, model.cutoff, model.cell_cutoff)

    def read_and_turn() -> None:
        for crystals, _ in make_loader(dataset, CRYSTALS, shuffle_seed=0):
            rotate_batch(crystals, random_rotations(len(crystals), generator))

    jobs: dict[str, Callable[[], object]] = {
        "building the graphs": build,
        "batches of graphs in memory, each crystal turned": read_and_turn,
        f"the training step, dim {DIM}": lambda: [step() for _ in range(len(records) // CRYSTALS)],
    }
    lines = ["| per crystal and epoch | ms |", "|---|---|"]
    for what, (wall, _) in interleaved(jobs, rounds).items():
        lines.append(f"| {what} | {1000 * wall / len(records):.2f} |")
    return "\n".join(lines)


def optimizers_part(rounds: int) -> str:
    """What a step of each optimizer costs."""
    script = Path(__file__).with_name("optimizer_step.py")
    command = [sys.executable, str(script), "--rounds", str(5 * rounds), "--threads", str(torch.get_num_threads())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def shipped_part(rounds: int) -> str:
    """What the models that ship cost, beside a CartNet of their width; and training on forces."""
    crystals = [alloy(seed) for seed in range(CRYSTALS)]
    everybody = [ours(name, load(name)) for name in COMMITTEE[:2]]
    everybody += [one for one in contestants(128, 3)[0] if one.name == "CartNet twin"]
    forward: dict[str, Callable[[], object]] = {}
    step: dict[str, Callable[[], object]] = {}
    for one in everybody:
        batch = one.collate([one.build(atoms) for atoms in crystals])
        for name, autocast in ((one.name, False), (f"{one.name}, bfloat16", True)):
            forward[name], step[name] = forward_and_step(one, batch, autocast)
    forwards, steps = interleaved(forward, rounds), interleaved(step, rounds)
    lines = ["| model, 64 crystals | forward, s (CPU s) | step, s (CPU s) |", "|---|---|---|"]
    for name in forward:
        told = [f"{wall:.3f} ({cpu:.3f})" for wall, cpu in (forwards[name], steps[name])]
        lines.append(f"| {name} | {' | '.join(told)} |")

    model = load("prism-universal-pbe")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    batch = model.as_batch(
        batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff) for atoms in crystals[:16]])
    )
    found = energies_with_gradients(model, batch)
    labels = EnergyLabels(found.energy + 1, found.forces.double() + 0.1, found.virial.double() + 1)

    def learn() -> None:
        loss = PotentialLoss({"energy": 1.0, "forces": 1.0, "stress": 1.0}, mean_atoms=16)
        torch.autograd.grad(loss(model, batch, labels, training=True).mean(), weights, allow_unused=True)

    def learn_energies() -> None:
        model.zero_grad()
        model(batch).abs().mean().backward()

    jobs = {
        "energies, forces, stresses": lambda: energies_with_gradients(model, batch),
        "step on energies": learn_energies,
        "step on energies, forces, stresses": learn,
    }
    lines += ["", f"| universal potential, 16 crystals, {batch.edge_index.shape[1]:,} edges | s (CPU s) |", "|---|---|"]
    lines += [f"| {what} | {wall:.3f} ({cpu:.3f}) |" for what, (wall, cpu) in interleaved(jobs, 3 * rounds).items()]
    return "\n".join(lines)


def compile_part(rounds: int) -> str:
    """torch.compile of the plain computation against the tiles, on batches of several sizes."""
    batches = [
        batch_graphs([build_graph(alloy(seed)) for seed in range(number, number + size)])
        for number, size in enumerate((16, 15, 13, 11, 14, 12))
    ]
    torch.manual_seed(0)
    model = PRISM(dim=DIM, num_layers=LAYERS)
    started = time.perf_counter()
    compiled = torch.compile(model, dynamic=True)
    torch._dynamo.utils.counters.clear()

    def infer(one: torch.nn.Module) -> None:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                one(batch)

    def learn(one: torch.nn.Module) -> None:
        model.train()
        for batch in batches:
            model.zero_grad()
            one(batch).abs().mean().backward()

    infer(compiled)
    learn(compiled)
    graphs, took = torch._dynamo.utils.counters["stats"]["unique_graphs"], time.perf_counter() - started
    lines = [
        f"Compiling took {took:.0f} s: {graphs} graphs for {len(batches)} sizes of a batch, forward and step.",
        "",
        "| 81 crystals in six batches | s |",
        "|---|---|",
    ]
    jobs = {
        "forward": lambda: infer(model),
        "forward, compiled": lambda: infer(compiled),
        "step": lambda: learn(model),
        "step, compiled": lambda: learn(compiled),
    }
    lines += [f"| {what} | {wall:.2f} |" for what, (wall, _) in interleaved(jobs, rounds).items()]
    return "\n".join(lines)


def single_part(rounds: int) -> str:
    """One crystal of 8 atoms, structure to number; and how long imports take."""
    torch.manual_seed(0)
    lines = ["| one NaCl of 8 atoms | wall, ms | CPU, ms |", "|---|---|---|"]
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    counter = iter(range(10**9))

    def answer(what: str, calculator: PRISMCalculator) -> None:
        moved = atoms.copy()
        moved.positions[0, 0] += 1e-4 * next(counter)  # ASE would remember the last answer
        calculator.get_property("forces" if "forces" in what else "energy", moved)

    large = PRISM(dim=DIM, num_layers=LAYERS, target="formation_energy", unit="eV/atom")
    models = {"default model": load(), f"dim {DIM}, {LAYERS} layers": large}
    for name, model in models.items():
        calculators = {
            "energy": PRISMCalculator(model),
            "energy, forces, stress": PRISMCalculator(model, compute_forces=True),
        }
        jobs = {what: lambda what=what, one=one: answer(what, one) for what, one in calculators.items()}
        for what, (wall, cpu) in interleaved(jobs, 20 * rounds).items():
            lines.append(f"| {name}, {what} | {1000 * wall:.1f} | {1000 * cpu:.1f} |")
    code = "import subprocess, sys, time\nt = time.perf_counter()\nsubprocess.run([sys.executable, '-c', {!r}])\n"
    first_answer = (
        "from ase.build import bulk; from prism_plugin import PRISMCalculator; "
        "atoms = bulk('NaCl', 'rocksalt', a=5.64); atoms.calc = PRISMCalculator('prism-mp2018-eform'); "
        "atoms.get_potential_energy()"
    )
    whats = {what: what for what in ("import torch", "import torch, prism_plugin", "from prism_plugin import PRISM")}
    whats["PRISMCalculator('prism-mp2018-eform') and the energy of NaCl"] = first_answer
    imports = {
        name: median(alone(code.format(what) + "print(time.perf_counter() - t)")[0] for _ in range(rounds))
        for name, what in whats.items()
    }
    lines += ["", "| a new process | s |", "|---|---|"] + [f"| {what} | {took:.2f} |" for what, took in imports.items()]
    return "\n".join(lines)


_PARTS: dict[str, Callable[[int], str]] = {
    "graphs": graphs_part,
    "data": data_part,
    "memory": memory_part,
    "single": single_part,
    "optimizers": optimizers_part,
    "shipped": shipped_part,
    "compile": compile_part,
}


def bars(times: dict[str, tuple[float, float]], out: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    names = sorted(times, key=lambda name: times[name][0])
    for number, (panel, title) in enumerate(zip(panels, ("forward", "training step"), strict=True)):
        values = [times[name][number] for name in names]
        colors = ["tab:orange" if name.startswith("PRISM") and "naive" not in name else "0.7" for name in names]
        panel.barh(names, values, color=colors)
        for row, value in enumerate(values):
            panel.text(value, row, f" {value:.2f}", va="center", fontsize=8)
        panel.set(xlabel="s, 64 crystals of 16 atoms", title=title, xlim=(0, 1.12 * max(values)))
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "peers.png", dpi=110)


def machine() -> str:
    names = ("torch", "matgl", "dgl", "mace-torch", "chgnet", "alignn")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except ModuleNotFoundError:  # of the optional ones
            continue
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=["batch", "cells", *_PARTS], default=["batch", "cells", *_PARTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        if part == "batch":
            text, times = batch_part(arguments.rounds)
            bars(times, arguments.out)
        elif part == "cells":
            text = cells_part(arguments.out)
        else:
            text = _PARTS[part](arguments.rounds)
        (arguments.out / f"{part}.md").write_text(f"{machine()}\n\n{text}\n", encoding="utf-8")
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
