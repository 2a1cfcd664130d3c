"""Trainings that start from a model of the same property: never worse than it on the validation part."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from scipy.stats import wilcoxon

from prism_plugin import PRISM, cli, load
from prism_plugin.data import Record, read_records, split_records
from prism_plugin.data.emt_alloys import METALS, emt_alloys
from prism_plugin.domain import Domain
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.nn.norm import FeatureNorm
from prism_plugin.potential import element_corrections, element_shares
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import TrainingSettings, train
from prism_plugin.training.initial import consistency, midway, which_to_keep
from prism_plugin.training.job import Job

ALLOYS = emt_alloys(60)
SIZES = {"dim": 16, "num_layers": 1, "num_rbf": 8, "cutoff": 4.0, "cell_cutoff": 6.0, "experts": ("atomistic",)}
LATER = ("midway", "trained")
HOW = {"target": "e", "unit": "eV/atom", "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> PRISM:
    folder = tmp_path_factory.mktemp("initial")
    train(TrainingSettings(model=SIZES, epochs=4, **HOW), split_records(ALLOYS), folder / "run", progress=False)
    return load(folder / "run" / "model")


def shifted(shifts: np.ndarray) -> dict[str, list[Record]]:
    """The alloys with labels that differ by a number for each element."""
    changes = element_shares([one.atoms for one in ALLOYS], METALS) @ shifts
    return split_records(
        [replace(one, target=one.target + change) for one, change in zip(ALLOYS, changes, strict=True)]
    )


def predictions(model: PRISM) -> np.ndarray:
    return model.predict_structure([one.atoms for one in ALLOYS]).detach().double().numpy()


def test_a_training_that_makes_it_worse_is_not_kept(initial: PRISM, tmp_path: Path) -> None:
    before = predictions(initial)
    labels = [replace(one, target=float(value)) for one, value in zip(ALLOYS, before, strict=True)]  # nothing to learn
    summary = train(
        TrainingSettings(epochs=2, lr=0.1, **HOW), split_records(labels), tmp_path / "run", init=initial, progress=False
    )
    assert summary["kept"] in ("untouched", "corrected")
    assert summary["validation"]["trained"] > 1e-3
    assert summary["validation"]["untouched"] < 1e-6
    np.testing.assert_allclose(predictions(load(tmp_path / "run" / "model")), before, atol=1e-5)
    assert summary["scores"]["val"]["mae"] < 1e-5


def test_labels_of_another_functional_are_met_by_numbers_of_elements(initial: PRISM, tmp_path: Path) -> None:
    shifts = np.random.default_rng(0).normal(0, 0.5, len(METALS))
    parts = shifted(shifts)
    summary = train(TrainingSettings(epochs=3, lr=1e-4, **HOW), parts, tmp_path / "run", init=initial, progress=False)
    losses = summary["validation"]
    assert losses["corrected"] < 0.4 * losses["untouched"]
    assert summary["kept"] in ("corrected", *LATER)
    assert summary["scores"]["val"]["mae"] == pytest.approx(losses[summary["kept"]], abs=1e-6)
    kept = load(tmp_path / "run" / "model")
    assert kept.arguments["mean"] == initial.arguments["mean"]
    assert kept.arguments["std"] == initial.arguments["std"]


def test_consistency_is_wilcoxons_statistic() -> None:
    gains = np.random.default_rng(0).normal(0.2, 1, 40)
    statistic = wilcoxon(gains, correction=False, method="approx").statistic
    expected = 40 * 41 / 4
    assert abs(consistency(gains)) == pytest.approx((expected - statistic) / np.sqrt(40 * 41 * 81 / 24), rel=1e-12)
    assert consistency(-gains) == -consistency(gains)
    assert consistency(np.zeros(5)) == 0.0


def test_a_trained_model_is_kept_if_it_is_surely_better() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(1, 2, 30)
    noise = rng.normal(0, 0.3, 30)

    def chosen(corrected: np.ndarray, trained: np.ndarray, midway: np.ndarray = first + 1) -> str:
        return which_to_keep({"untouched": first, "corrected": corrected, "midway": midway, "trained": trained})

    def better(losses: np.ndarray, sureness: float) -> np.ndarray:
        """Losses that are lower by as much as makes the gain so sure."""
        gain = next(gain for gain in np.linspace(-0.5, 0.5, 20_001) if consistency(gain + noise) >= sureness)
        return losses - gain - noise

    for sureness, name in ((2.1, "trained"), (1.9, "untouched"), (-1.0, "untouched")):
        assert chosen(first, better(first, sureness)) == name
    for sureness, name in ((1.1, "midway"), (0.9, "untouched")):
        assert chosen(first, first + 1, better(first, sureness)) == name
    little = first - 0.001
    assert chosen(little, first + 1) == "corrected"  # a lower mean is enough
    half = better(first, 1.5)  # the trained one must be better than this by two more
    assert chosen(first + 1, better(half, 1.5), half) == "midway"
    assert chosen(first + 1, better(half, 2.5), half) == "trained"
    one = first.copy()
    one[0] -= 0.9
    assert chosen(first, one) == "untouched"  # for a single crystal's sake
    of_one = dict.fromkeys(("untouched", "corrected"), first[:1]) | dict.fromkeys(LATER, first[:1] - 1)
    assert which_to_keep(of_one) == "untouched"


def test_losses_of_very_different_sizes_do_not_hide_what_is_better_everywhere() -> None:
    # As on frames of copper, of which one had more than half of the loss: all are better by far.
    before = np.array([3.0, 2.0, 1.0, *[0.01] * 10])
    assert which_to_keep(
        {"untouched": before, "corrected": before, "midway": 0.4 * before, "trained": 0.1 * before}
    ) == ("trained")
    few = before.copy()
    few[0] = 0.0  # one frame is better, all others are worse: a lower mean all the same
    few[1:] *= 1.1
    assert few.mean() < before.mean()
    assert which_to_keep({"untouched": before, "corrected": before, "midway": few, "trained": few}) == "untouched"


def test_midway_has_the_means_of_the_weights(initial: PRISM) -> None:
    trained = copy.deepcopy(initial)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(torch.randn_like(weight))
    found, before, after = (one.state_dict() for one in (midway(initial, trained), initial, trained))
    for name, weight in found.items():
        torch.testing.assert_close(weight, (before[name] + after[name]) / 2 if weight.is_floating_point() else weight)
    assert any(not torch.equal(found[name], before[name]) for name in found)


def test_statistics_of_norms_stay(initial: PRISM, tmp_path: Path) -> None:
    summary = train(
        TrainingSettings(epochs=3, lr=1e-3, **HOW), shifted(np.ones(7)), tmp_path / "run", init=initial, progress=False
    )
    assert summary["validation"].keys() == {"untouched", "corrected", *LATER}
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    statistics = [name for name in initial.state_dict() if "running" in name]
    assert statistics
    for name in statistics:
        assert torch.equal(last[f"model.{name}"], initial.state_dict()[name])
    assert any(isinstance(layer, FeatureNorm) for layer in initial.modules())


def test_statistics_of_norms_are_taken_anew_where_it_is_said_from_how_many_batches(
    initial: PRISM, tmp_path: Path
) -> None:
    """A long training that goes on with the first one's recipe and rate, and not a little more of it."""
    settings = TrainingSettings(epochs=3, lr=1e-3, **HOW, batchnorm_batches=2)
    train(settings, shifted(np.ones(7)), tmp_path / "run", init=initial, progress=False)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in initial.state_dict().items():
        if "running" in name:
            assert not torch.equal(last[f"model.{name}"], value)


def test_a_kept_model_keeps_what_it_knew_of_few_crystals(initial: PRISM, tmp_path: Path) -> None:
    before = predictions(initial)
    features = np.random.default_rng(0).normal(size=(40, 8))
    domain = Domain.fit(weights_digest(initial.state_dict()), features, [("a", "Cu")] * 40, features, features[:, 0])
    labels = [replace(one, target=float(value)) for one, value in zip(ALLOYS, before, strict=True)]
    few = {name: records[: 19 if name == "val" else None] for name, records in split_records(labels).items()}
    init = copy.deepcopy(initial)
    init.domain = domain
    settings = TrainingSettings(epochs=1, lr=0.1, **HOW)
    assert train(settings, few, tmp_path / "run", init=init, progress=False)["kept"] == "untouched"
    kept = load(tmp_path / "run" / "model")
    assert kept.domain is not None
    np.testing.assert_array_equal(kept.domain.points, domain.points)
    told = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "* began as a model of e (a run of prism train names it in config.json)" in told
    assert "kept: untouched (validation losses: untouched " in told


@pytest.mark.filterwarnings("ignore:the model has seen few")
def test_an_untouched_model_is_calibrated_anew_on_enough_crystals(initial: PRISM, tmp_path: Path) -> None:
    before = predictions(initial)
    features = np.random.default_rng(0).normal(size=(40, 16))
    init = copy.deepcopy(initial)
    init.domain = Domain.fit(weights_digest(init.state_dict()), features, [("a", "Cu")] * 40, features, features[:, 0])
    init.rare_elements = {"Pt": 3}
    labels = [replace(one, target=float(value)) for one, value in zip(ALLOYS, before, strict=True)]
    parts = {"train": labels[:30], "val": labels[30:]}
    settings = TrainingSettings(epochs=1, lr=0.1, **HOW)
    assert train(settings, parts, tmp_path / "run", init=init, progress=False)["kept"] == "untouched"
    kept = load(tmp_path / "run" / "model")
    assert kept.domain is not None
    np.testing.assert_array_equal(kept.domain.points, init.domain.points)  # of the crystals that it has learned from
    assert kept.domain.crystals == 30
    assert kept.rare_elements == {"Pt": 3}


def test_a_file_may_call_the_target_otherwise(
    initial: PRISM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initial.save(tmp_path / "init")
    for one in ALLOYS:
        one.atoms.info["other"] = one.target
    write(tmp_path / "mine.extxyz", [one.atoms for one in ALLOYS])
    command = ["train", "--data", str(tmp_path / "mine.extxyz"), "--unit", "eV/atom", "--init", str(tmp_path / "init")]
    command += ["--epochs", "1", "--device", "cpu", "--out"]
    assert cli.main([*command, str(tmp_path / "one"), "--target", "e", "--target-key", "other"]) == 0
    told = capsys.readouterr().out
    assert "kept: " in told
    assert "taken for another property" not in told
    assert re.search(r"crystals: \d+ train, \d+ val, \d+ test; 7 elements; [\d,]+ weights", told)
    assert cli.main([*command, str(tmp_path / "two"), "--target", "other"]) == 0
    told = capsys.readouterr().out
    assert "If they are the same, say so (a file's: --target e --target-key other)" in told
    rows = []
    for number, one in enumerate(ALLOYS[:3]):
        write(tmp_path / f"{number}.cif", one.atoms)
        rows.append(f"{number}.cif,{one.target}")
    for name in ("some.csv", "id_prop.csv"):
        (tmp_path / name).write_text("\n".join(["file,other", *rows]))
    for data in (tmp_path / "some.csv", tmp_path):
        read = read_records(data, "e", keys={"e": "other"})
        assert [one.target for one in read] == [one.target for one in ALLOYS[:3]]
    command[command.index("eV/atom")] = "eV"
    assert cli.main([*command, str(tmp_path / "three"), "--target", "pes", "--target-key", "other"]) == 2
    assert "give energy_key" in capsys.readouterr().err


def test_another_target_begins_with_its_own_mean(initial: PRISM, tmp_path: Path) -> None:
    labels = [replace(one, target=10 + 100 * one.target) for one in ALLOYS]
    settings = TrainingSettings(**{**HOW, "target": "k", "unit": "GPa"}, epochs=1)
    summary = train(settings, split_records(labels), tmp_path / "run", init=initial, progress=False)
    assert "kept" not in summary
    assert load(tmp_path / "run" / "model").arguments["mean"] == pytest.approx(
        np.mean([one.target for one in split_records(labels)["train"]])
    )


def test_corrections_are_those_that_leave_least_when_left_out() -> None:
    crystals = [one.atoms for one in ALLOYS]
    shifts = np.random.default_rng(1).normal(0, 1, len(METALS))
    left = element_shares(crystals, METALS) @ shifts
    np.testing.assert_allclose(element_corrections(crystals, left, METALS), shifts, atol=0.1)
    noise = np.random.default_rng(2).choice([-1.0, 1.0], len(crystals))
    found = element_corrections(crystals, noise, METALS)
    assert np.abs(found).max() < 0.5


def test_the_command_takes_the_lower_rate_for_the_same_property(initial: PRISM, tmp_path: Path) -> None:
    initial.save(tmp_path / "model")
    given = {"data": "d.jsonl", "init": str(tmp_path / "model")}
    assert Job.make({**given, "target": "e"}).settings.lr == Regression.continuing["lr"]
    assert Job.make({**given, "target": "k"}).settings.lr == Regression.fine_tuning["lr"]
