"""What a GPU would refuse, or be waited for: seen on a machine without one.

A GPU works on a queue of kernels; an operation whose result the host must know (a number, the length of an answer)
waits for all of it. Everything here is computed twice, on the CPU and on a device that is only pretended, whose numbers
are the same to the bit.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_sim as ts
from ase.build import bulk
from torch.testing._internal.distributed.fake_pg import FakeStore

from prism_plugin import PRISM, CrystalBatch, PRISMCalculator, PRISMPotential, load
from prism_plugin.calculators.torch_sim import TorchSimPRISM
from prism_plugin.config import EXPERTS, INVARIANT
from prism_plugin.data import make_datasets, split_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.forces import energies_with_gradients
from prism_plugin.graph.store import GraphStore, graph_store
from prism_plugin.graph.structure import read_structure
from prism_plugin.nn import gated_conv
from prism_plugin.nn.norm import FeatureNorm
from prism_plugin.optim import OPTIMIZERS, make_optimizer
from prism_plugin.tasks import TASKS
from prism_plugin.training.batchnorm import reestimate_batchnorm
from prism_plugin.training.report import measure_domain, measure_extent
from tests.conftest import crystal_zoo, small_model
from tests.pretended_device import ELSEWHERE, PretendedDevice, There, back, moved

ROOT = Path(__file__).parents[1]
ANGULAR = {**INVARIANT, "angular": 4, "readout": "attention"}
CRYSTALS = [bulk("NaCl", "rocksalt", a=5.6), bulk("Cu"), bulk("MgO", "rocksalt", a=4.2)]
STEPS = 3


def store_for(model: PRISM) -> GraphStore:
    known = {name: atoms for name, atoms in crystal_zoo().items() if "Ne" not in atoms.symbols}
    structures = [(name, read_structure(atoms)) for name, atoms in known.items()]
    store = graph_store(structures, model.cutoff, model.cell_cutoff, progress=False)
    return store.with_waves() if model.has_waves else store


MODELS: dict[str, Callable[[], PRISM]] = {
    "default": load,
    "paper without similarity": lambda: PRISM(dim=8, num_layers=2, experts=("atomistic", "cell", "multiscale")),
    "paper": lambda: PRISM(dim=8, num_layers=2, similarity_cutoff=2.0),
    "invariant": lambda: PRISM(dim=8, num_layers=2, num_rbf=8, cutoff=4.0, **ANGULAR),
    "ecomformer": lambda: PRISM(dim=8, num_layers=2, num_rbf=8, backbone="ecomformer", experts=EXPERTS[:3]),
}
# Similarity edges are as many as the features say, which the host must ask for, twice in each of the two layers; and
# there are small constants, which are copied.
WAITS_OF_A_PREDICTION = {"paper": 8}
# Of a step, which has one loss; ELRA and rod flow decide on the host, by the loss and by inner products.
WAITS_OF_THREE_STEPS = {"elra": 9, "rod-flow": 15}


def made(name: str) -> PRISM:
    torch.manual_seed(0)
    return MODELS[name]()


def on_both(work: Callable[[PRISM], Any], make: Callable[[], PRISM]) -> tuple[Any, Any, PretendedDevice]:
    """Do the same with a model here and elsewhere; nothing must be mixed there."""
    torch.manual_seed(0)
    here = work(make())
    torch.manual_seed(0)
    with PretendedDevice() as device:
        there = work(moved(make()))
    assert not device.mixed
    for name, place in list(device.waits):
        if name == "_to_copy" and place.startswith("prism_plugin/graph/store.py"):  # a data set, once
            assert device.waits.pop((name, place)) <= 3 * 11  # of three parts
    return here, there, device


def assert_same(there: list[torch.Tensor], here: list[torch.Tensor], atol: float = 0) -> None:
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(back(one), other, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.filterwarnings("ignore:the model has seen few")
@pytest.mark.parametrize("little", [0, 2**30], ids=["fused", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_predictions(name: str, little: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_conv, "_LITTLE", little)

    def work(model: PRISM) -> list[torch.Tensor]:
        with torch.no_grad():
            store = store_for(model.eval())
            found = [model(batch) for batch in store.to(model.device).split(4)]
            return [*found, model(store.batch([0, 3, 5]))]

    here, there, device = on_both(work, MODELS[name])
    assert all(isinstance(one, There) and one.device == ELSEWHERE for one in there)
    assert_same(there, here)
    assert device.waits.total() == WAITS_OF_A_PREDICTION.get(name, 0) * len(here)


@pytest.mark.parametrize("little", [0, 2**30], ids=["fused", "plain"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in WAITS_OF_A_PREDICTION])
def test_training_steps(name: str, little: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_conv, "_LITTLE", little)

    def work(model: PRISM) -> list[torch.Tensor]:
        batch = store_for(model.train()).batch([0, 3, 5])
        optimizer, _ = make_optimizer("sgd", model.parameters(), 10)
        model(batch).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return list(model.parameters())

    here, there, device = on_both(work, MODELS[name])
    assert not device.waits
    assert_same(there, here)


@pytest.mark.parametrize("little", [0, 2**30], ids=["fused", "plain"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in WAITS_OF_A_PREDICTION])
def test_a_training_step_in_half_precision(name: str, little: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_conv, "_LITTLE", little)

    def work(model: PRISM) -> list[torch.Tensor]:
        batch = store_for(model.train()).batch([0, 3, 5])
        with torch.autocast(model.device.type, torch.bfloat16):
            answer = model(batch)
        answer.sum().backward()
        assert all(one.grad is None or one.grad.dtype == torch.float32 for one in model.parameters())
        return [answer.detach(), *[one.grad for one in model.parameters() if one.grad is not None]]

    here, there, device = on_both(work, MODELS[name])
    assert not device.waits
    assert device.autocast.shortened > 10
    for one, other in zip(there, here, strict=True):  # both are rounded to 8 bits, not at the same places
        assert (back(one) - other).abs().max() <= 0.1 * other.abs().max() + 1e-3


@pytest.mark.parametrize("backbone", ["icomformer", "ecomformer"])
def test_backbones_wait_for_the_lattice_and_for_the_nearest_neighbors(backbone: str) -> None:
    def make() -> PRISM:
        arguments = {"experts": ("atomistic",), "backbone": backbone, "neighbors": 8}
        return PRISM(dim=8, num_layers=2, num_rbf=8, cutoff=5.0, **arguments)

    def work(model: PRISM) -> list[torch.Tensor]:
        structures = [(str(number), read_structure(atoms)) for number, atoms in enumerate(CRYSTALS)]
        batch = graph_store(structures, *model.cutoffs, progress=False).to(model.device).batch([0, 1, 2])
        model.train()(batch).sum().backward()
        return [one.grad for one in model.parameters() if one.grad is not None]

    here, there, device = on_both(work, make)
    assert_same(there, here)
    # Which edges stay, twice; of which crystals these are; whether all are periodic; lattices and their reductions.
    assert device.waits.total() == {"icomformer": 6, "ecomformer": 3}[backbone]


@pytest.fixture
def one_of_two() -> Iterator[None]:
    """A group of two processes of which only this one is there: sums are those of this one."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize("name", [name for name in MODELS if name not in WAITS_OF_A_PREDICTION])
def test_a_training_step_of_several_devices(name: str) -> None:
    def work(model: PRISM) -> list[torch.Tensor]:
        batch = store_for(model.train()).batch([0, 3, 5])
        model(batch).sum().backward()
        return [*model.parameters(), *[one.grad for one in model.parameters() if one.grad is not None]]

    here, there, device = on_both(work, MODELS[name])
    assert not device.waits  # each wait would be one for all
    assert_same(there, here)
    model = made(name)
    norms = sum(isinstance(module, FeatureNorm) for module in model.modules())
    assert norms * 2 < device.sums.total() <= norms * 4  # two forward, and as many backward


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_and_their_states(name: str) -> None:
    def work(model: PRISM) -> list[torch.Tensor]:
        batch = store_for(model.train()).batch([0, 3, 5]).to(model.device)
        target = torch.linspace(-1, 1, 3, device=model.device)
        kept = None
        for begin in (0, STEPS):  # the second time with the state of the first, as a resumed run has it
            optimizer, schedule = make_optimizer(name, model.parameters(), 100)
            if kept is not None:
                optimizer.load_state_dict(kept)
            if hasattr(optimizer, "train"):
                optimizer.train()

            def closure(optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = (model(batch) - target).abs().mean()
                loss.backward()
                return loss

            if begin:
                counts.clear()
            for _ in range(STEPS):
                optimizer.step(closure)
                if schedule is not None:
                    schedule.step()
            kept = on_the_host(optimizer.state_dict())
        return list(model.parameters())

    counts: dict[Any, int] = {}
    torch.manual_seed(0)
    here = work(made("invariant"))
    torch.manual_seed(0)
    with PretendedDevice() as device:
        counts = device.waits
        there = work(moved(made("invariant")))
        waits = {place: count for place, count in device.waits.items() if "prism_plugin/" in place[1]}
    assert not device.mixed
    assert_same(there, here, atol=1e-5 if name == "elra" else 0)  # on GPUs it works on all tensors together
    assert sum(waits.values()) == WAITS_OF_THREE_STEPS.get(name, 0), waits


def on_the_host(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    from torch.utils._pytree import tree_map_only

    file = io.BytesIO()
    torch.save(tree_map_only(There, lambda one: back(one).clone(), state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_forces() -> None:
    def work(model: PRISM) -> list[torch.Tensor]:
        found = energies_with_gradients(model, store_for(model).batch([0, 3, 5]))
        return [found.energy, found.forces, found.stress]

    here, there, device = on_both(work, lambda: PRISMPotential(dim=8, angular=4, repulsion="zbl").eval())
    assert not device.waits
    assert_same(there, here)


def test_losses_of_forces_are_differentiated() -> None:
    def work(model: PRISM) -> list[torch.Tensor]:
        found = energies_with_gradients(model, store_for(model).batch([0, 3, 5]), create_graph=True)
        (found.forces.square().sum() + found.virial.square().sum() + found.energy.sum()).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    here, there, device = on_both(work, lambda: PRISMPotential(dim=8, angular=4, repulsion="zbl"))
    assert not device.waits
    assert_same(there, here)


def test_statistics_of_norms() -> None:
    def work(model: PRISM) -> list[torch.Tensor]:
        batches: list[CrystalBatch] = list(store_for(model).to(model.device).split(4))
        reestimate_batchnorm(model, batches)
        return list(model.buffers())

    here, there, device = on_both(work, MODELS["invariant"])
    assert_same(there, here)
    assert not device.waits


@pytest.mark.parametrize("name", ["default", "potential"])
def test_what_a_run_measures_when_it_ends(name: str, tmp_path: Path) -> None:
    """The data set lies on the device by then, as a training on one GPU leaves it there."""
    forces = name == "potential"
    parts = {part: records[:24] for part, records in split_records(emt_alloys(300, forces=forces)).items()}

    def work(model: PRISM) -> list[Any]:
        model.eval()
        datasets = make_datasets(parts, *model.cutoffs, False, None, model.has_waves)
        there = {part: dataset.to(model.device) for part, dataset in datasets.items()}
        domain = measure_domain(model, there["train"], there["val"], progress=False)
        extent = measure_extent(model, there["train"], there["val"])
        scores = TASKS[model.task].report(model, there, tmp_path, 16, False)
        assert domain is not None
        assert extent is not None
        return [domain.knots, domain.points, extent.shortest, extent.volumes, scores["val"]]

    make = load if name == "default" else lambda: PRISMPotential(dim=8, repulsion="zbl")
    here, there, _ = on_both(work, make)
    for one, other in zip(there[:-1], here[:-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert there[-1] == pytest.approx(here[-1], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "waits"),
    [
        (lambda: PRISMPotential(dim=8, repulsion="zbl").eval(), 3),  # energies, forces, stresses of a batch
        (lambda: load("prism-universal-pbe"), 4),  # and features, for the distance from its training crystals
        (lambda: load("prism-mp2018-eform"), 2),
        (lambda: small_model(**INVARIANT).float(), 1),
        (lambda: load("prism-mp2018-gap"), 2),
    ],
)
def test_the_calculator(make: Callable[[], PRISM], waits: int) -> None:
    here, there, device = on_both(lambda model: PRISMCalculator(model).predict(CRYSTALS), make)
    for one, other in zip(there, here, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
    assert device.waits.total() == waits


def test_a_committee_and_torch_sim() -> None:
    def predict(model: PRISM) -> list[dict[str, Any]]:
        other = PRISMPotential(dim=4)
        return PRISMCalculator([model, moved(other) if isinstance(next(model.parameters()), There) else other]).predict(
            CRYSTALS
        )

    here, there, _ = on_both(predict, lambda: PRISMPotential(dim=8).eval())
    assert all(np.array_equal(one["forces_std"], other["forces_std"]) for one, other in zip(there, here, strict=True))
    state = ts.initialize_state(CRYSTALS, device=torch.device("cpu"), dtype=torch.float32)
    here, there, _ = on_both(lambda model: TorchSimPRISM(model)(state), lambda: PRISMPotential(dim=8).eval())
    for name, value in here.items():
        assert torch.equal(back(there[name]), value)


def test_what_a_device_refuses_and_what_waits_is_seen() -> None:
    """The negative controls."""
    with PretendedDevice() as device:
        there = torch.ones(3, device="cuda")
        assert there.device == ELSEWHERE
        there + torch.ones(1)
        there + torch.nn.Parameter(torch.ones(3))
    assert device.mixed.total() == 2
    assert not device.waits
    with PretendedDevice() as device:
        there = torch.arange(4, device="cuda")
        there + torch.tensor(1)  # a single number may come from the host
        for work in (
            lambda: there[there > 1],
            lambda: there.nonzero(),
            lambda: there.unique(),
            lambda: float(there.sum()),
            lambda: there.cpu(),
            lambda: there.tolist(),
            lambda: torch.repeat_interleave(there),
            lambda: bool(there.any()),
            lambda: torch.ones(3).to("cuda:0"),
            lambda: there.copy_(torch.ones(4)),
        ):
            before = device.waits.total()
            work()
            assert device.waits.total() > before
    assert not device.mixed
    model = moved_with_a_fault(PRISM(dim=8, num_layers=1, experts=("atomistic",)).eval())
    with PretendedDevice() as device, torch.no_grad():
        model(store_for(model).batch([0, 3]))
    assert any("nn/encoders.py" in place for _, place in device.mixed)


def moved_with_a_fault(model: PRISM) -> PRISM:
    """A model of which one buffer stayed where it was."""
    with PretendedDevice():
        moved(model)
    encoder = model.atomistic_encoder
    for module in encoder.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dim():
                module._buffers[name] = back(buffer)
    return model


def test_the_gpu_script_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as of a script
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr("sys.argv", ["gpu.py", str(tmp_path), "--device", "cpu", "--tiny"])
    gpu.main()
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("| three steps |") == 6
    assert "invariant, width 192" in text
    assert " FLOP, " in text
    assert "2 steps of cell and positions of 2 structures" in text
