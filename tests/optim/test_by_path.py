"""Optimizers by the path of their class: docs/optimizers.md says which train PRISM and which are refused."""

from __future__ import annotations

import copy
import io
import re
import warnings
from pathlib import Path

import pytest
import torch

from prism_plugin import PRISM, batch_graphs, build_graph
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.errors import PrismError
from prism_plugin.optim import make_optimizer
from prism_plugin.training import TrainingSettings
from prism_plugin.training.fit import check_runnable

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
ROWS = re.findall(r"^\| `([\w.]+)` \| .* \| (\S+) \| (trains|refused) \|$", PAGE.read_text(), re.MULTILINE)
TRAINS = {path: float(rate) for path, rate, what in ROWS if what == "trains"}
REFUSED = {path: float(rate) for path, rate, what in ROWS if what == "refused"}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


@pytest.fixture(scope="module")
def alloys() -> tuple[PRISM, object, torch.Tensor]:
    """A small model, a batch of alloys, and their targets."""
    records = emt_alloys(32)
    torch.manual_seed(0)
    model = PRISM(dim=16, num_layers=2, num_rbf=8, cutoff=4.0, experts=("atomistic",)).train()
    batch = batch_graphs([build_graph(record.atoms, *model.cutoffs) for record in records])
    targets = torch.tensor([record.target for record in records])
    return model, batch, (targets - targets.mean()) / targets.std()


def test_the_page_has_rows_of_both_kinds() -> None:
    assert len(TRAINS) >= 15
    assert len(REFUSED) >= 8


@pytest.mark.parametrize("path", TRAINS)
def test_a_class_trains_prism_and_goes_on_from_its_state(path: str, alloys: tuple) -> None:
    start, batch, targets = alloys
    model = copy.deepcopy(start)

    def make() -> tuple[torch.optim.Optimizer, object]:
        return make_optimizer(path, model.parameters(), 40, {"lr": TRAINS[path]}, schedule="onecycle")

    def step() -> float:
        optimizer.zero_grad()
        loss = (model(batch) - targets).abs().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    optimizer, schedule = make()
    losses = [step() for _ in range(30)]
    assert losses[-1] < 0.95 * losses[0]
    kept = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), schedule.state_dict()), kept)
    torch.manual_seed(1)  # some draw numbers
    expected = [step() for _ in range(3)]
    optimizer, schedule = make()
    kept.seek(0)
    for part, state in zip((model, optimizer, schedule), torch.load(kept, weights_only=True), strict=True):
        part.load_state_dict(state)
    torch.manual_seed(1)
    assert [step() for _ in range(3)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("path", REFUSED)
def test_a_class_that_cannot_is_refused_before_a_run(path: str) -> None:
    with pytest.raises(PrismError, match=re.escape(path)):
        check_runnable(TrainingSettings(target="e", optimizer=path, lr=REFUSED[path]))


def test_matrices_are_a_group_of_their_own(alloys: tuple) -> None:
    optimizer, _ = make_optimizer("torch.optim.RAdam", alloys[0].parameters())
    matrices, rest = optimizer.param_groups
    assert matrices["use_muon"]
    assert not rest["use_muon"]
    assert {one.ndim for one in matrices["params"]} == {2}
    assert 2 not in {one.ndim for one in rest["params"]}


def test_a_schedule_moves_each_group_at_its_own_rate() -> None:
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,))]
    rates = {"lr": 3e-3, "adamw_lr": 1e-4}
    optimizer, schedule = make_optimizer("pytorch_optimizer.Muon", weights, 100, rates, "onecycle")
    assert [group["max_lr"] for group in optimizer.param_groups] == [3e-3, 1e-4]
    assert schedule is not None
    with pytest.raises(PrismError, match="no rate that a schedule could move"):
        make_optimizer("pytorch_optimizer.AliG", weights, 100, {}, "onecycle")


@pytest.mark.parametrize("path", [".foo.Bar", "torch.optim.Nothing", "nowhere.SGD", "torch.nn.Linear"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(PrismError, match=re.escape(path)):
        make_optimizer(path, [torch.nn.Parameter(torch.ones(2, 2))])


def test_a_schedule_is_for_classes() -> None:
    with pytest.raises(PrismError, match="schedule is for an optimizer given by its class; 'muon'"):
        TrainingSettings(target="e", optimizer="muon", schedule="onecycle")
    with pytest.raises(PrismError, match="schedule is for an optimizer given by its class; 'muon'"):
        make_optimizer("muon", [torch.nn.Parameter(torch.ones(2, 2))], schedule="onecycle")
    settings = TrainingSettings(target="e", optimizer="torch.optim.RAdam", schedule="onecycle")
    assert settings.has_schedule
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, schedule = make_optimizer(
            "torch.optim.RAdam", [torch.nn.Parameter(torch.ones(2, 2))], 100, {"lr": 0.5}, "onecycle"
        )
    assert max(schedule.base_lrs) < 0.5
