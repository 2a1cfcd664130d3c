"""Two classes: log-odds and probabilities, cross-entropy, scores, and a training from end to end."""

from __future__ import annotations

import json
import math

import matgl
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from matgl.apps.pes import Potential
from matgl.ext.ase import PESCalculator
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from prism_plugin import PRISM, PRISMCalculator, build_graph, cli
from prism_plugin.data import Record, split_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.tasks import TASKS
from prism_plugin.tasks.classification import CrossEntropy
from prism_plugin.tasks.regression import L1Loss
from prism_plugin.tasks.scores import format_scores
from prism_plugin.training import TrainingSettings, evaluate, train
from prism_plugin.training.plots import read_log
from tests.conftest import small_model

SMALL = {"dim": 16, "num_layers": 1, "num_rbf": 8, "cutoff": 4.0, "cell_cutoff": 6.0}


def coppery(count: int) -> list[Record]:
    """Alloys with a class that their composition tells: whether there is copper."""
    return [Record(r.atoms, float("Cu" in r.atoms.symbols), r.name) for r in emt_alloys(count)]


def test_a_classification_answers_the_sigmoid_of_its_log_odds() -> None:
    model = small_model(task_type="classification", target="is_metal")
    same = small_model()  # the same weights: what it predicts is read out here
    graphs = [build_graph(record.atoms, 3.2, 6.0) for record in emt_alloys(6)]
    for graph in graphs:
        log_odds = model.read_out(graph)
        assert torch.equal(log_odds, same(graph))
        probability = model(graph)
        assert torch.allclose(probability, 1 / (1 + torch.exp(-log_odds)), rtol=1e-12, atol=0)
        assert torch.equal(model.feature_dict["final"], probability.detach())
        (slope,) = torch.autograd.grad(probability.sum(), model.head[-1].bias)
        expected = (probability * (1 - probability) * model.std).detach()
        assert torch.allclose(slope, expected, rtol=1e-10)


def test_a_classification_is_saved_and_loaded_by_matgl(tmp_path) -> None:
    model = PRISM(**SMALL, task_type="classification", target="is_metal").eval()
    model.save(tmp_path)
    loaded = matgl.load_model(tmp_path)
    assert loaded.task_type == "classification"
    assert torch.equal(loaded.predict_structure(bulk("Cu")), model.predict_structure(bulk("Cu")))
    atoms = bulk("Cu")
    atoms.calc = PRISMCalculator(loaded)
    assert 0 < atoms.calc.get_property("is_metal", atoms) < 1
    in_volts = PRISMCalculator(PRISM(**SMALL, task_type="classification", target="is_metal", unit="eV/atom"))
    with pytest.raises(PropertyNotImplementedError, match="not energy; ask for: is_metal"):
        in_volts.get_property("energy", atoms)
    calculator = PESCalculator(Potential(loaded, calc_forces=False, calc_stresses=False))
    with pytest.raises(ValueError, match="the probability of is_metal is no energy"):
        calculator.calculate(bulk("Cu"))


def test_a_classification_is_no_sum() -> None:
    with pytest.raises(ValueError, match="readout 'sum' is for extensive targets; a classification needs 'mean'"):
        PRISM(task_type="classification", readout="sum")
    with pytest.raises(ValueError, match="unknown task_type 'classes'; choose one of: 'regression', 'classification'"):
        PRISM(task_type="classes")


def test_the_loss_of_classes_is_the_cross_entropy() -> None:
    cross_entropy = CrossEntropy().of_outputs
    output = torch.linspace(-9, 9, 37, dtype=torch.float64)
    for target in (0.0, 1.0):
        probability = 1 / (1 + torch.exp(-output))
        slow = -(target * torch.log(probability) + (1 - target) * torch.log(1 - probability))
        assert torch.allclose(cross_entropy(output, torch.full_like(output, target)), slow, rtol=1e-9)
    certain = torch.tensor([200.0], requires_grad=True)  # its probability is 1 in float32, and yet it can learn
    value = cross_entropy(certain, torch.zeros(1)).sum()
    value.backward()
    assert (float(value.detach()), float(certain.grad)) == (200.0, 1.0)
    one, three = torch.tensor([1.0]), torch.tensor([3.0])
    assert torch.equal(L1Loss().of_outputs(one, three), torch.tensor([2.0]))


def test_scores_of_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    target = (rng.random(300) < 0.3).astype(float)
    prediction = np.clip(0.5 * target + 0.6 * rng.random(300) - 0.05, 0.01, 0.99).round(2)  # with ties
    found = TASKS["classification"].score(target, prediction, 0.25)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(target, prediction), rel=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, prediction > 0.5))
    assert found["cross_entropy"] == pytest.approx(log_loss(target, prediction))
    assert found["mean_predictor_cross_entropy"] == pytest.approx(log_loss(target, np.full(300, 0.25)))
    assert found["accuracy"] == pytest.approx(((prediction > 0.5) == target).mean())
    assert found["crystals"] == 300
    one_class = TASKS["classification"].score(np.ones(5), np.full(5, 0.75), 0.5)
    assert one_class["roc_auc"] is None
    assert one_class["balanced_accuracy"] is None
    assert "      -" in format_scores({"val": one_class}, "is_metal", "")
    assert json.dumps(
        TASKS["classification"].score(np.ones(2), np.array([1.0, 0.0]), 0.0)
    )  # certain and wrong: no infinity


@pytest.mark.usefixtures("pictures")
def test_a_training_learns_classes_and_reports_on_them(tmp_path) -> None:
    parts = split_records(coppery(160), seed=0)
    settings = TrainingSettings("coppery", model={**SMALL, "task_type": "classification"}, lr=1e-2, epochs=10)
    summary = train(settings, parts, tmp_path / "run", progress=False)
    for part in ("train", "test"):
        assert summary["scores"][part]["roc_auc"] > 0.9
        assert summary["scores"][part]["cross_entropy"] < summary["scores"][part]["mean_predictor_cross_entropy"]
    for name in ("classes.png", "elements.png", "learning_curve.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert not (tmp_path / "run" / "parity.png").exists()
    log = read_log(tmp_path / "run" / "log", "cross_entropy")
    assert log["val_cross_entropy"][summary["best_epoch"]] == np.nanmin(log["val_cross_entropy"])
    assert summary["scores"]["val"]["cross_entropy"] == pytest.approx(np.nanmin(log["val_cross_entropy"]), rel=1e-4)
    model = matgl.load_model(tmp_path / "run" / "model")
    share = np.mean([record.target for record in parts["train"]])
    assert (model.mean, model.std) == (pytest.approx(math.log(share / (1 - share))), 1.0)


def test_the_commands_know_classes(tmp_path, capsys) -> None:
    rows = [
        {
            "lattice": record.atoms.cell.array.tolist(),
            "species": list(record.atoms.symbols),
            "frac_coords": record.atoms.get_scaled_positions().tolist(),
            "coppery": bool(record.target),
        }
        for record in coppery(40)
    ]
    data = tmp_path / "alloys.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    common = ["train", "--data", str(data), "--target", "coppery", "--epochs", "1"]
    sizes = [text for name, value in SMALL.items() for text in ("--set", f"{name}={value}")]
    run = tmp_path / "run"
    assert cli.main([*common, "--out", str(run), *sizes, "--set", "task_type=classification"]) == 0
    assert "balanced accuracy" in capsys.readouterr().out
    model = ["--model", str(run / "model")]
    assert cli.main(["evaluate", "--data", str(data), *model, "--out", str(tmp_path / "report")]) == 0
    assert "ROC AUC" in capsys.readouterr().out
    assert (tmp_path / "report" / "classes.png").exists()
    assert cli.main(["predict", str(data), *model, "--out", str(tmp_path / "table.csv")]) == 0
    values = [float(line.split(",")[3]) for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
    assert len(values) == 40
    assert all(0 < value < 1 for value in values)
    capsys.readouterr()
    assert cli.main(["info", model[1]]) == 0
    out = capsys.readouterr().out
    assert "coppery (probability)" in out
    assert "test        cross-entropy" in out


def test_bad_classes_are_named(tmp_path) -> None:
    records = coppery(40)
    settings = TrainingSettings("coppery", model={**SMALL, "task_type": "classification"}, epochs=1)
    parts = split_records(records, seed=0)
    parts["val"][0] = Record(parts["val"][0].atoms, 2.0, "odd")
    with pytest.raises(ValueError, match="crystal 'odd' of the val part has the target 2: a classification"):
        train(settings, parts, tmp_path / "run", progress=False)
    parts = split_records([Record(record.atoms, 1.0, record.name) for record in records], seed=0)
    with pytest.raises(ValueError, match="all training crystals are of one class"):
        train(settings, parts, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    model = PRISM(**SMALL, task_type="classification").eval()
    half = Record(records[0].atoms, 0.5, "half")
    with pytest.raises(ValueError, match=r"crystal 'half' of the all part has the target 0\.5"):
        evaluate(model, {"all": [*records, half]}, tmp_path / "report", progress=False)


@pytest.mark.parametrize("task_type", ["regression", "classification"])
def test_a_prediction_that_is_not_finite_is_named(task_type, tmp_path, monkeypatch) -> None:
    real = PRISM.predict_graphs

    def broken(*arguments: object, **named: object) -> torch.Tensor:
        answers = real(*arguments, **named)
        answers[3] = float("nan")
        return answers

    monkeypatch.setattr(PRISM, "predict_graphs", broken)
    records = coppery(12)
    with pytest.raises(ValueError, match=f"of 1 of 12 crystals of the all part are not finite, .*{records[3].name}"):
        evaluate(PRISM(**SMALL, task_type=task_type).eval(), {"all": records}, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
