"""A GPU beside the CPU: are the numbers the same, and how many structures a second?

    python benchmarks/gpu.py OUT --device cuda
    python benchmarks/gpu.py OUT --device cpu --tiny    # what CI runs, in seconds

Writes gpu.json and gpu.md. Crystals are random strained alloys of 16 atoms, as in benchmarks/run.py; times are medians.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from prism_plugin import PRISM, PRISMCalculator, PRISMPotential, load
from prism_plugin.config import INVARIANT
from prism_plugin.files import replaced, write_json
from prism_plugin.forces import energies_with_gradients
from prism_plugin.graph.store import GraphStore, graph_store
from prism_plugin.graph.structure import read_structure
from prism_plugin.nn import gated_conv
from prism_plugin.optim import OPTIMIZERS, make_optimizer
from prism_plugin.optim.rod_flow import RodFlow

# Products and bytes a second, of the data sheet.
PEAKS = {"H200": {"float32": 67e12, "bfloat16": 989e12, "bytes": 4.8e12}}
METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
SMALL_CELLS = {"num_rbf": 32, "cutoff": 4.0, "cell_cutoff": 1.0, **INVARIANT}


def alloys(count: int, seed: int = 0) -> list[Atoms]:
    """Strained and rattled fcc alloys of 16 atoms."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        atoms = bulk("Cu", "fcc", a=4.0, cubic=True) * (2, 2, 1)
        atoms.set_chemical_symbols(list(rng.choice(METALS, len(atoms))))
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        made.append(atoms)
    return made


def store_of(crystals: list[Atoms], model: PRISM) -> GraphStore:
    """Graphs of crystals for a model."""
    structures = [(str(number), read_structure(atoms)) for number, atoms in enumerate(crystals)]
    store = graph_store(structures, model.cutoff, model.cell_cutoff, progress=False)
    return store.with_waves() if model.has_waves else store


def median_time(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median time of a call, after two that do not count."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started < seconds and len(times) < 50):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest number."""
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300))


def trained(model: PRISM, name: str, store: GraphStore, device: torch.device, steps: int) -> list[torch.Tensor]:
    """Weights after a few steps of an optimizer on one batch."""
    model = copy.deepcopy(model).to(device).train()
    batch = store.batch(range(len(store))).to(device, model.dtype)
    target = torch.linspace(-1, 1, len(store), dtype=model.dtype, device=device)
    optimizer, schedule = make_optimizer(name, model.parameters(), 100)
    if hasattr(optimizer, "train"):
        optimizer.train()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(batch) - target).abs().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if schedule is not None:
            schedule.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    if isinstance(optimizer, RodFlow):
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    return [parameter.detach() for parameter in model.parameters()]


def correctness(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """Compare a device with the CPU."""
    rows = []
    crystals = alloys(8 if tiny else 64)
    torch.manual_seed(0)
    models = {
        "default model": load(),
        "all experts": PRISM(METALS, dim=64, num_layers=2, similarity_cutoff=2.0).eval(),
        "invariant": PRISM(METALS, dim=64, num_layers=2, **SMALL_CELLS).eval(),
    }
    for name, model in models.items():
        for dtype in (torch.float64, torch.float32):
            here = copy.deepcopy(model).to(dtype=dtype)
            there = copy.deepcopy(here).to(device)
            store = store_of(crystals, model)
            with torch.no_grad():
                ours, theirs = there.predict_graphs(store.to(device)), here.predict_graphs(store)
            rows.append(_row("prediction", name, dtype, difference(ours, theirs)))
    potential = PRISMPotential(METALS, dim=32).eval()
    for dtype in (torch.float64, torch.float32):
        here = copy.deepcopy(potential).to(dtype=dtype)
        there = copy.deepcopy(here).to(device)
        batch = store_of(crystals, potential).batch(range(len(crystals)))
        ours, theirs = energies_with_gradients(there, batch), energies_with_gradients(here, batch)
        for what in ("energy", "forces", "stress"):
            rows.append(_row(what, "potential", dtype, difference(getattr(ours, what), getattr(theirs, what))))
    small = PRISM(METALS, dim=16, num_layers=1, **SMALL_CELLS).double()
    store = store_of(crystals, small)
    for name in OPTIMIZERS:
        ours, theirs = (trained(small, name, store, place, steps=3) for place in (device, torch.device("cpu")))
        worst = max(difference(one, other) for one, other in zip(ours, theirs, strict=True))
        rows.append(_row("three steps", name, torch.float64, worst))
    little, gated_conv._LITTLE = gated_conv._LITTLE, 0
    try:
        batch = store.batch(range(len(store))).to(device, torch.float64)
        grads = []
        for plain in (False, True):
            model = copy.deepcopy(small).to(device).train()
            gated_conv._LITTLE = 2**62 if plain else 0
            model(batch).sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        rows.append(_row("fused against plain", "gradients", torch.float64, difference(*grads)))
    finally:
        gated_conv._LITTLE = little
    return rows


def _row(what: str, of: str, dtype: torch.dtype, worst: float) -> dict[str, Any]:
    row = {"what": what, "of": of, "dtype": str(dtype).removeprefix("torch."), "relative difference": worst}
    print(row, flush=True)
    return row


def speed(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """Structures a second, for prediction and for training."""
    rows = []
    sizes = (4,) if tiny else (64, 256, 1024)
    wide = {"dim": 8, "num_layers": 1} if tiny else {"dim": 256, "num_layers": 4}
    models: dict[str, PRISM] = {
        "default model": load(),
        "invariant, width 192": PRISM(
            METALS, **{"dim": 192, "num_layers": 3, **wide} if tiny else {"dim": 192, "num_layers": 3}, **SMALL_CELLS
        ),
        "paper's size": PRISM(METALS, **wide),
    }
    crystals = alloys(max(sizes))
    for name, model in models.items():
        model = model.to(device)
        store = store_of(crystals, model).to(device)
        for size in sizes:
            for precision in ("float32", "bfloat16"):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                row: dict[str, Any] = {"model": name, "batch": size, "precision": precision}
                works = _works(model, store, size, device, precision)
                for what, work in zip(("predicted a second", "trained a second"), works, strict=True):
                    seconds = median_time(work, device, 0.2 if tiny else 0.7)
                    row[what] = size / seconds
                    row[f"roofline, {what.split()[0]}"] = roofline_share(work, seconds, device, precision)
                if device.type == "cuda":
                    row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
                print(row, flush=True)
                rows.append(row)
    return rows


def _works(
    model: PRISM, store: GraphStore, size: int, device: torch.device, precision: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Make a batch and predict it; make a batch and do a training step."""
    optimizer, _ = make_optimizer("muon", model.parameters(), 1000)
    target = torch.linspace(-1, 1, size, device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def predict() -> None:
        with torch.no_grad(), half:
            model.eval()(store.batch(range(size)))

    def step() -> None:
        with half:
            loss = (model.train()(store.batch(range(size))) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return predict, step


class Traffic(TorchDispatchMode):
    """Count the bytes of all tensors that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [one for one in tree_flatten((args, kwargs, answer))[0] if isinstance(one, torch.Tensor)]
            self.bytes += sum(one.numel() * one.element_size() for one in tensors)
        return answer


def roofline_share(work: Callable[[], Any], seconds: float, device: torch.device, precision: str) -> float | str:
    """Share of the speed that the device's arithmetic and memory allow for a call's products and bytes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peaks = next((peaks for known, peaks in PEAKS.items() if known in name), None)
    if peaks is None and device.type == "cuda":
        return ""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        work()
    if peaks is None:  # of this CPU nobody knows; the counting was tried
        return f"{flops.get_total_flops():.3g} FLOP, {traffic.bytes:.3g} B"
    return max(flops.get_total_flops() / peaks[precision], traffic.bytes / peaks["bytes"]) / seconds


def potential(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """Energies with forces of many structures, graphs built ahead or not, and relaxations through torch-sim."""
    rows = []
    crystals = alloys(4 if tiny else 512)
    calculator = PRISMCalculator(device=str(device), batch_size=2 if tiny else 128)
    for ahead in (True, False):
        calculator._builds_ahead = ahead
        name = f"energies and forces, graphs {'ahead' if ahead else 'one after the other'}"
        seconds = median_time(partial(calculator.predict, crystals, progress=False), device, 0.2 if tiny else 5)
        rows.append({"what": name, "structures a second": len(crystals) / seconds})
    try:
        import torch_sim
    except ImportError:  # a machine without network may lack it
        return [*rows, {"what": "torch-sim is not installed", "structures a second": ""}]
    from relaxations import fire_on_cells

    from prism_plugin.calculators.torch_sim import TorchSimPRISM

    steps, some = (2, crystals[:2]) if tiny else (50, crystals[:200])
    energies = {}
    for search in ("cpu", "device"):
        try:
            model = TorchSimPRISM(device=str(device), neighbors=search)
        except ImportError:
            rows.append({"what": "nvalchemi-toolkit-ops is not installed", "structures a second": ""})
            continue
        state = torch_sim.initialize_state(some, device=device, dtype=torch.float32)
        energies[search] = model(state)["energy"]  # and whatever is compiled at the first call
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*reached max steps.*")  # which is meant
            torch_sim.optimize(state, model, **fire_on_cells(), max_steps=steps)
        _wait(device)
        rows.append(
            {
                "what": f"{steps} steps of cell and positions of {len(some)} structures, torch-sim, neighbors {search}",
                "structures a second": len(some) * steps / (time.perf_counter() - began),
            }
        )
    if len(energies) == 2:
        torch.testing.assert_close(energies["device"], energies["cpu"], rtol=1e-5, atol=1e-3)
    print(rows, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out in Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (
            f"{row.get(name, ''):.3g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few small crystals, for a test of this script")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found = {
        "device": where,
        "torch": torch.__version__,
        "correctness": correctness(device, arguments.tiny),
        "speed": speed(device, arguments.tiny),
        "potential": potential(device, arguments.tiny),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "gpu.json", found)
    tables = (table(found[name]) for name in ("correctness", "speed", "potential"))
    text = "\n\n".join((f"{where}, torch {torch.__version__}", *tables)) + "\n"
    with replaced(arguments.out / "gpu.md") as path:
        path.write_text(text)


if __name__ == "__main__":
    main()
