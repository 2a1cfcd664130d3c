"""What a prediction or a training step asks of its device: nothing but the answer.

A GPU works on a queue of kernels; an operation whose result the host must know (a number, the length of an answer)
waits for all of it. Such operations are counted here on the CPU, by the name under which torch dispatches them.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prism_plugin import PRISM, PRISMPotential, load
from prism_plugin.forces import energies_with_gradients
from prism_plugin.graph.store import GraphStore, graph_store
from prism_plugin.graph.structure import read_structure
from prism_plugin.nn import gated_conv
from prism_plugin.optim import make_optimizer
from tests.conftest import INVARIANT, crystal_zoo

ROOT = Path(__file__).parents[1]
WAITS = ("_local_scalar_dense", "nonzero", "_unique", "unique_", "bincount", "masked_select", "is_nonzero", "equal")
ANGULAR = {**INVARIANT, "angular": 4, "readout": "attention"}


class Waits(TorchDispatchMode):
    """Count operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).split(".")[1]
        if name.startswith(WAITS):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def store_for(model: PRISM) -> GraphStore:
    known = {name: atoms for name, atoms in crystal_zoo().items() if "Ne" not in atoms.symbols}
    structures = [(name, read_structure(atoms)) for name, atoms in known.items()]
    store = graph_store(structures, model.cutoff, model.cell_cutoff, progress=False)
    return store.with_waves() if model.has_waves else store


MODELS = {
    "default": load,
    "paper without similarity": lambda: PRISM(dim=8, num_layers=2, experts=("atomistic", "cell", "multiscale")),
    "invariant": lambda: PRISM(dim=8, num_layers=2, num_rbf=8, cutoff=4.0, **ANGULAR),
}


@pytest.mark.filterwarnings("ignore:the model has seen few")
@pytest.mark.parametrize("little", [0, 2**30], ids=["fused", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_predictions_and_steps_wait_for_nothing(name: str, little: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_conv, "_LITTLE", little)
    model = MODELS[name]()
    store = store_for(model)
    model.eval()
    with Waits() as waits, torch.no_grad():
        for batch in store.split(4):
            model(batch)
    assert not waits.counts
    model.train()
    optimizer, _ = make_optimizer("sgd", model.parameters(), 10)
    with Waits() as waits:
        model(store.batch([0, 3, 5])).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert not waits.counts


def test_forces_wait_for_nothing() -> None:
    model = PRISMPotential(dim=8, angular=4).eval()
    batch = store_for(model).batch([0, 3, 5])
    with Waits() as waits:
        found = energies_with_gradients(model, batch)
        answers = found.energy, found.stress
    assert not waits.counts
    assert [answer.shape for answer in answers] == [(3,), (3, 3, 3)]


def test_what_waits_is_seen() -> None:
    """The negative control: similarity edges are as many as the features say, which the host must ask for."""
    model = PRISM(dim=8, num_layers=2, similarity_cutoff=2.0).eval()
    with Waits() as waits, torch.no_grad():
        model(store_for(model).batch([0, 3]))
    assert waits.counts["nonzero"] >= 2


def test_the_gpu_script_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specification = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    gpu = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(gpu)
    monkeypatch.setattr("sys.argv", ["gpu.py", str(tmp_path), "--device", "cpu", "--tiny"])
    gpu.main()
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("| three steps |") == 6
    assert "invariant, width 192" in text
