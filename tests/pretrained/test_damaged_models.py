"""Models whose files are damaged, mixed up or not ours do not answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prism_plugin import PRISM, PRISMCalculator, load
from prism_plugin.pretrained import COMMITTEE, model_folder
from tests.conftest import small_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small_model(norm="batch").save(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = torch.load(folder / "state.pt", weights_only=True)
    change(weights)
    torch.save(weights, folder / "state.pt")


def without_digest(folder: Path) -> None:
    """As a model was saved before there was one."""
    kept = json.loads((folder / "model.json").read_text())
    del kept["metadata"]["sha256_of_weights"]
    (folder / "model.json").write_text(json.dumps(kept))


def test_what_was_saved_is_loaded(saved: Path) -> None:
    load(saved)
    without_digest(saved)
    load(saved)


@pytest.mark.parametrize(
    "name", [*COMMITTEE, "prism-mp2018-gap", "prism-mp2018-metal", "prism-mp-log10-k", "prism-mp-log10-g"]
)
def test_the_models_that_ship_are_whole(name: str) -> None:
    load(name)


@pytest.mark.parametrize("bit", range(0, 32, 5))
def test_a_flipped_bit_is_found(saved: Path, bit: int) -> None:
    def flip(weights: dict[str, torch.Tensor]) -> None:
        value = weights["head.0.weight"] if "head.0.weight" in weights else next(iter(weights.values()))
        value.view(-1)[:1].view(torch.int32)[0] ^= 1 << min(bit, 30)

    change_weights(saved, flip)
    with pytest.raises(ValueError, match=r"SHA-256 differs|not finite"):
        load(saved)


def test_the_weights_of_another_model_are_found(saved: Path, tmp_path: Path) -> None:
    other = small_model(norm="batch")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "state.pt", saved / "state.pt")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        load(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    without_digest(saved)
    change_weights(saved, lambda weights: weights[next(iter(weights))].view(-1)[:1].fill_(value))
    with pytest.raises(ValueError, match="1 weights are not finite"):
        PRISMCalculator(saved)


def test_missing_buffers_and_surplus_weights_are_refused(saved: Path) -> None:
    without_digest(saved)
    name = next(name for name in load(saved).state_dict() if name.endswith("running_var"))
    change_weights(saved, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"1 weights are missing or too many, for example {name}"):
        load(saved)
    small_model(norm="batch").save(saved)
    without_digest(saved)
    change_weights(saved, lambda weights: weights.update(more=torch.zeros(1)))
    with pytest.raises(ValueError, match="for example more"):
        load(saved)


def test_nothing_of_the_working_directory_is_imported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper.py").write_text("open('ran', 'w').close()\nclass PRISM: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    described = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**described, "@module": "helper"}))
    with pytest.raises(ValueError, match=r"holds a helper\.PRISM, not a PRISM"):
        load(saved)
    (saved / "model.json").write_text(json.dumps(described))
    arguments = torch.load(saved / "model.pt", weights_only=False)
    arguments["unit"] = {"@module": "helper", "@class": "PRISM", "init_args": {}}
    torch.save(arguments, saved / "model.pt")
    with pytest.raises(ValueError, match="names a class to be imported"):
        load(saved)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("dim", 20_000), ("cutoff", 200.0), ("num_layers", 10_000), ("num_rbf", 1 << 20)]
)
def test_sizes_are_bounded_before_memory_is_taken(saved: Path, name: str, value: float) -> None:
    arguments = torch.load(saved / "model.pt", weights_only=False)
    arguments[name] = value
    torch.save(arguments, saved / "model.pt")
    with pytest.raises(ValueError, match=f"{name} must be .* at most"):
        load(saved)
    with pytest.raises(ValueError, match=f"{name} must be .* at most"):
        PRISM(**{name: value})


def test_a_shipped_model_with_the_weights_of_another(tmp_path: Path) -> None:
    """Those have no digest: their keys tell, or their sizes."""
    shutil.copytree(model_folder(COMMITTEE[0]), tmp_path / "mixed")
    shutil.copy(model_folder("prism-mp2018-gap") / "state.pt", tmp_path / "mixed" / "state.pt")
    try:
        load(tmp_path / "mixed")
    except ValueError as error:
        assert "damaged" in str(error)  # noqa: PT017
    else:
        pytest.fail("the gap model's weights answered as energies")
