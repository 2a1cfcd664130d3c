"""Training: the ScheduleFree traps, BatchNorm, rotation, run folder, resume, bad data."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import lzma
from dataclasses import replace

import lightning as L
import matgl
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write
from lightning.pytorch.callbacks import Callback

from prism_plugin import PRISM, batch_graphs, build_graph
from prism_plugin.data import GraphDataset, Record, make_loader, read_records, rotate_batch, split_records
from prism_plugin.data.augmentation import random_rotations
from prism_plugin.data.emt_alloys import METALS, emt_alloys
from prism_plugin.nn import gated_conv
from prism_plugin.nn.encoders import EdgeEncoder
from prism_plugin.optim import OPTIMIZERS, make_optimizer
from prism_plugin.tasks.classification import Classification
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import PropertyTraining, TrainingSettings, reestimate_batchnorm, stopping, train
from prism_plugin.training import module as module_of_training
from prism_plugin.training.checkpoints import is_within_epoch, read_checkpoint
from prism_plugin.training.plots import read_log
from tests.conftest import crystal_zoo, drawing, small_model

MODEL = {"dim": 12, "num_layers": 1, "num_rbf": 8, "cutoff": 3.5, "cell_cutoff": 6.0}
SETTINGS = TrainingSettings(target="e", unit="eV/atom", model=MODEL, epochs=2, batch_size=8, lr=5e-3)


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Record]]:
    return split_records(emt_alloys(60), seed=1)


def with_settings(**changes: object) -> TrainingSettings:
    return TrainingSettings(**{**vars(SETTINGS), **changes})


# --- ScheduleFree and BatchNorm -------------------------------------------------------------------------------------


class Watch(Callback):
    """Write down in which mode the optimizer is, and what the weights are, at every event."""

    def __init__(self) -> None:
        self.modes: dict[str, set[bool]] = {}
        self.scored: list[dict[str, torch.Tensor]] = []

    def note(self, trainer: L.Trainer, event: str) -> None:
        self.modes.setdefault(event, set()).add(bool(trainer.optimizers[0].param_groups[0]["train_mode"]))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.note(trainer, "update")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.note(trainer, "validation")
        if batch_idx == 0:
            self.scored.append(copy.deepcopy(module.model.state_dict()))

    def on_train_end(self, trainer, module) -> None:
        self.note(trainer, "end")


def fit(parts, tmp_path, epochs=2):
    torch.manual_seed(0)
    model = PRISM(element_types=METALS, **MODEL)
    data = {name: GraphDataset(records, 3.5, 6.0, progress=False) for name, records in parts.items()}
    module = PropertyTraining(
        model, options={"lr": 5e-3}, batchnorm_loader=make_loader(data["train"], 8, shuffle_seed=1)
    )
    watch = Watch()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, make_loader(data["train"], 8, shuffle_seed=0), make_loader(data["val"], 8))
    return trainer, module, watch, data


def test_the_summary_has_the_epochs_that_were_done(parts, tmp_path) -> None:
    class Enough(Callback):
        def on_train_epoch_end(self, trainer, module) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    settings = with_settings(epochs=4)
    assert train(settings, parts, tmp_path / "run", progress=False, callbacks=[Enough()])["epochs"] == 2
    assert train(settings, parts, tmp_path / "run", progress=False, resume=True)["epochs"] == 4
    assert train(settings, parts, tmp_path / "run", progress=False, resume=True)["epochs"] == 4


def test_schedulefree_is_in_the_right_mode_at_every_event(parts, tmp_path) -> None:
    _, _, watch, _ = fit(parts, tmp_path)
    assert watch.modes["update"] == {True}
    assert watch.modes["validation"] == {False}


def test_the_averaged_weights_are_scored_kept_and_saved(parts, tmp_path) -> None:
    trainer, module, watch, _ = fit(parts, tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    for name, value in watch.scored[-1].items():
        assert torch.equal(value, module.model.state_dict()[name]), name
        assert torch.equal(value, saved["state_dict"]["model." + name]), name
    # x differs from y: in train mode the same weights are others
    trainer.optimizers[0].train()
    assert not torch.equal(module.model.head[0].weight, watch.scored[-1]["head.0.weight"])


def fit_without_validation(module, parts, tmp_path, *callbacks):
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, make_loader(GraphDataset(parts["train"], 3.5, 6.0, progress=False), 8, shuffle_seed=0))
    return trainer, module


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_checkpoint_inside_an_epoch_holds_the_averaged_weights(parts, tmp_path) -> None:
    class SaveInside(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            if trainer.global_step == 4:
                before = copy.deepcopy(module.model.state_dict())
                trainer.save_checkpoint(tmp_path / "inside.ckpt")
                for name, value in module.model.state_dict().items():  # training goes on at y, up to rounding
                    torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)
                assert trainer.optimizers[0].param_groups[0]["train_mode"]
                trainer.optimizers[0].eval()
                self.averaged = copy.deepcopy(module.model.state_dict())
                trainer.optimizers[0].train()

    inside = SaveInside()
    module = PropertyTraining(PRISM(element_types=METALS, **MODEL), options={"lr": 5e-3})
    fit_without_validation(module, parts, tmp_path, inside)
    saved = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    assert not saved["optimizer_states"][0]["param_groups"][0]["train_mode"]
    for name, value in inside.averaged.items():
        torch.testing.assert_close(saved["state_dict"]["model." + name], value, rtol=1e-5, atol=1e-6)


def test_batchnorm_statistics_are_plain_averages_at_the_scored_weights() -> None:
    model = small_model()
    batches = [
        batch_graphs([build_graph(crystal_zoo()[name], 3.2, 6.0) for name in names])
        for names in (("skewed", "rocksalt"), ("slab", "low symmetry"), ("wire", "one atom"))
    ]
    norm = model.layers[0].experts["atomistic"].norm
    inputs: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    reestimate_batchnorm(model, batches)
    handle.remove()
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in inputs]).mean(0))
    assert norm.momentum == 0.1
    assert not model.training


def test_batchnorm_is_estimated_anew_before_validation(parts, tmp_path) -> None:
    _, module, _, data = fit(parts, tmp_path, epochs=1)
    expected = copy.deepcopy(module.model)
    reestimate_batchnorm(expected, module._batchnorm_batches())
    for name, value in expected.named_buffers():
        if "running" in name:
            torch.testing.assert_close(module.model.get_buffer(name), value, rtol=1e-4, atol=1e-5)
    assert len(data["train"]) == 48


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_adam_onecycle_steps_its_schedule_per_update(parts, tmp_path) -> None:
    trainer, _ = fit_without_validation(
        PropertyTraining(PRISM(element_types=METALS, **MODEL), "adam-onecycle"), parts, tmp_path
    )
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == trainer.global_step == 6


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer, scheduler = make_optimizer(name, [weight], 100, {"lr": 0.1})
    if hasattr(optimizer, "train"):
        optimizer.train()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    for _ in range(100):
        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    assert weight.square().sum() < 1.0


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'lion'; choose one of: adam-onecycle, adamw-schedulefree"):
        make_optimizer("lion", [])
    with pytest.raises(ValueError, match="'sgd' has no option 'betas'; choose one of: lr, weight_decay, momentum"):
        make_optimizer("sgd", [], options={"betas": (0.9, 0.99)})


# --- rotation -------------------------------------------------------------------------------------------------------


def test_random_rotations_are_rotations_and_uniform() -> None:
    rotations = random_rotations(4000, torch.Generator().manual_seed(0))
    identity = torch.eye(3, dtype=torch.float64).expand(4000, 3, 3)
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), identity)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4000, dtype=torch.float64))
    assert rotations.mean(dim=0).abs().max() < 0.05
    # For Haar measure the angle has E[trace] = 0 and E[trace^2] = 1.
    trace = rotations.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert abs(float((trace**2).mean()) - 1) < 0.1


def test_a_rotated_batch_is_the_batch_of_rotated_crystals() -> None:
    structures = [crystal_zoo()[name] for name in ("skewed", "low symmetry", "slab")]
    rotations = random_rotations(3, torch.Generator().manual_seed(0))
    batch = rotate_batch(batch_graphs([build_graph(atoms) for atoms in structures]), rotations)
    for atoms, rotation, graph in zip(structures, rotations.numpy(), batch.unbatch(), strict=True):
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T)
        turned.positions = atoms.positions @ rotation.T
        expected = build_graph(turned)
        torch.testing.assert_close(graph.positions, expected.positions)
        torch.testing.assert_close(graph.edge_vector.sort(0).values, expected.edge_vector.sort(0).values)


def test_one_rotation_reaches_the_three_sets_of_edges_with_geometry() -> None:
    torch.manual_seed(0)
    # A vast threshold: all pairs are similar, whatever the features of the turned crystal are.
    model = small_model(num_layers=2, similarity_cutoff=1e6).double().eval()
    seen: list[torch.Tensor] = []
    encoders = [module for module in model.modules() if isinstance(module, EdgeEncoder)]
    assert len(encoders) == 4  # atomistic, cell, similarity of two layers
    for encoder in encoders:
        encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    structures = [crystal_zoo()[name] for name in ("skewed", "low symmetry", "slab")]
    structures[2].rattle(0.05, seed=0)  # no two minimum images of one length, of which either may be taken
    batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff) for atoms in structures])
    rotations = random_rotations(3, torch.Generator().manual_seed(0))
    model(batch)
    model(rotate_batch(batch, rotations))
    pairs = [
        (receiver, sender)
        for receiver, crystal in enumerate(batch.atom_crystal)
        for sender, other in enumerate(batch.atom_crystal)
        if receiver != sender and crystal == other
    ]
    similar = batch.atom_crystal[torch.tensor(pairs)[:, 0]]
    crystals = [batch.atom_crystal[batch.edge_index[0]], batch.cell_crystal, similar, similar]
    for before, after, crystal in zip(seen[:4], seen[4:], crystals, strict=True):
        expected = (rotations[crystal] @ before.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(after, expected)


def test_only_training_crystals_are_turned(parts, tmp_path, monkeypatch) -> None:
    turned: list[tuple[str, str]] = []
    real = module_of_training.rotate_batch

    def watched(batch, rotations):
        turned.append((stage[-1], "rotate"))
        return real(batch, rotations)

    stage = ["start"]
    for name in ("training_step", "validation_step", "reestimate"):
        method = getattr(PropertyTraining, name)

        def staged(self, *arguments, name=name, method=method):
            stage.append(name)
            try:
                return method(self, *arguments)
            finally:
                stage.pop()

        monkeypatch.setattr(PropertyTraining, name, staged)
    monkeypatch.setattr(module_of_training, "rotate_batch", watched)
    train(with_settings(epochs=1), parts, tmp_path / "run", progress=False)
    # the BatchNorm statistics are those of turned training crystals, too
    assert {where for where, _ in turned} == {"training_step", "reestimate"}
    turned.clear()
    train(with_settings(epochs=1, rotate=False), parts, tmp_path / "still", progress=False)
    assert not turned


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with drawing():
        return folder, train(with_settings(epochs=4), parts, folder, progress=False)


def test_a_run_leaves_model_log_predictions_plots_and_summary(run, parts) -> None:
    folder, summary = run
    for name in ("settings.json", "predictions.csv", "parity.png", "learning_curve.png", "summary.json"):
        assert (folder / name).stat().st_size > 0
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["best.ckpt", "digests.json", "last.ckpt", "previous.ckpt"]
    assert not list(folder.rglob(".*"))
    model = matgl.load_model(folder / "model")
    card = (folder / "model" / "README.md").read_text()
    for told in (
        "# A model of e",
        "| test | ",
        f"MAE {summary['scores']['test']['mae']:.4f}",
        "lr = 0.005",
        "To fill in",
    ):
        assert told in card
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    for split, records in parts.items():
        predicted = model.predict_structure([record.atoms for record in records]).numpy()
        errors = np.abs(predicted - [record.target for record in records])
        assert summary["scores"][split]["mae"] == pytest.approx(errors.mean(), abs=1e-5)
        of_split = [float(row["prediction"]) for row in rows if row["split"] == split]
        np.testing.assert_allclose(of_split, predicted, atol=1e-5)
    assert model.target == "e"
    assert model.mean == pytest.approx(np.mean([record.target for record in parts["train"]]))
    log = read_log(folder / "log")
    assert log["epoch"].tolist() == [0, 1, 2, 3]
    assert np.isfinite(log["val_mae"]).all()
    assert summary["best_epoch"] == int(np.argmin(log["val_mae"]))


def test_the_same_seed_gives_the_same_model(run, parts, tmp_path) -> None:
    _, summary = run
    again = train(with_settings(epochs=4), parts, tmp_path / "again", progress=False)
    assert again["scores"] == summary["scores"]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(run, parts, tmp_path, monkeypatch) -> None:
    _, summary = run
    calls = 0
    step = PropertyTraining.training_step

    def interrupted_step(self, batch, batch_idx):
        nonlocal calls
        calls += 1
        if calls == 15:  # in the third epoch
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PropertyTraining, "training_step", interrupted_step)
    with pytest.raises(RuntimeError, match="power cut"):
        train(with_settings(epochs=4), parts, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(ValueError, match="holds a run already; go on with it"):
        train(with_settings(epochs=4), parts, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"was started with lr = 0.005; resume it with the same settings"):
        train(with_settings(epochs=4, lr=1e-3), parts, tmp_path / "run", resume=True, progress=False)
    resumed = train(with_settings(epochs=4), parts, tmp_path / "run", resume=True, progress=False)
    assert resumed["scores"] == summary["scores"]  # bit-identical
    assert read_log(tmp_path / "run" / "log")["epoch"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("within", [False, True], ids=["after-epoch", "within-epoch"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw-schedulefree", {}),
        ("elra", {"accumulate": 2, "gradient_decay": True}),
        ("muon", {}),
        ("rod-flow", {"warmup": 3, "beta2": 0.9}),
        ("sgd", {"lr": 0.01}),
    ],
)
def test_every_optimizer_resumes_bit_for_bit(parts, tmp_path, monkeypatch, optimizer, options, within) -> None:
    sample_atoms = 2 if optimizer == "muon" else None
    settings = with_settings(
        epochs=4, lr=None, batch_size=4, optimizer=optimizer, options=options, sample_atoms=sample_atoms
    )
    summary = train(settings, parts, tmp_path / "whole", progress=False)
    if within:  # after each step
        monkeypatch.setattr(stopping, "_EVERY", 0.0)
    step = PropertyTraining.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 3:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PropertyTraining, "training_step", interrupted_step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(settings, parts, tmp_path / "cut", progress=False)
    saved = read_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert (is_within_epoch(saved), saved["epoch"]) == ((True, 2) if within else (False, 1))
    assert train(settings, parts, tmp_path / "cut", resume=True, progress=False)["scores"] == summary["scores"]
    whole, cut = (read_log(tmp_path / name / "log") for name in ("whole", "cut"))
    assert whole["epoch"].tolist() == cut["epoch"].tolist() == [0, 1, 2, 3]
    for name in ("train_mae", "val_mae"):
        assert whole[name].tolist() == cut[name].tolist()
    whole, cut = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")
    )
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][name]), name


def test_resume_knows_its_settings_its_data_and_its_place(run, parts, tmp_path) -> None:
    folder = tmp_path / "run"
    train(with_settings(epochs=1), parts, folder, progress=False)
    shifted = {name: [Record(r.atoms, r.target + 7, r.name) for r in records] for name, records in parts.items()}
    with pytest.raises(
        ValueError,
        match=r"was started with crystals = '.*', data = '[0-9a-f]{16}'; resume it with the same settings and",
    ):
        train(with_settings(epochs=2), shifted, folder, resume=True, progress=False)
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(ValueError, match="move the folder back there"):
        train(with_settings(epochs=2), parts, moved, resume=True, progress=False)
    for path in (moved / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"last.ckpt' is damaged .*; no other is whole"):
        train(with_settings(epochs=2), parts, moved, resume=True, progress=False)
    cycle = tmp_path / "cycle"
    train(with_settings(epochs=1, optimizer="adam-onecycle"), parts, cycle, progress=False)
    with pytest.raises(ValueError, match="was started with epochs = 1"):
        train(with_settings(epochs=2, optimizer="adam-onecycle"), parts, cycle, resume=True, progress=False)


def test_the_last_checkpoint_is_the_last_epoch_also_without_improvement(parts, tmp_path, monkeypatch) -> None:
    worse = iter(range(1, 100))
    step = PropertyTraining.validation_step

    def growing(self, batch, batch_idx):
        self.model.mean = float(next(worse))
        step(self, batch, batch_idx)

    monkeypatch.setattr(PropertyTraining, "validation_step", growing)
    summary = train(with_settings(epochs=3), parts, tmp_path / "run", progress=False)
    assert summary["best_epoch"] == 0
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2


def test_predictions_survive_names_with_commas_and_quotes(parts, tmp_path) -> None:
    odd = {name: [Record(r.atoms, r.target, f'Fe "alpha", {r.name}') for r in rs] for name, rs in parts.items()}
    train(with_settings(epochs=1), odd, tmp_path / "run", progress=False)
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert names == {record.name for records in odd.values() for record in records}


def test_total_targets_are_normalized_per_atom(parts, tmp_path) -> None:
    total = {name: [Record(r.atoms, (r.target - 3) * len(r.atoms), r.name) for r in rs] for name, rs in parts.items()}
    settings = with_settings(epochs=1, lr=1e-9, model={**MODEL, "readout": "sum"}, unit="eV")
    score = train(settings, total, tmp_path / "run", progress=False)["scores"]["val"]
    assert score["mae"] < score["mean_predictor_mae"]


def test_init_keeps_the_model_and_takes_the_target_of_the_settings(run, parts, tmp_path) -> None:
    start = matgl.load_model(run[0] / "model")
    before = copy.deepcopy(start.state_dict())
    settings = with_settings(epochs=1, target="band_gap", unit="eV")
    train(settings, parts, tmp_path / "run", init=start, progress=False)
    further = matgl.load_model(tmp_path / "run" / "model")
    assert (further.target, further.unit) == ("band_gap", "eV")
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())  # a copy is trained
    with pytest.raises(ValueError, match="the initial model has dim = 12, the settings ask for 32"):
        train(with_settings(model={"dim": 32}), parts, tmp_path / "other", init=start, progress=False)


def test_a_model_can_get_attention_and_a_minimum_from_one_without(run, parts, tmp_path) -> None:
    start = matgl.load_model(run[0] / "model")
    of_elements = PRISM(**{**start.arguments, "element_refs": tuple(range(100, 100 + len(start.element_types)))})
    of_elements.load_state_dict(start.state_dict())
    crystals = [record.atoms for record in parts["val"]]
    mean, std = Regression().scaling(np.array([record.target for record in parts["train"]]))
    free = (start.predict_structure(crystals).double() - start.mean) / start.std * std + mean
    least = float(free.median())
    changes = {"readout": "attention", "minimum": least, "dropout": 0.1}
    settings = with_settings(target="band_gap", unit="eV", model={**MODEL, **changes})
    made = Regression().new_model(settings, parts["train"], start.element_types, of_elements)
    assert {name: made.arguments[name] for name in changes} == changes
    assert made.arguments["element_refs"] is None  # of the other property
    assert float(free.max()) > least > float(free.min())
    torch.testing.assert_close(made.predict_structure(crystals).double(), free.clamp(min=least), rtol=0, atol=1e-5)
    for name, weight in start.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name
    total = with_settings(model={**MODEL, "readout": "sum"})
    with pytest.raises(ValueError, match="the initial model has readout = 'mean', the settings ask for 'sum'"):
        train(total, parts, tmp_path / "run", init=start, progress=False)


def test_a_model_of_a_number_can_become_one_of_two_classes(run, parts, tmp_path) -> None:
    start = matgl.load_model(run[0] / "model")
    middle = float(np.median([record.target for records in parts.values() for record in records]))
    high = {name: [replace(r, target=float(r.target > middle)) for r in some] for name, some in parts.items()}
    settings = with_settings(target="high", unit="", model={**MODEL, "task_type": "classification"})
    made = Classification().new_model(settings, high["train"], start.element_types, start)
    crystals = [record.atoms for record in parts["val"]]
    had = (start.predict_structure(crystals).double() - start.mean) / start.std
    log_odds, _ = Classification().scaling(np.array([record.target for record in high["train"]]))
    torch.testing.assert_close(made.predict_structure(crystals).double().logit(), had + log_odds, rtol=0, atol=1e-4)
    summary = train(settings, high, tmp_path / "run", init=start, progress=False)
    assert 0 < summary["scores"]["train"]["cross_entropy"] < 2
    back = with_settings(target="high", model={**MODEL, "task_type": "regression"})
    with pytest.raises(ValueError, match="the initial model has task_type = 'classification'"):
        train(back, parts, tmp_path / "back", init=matgl.load_model(tmp_path / "run" / "model"), progress=False)


def test_init_starts_from_given_weights(run, parts, tmp_path) -> None:
    folder, summary = run
    start = matgl.load_model(folder / "model")
    further = train(with_settings(epochs=1, lr=1e-9), parts, tmp_path / "further", init=start, progress=False)
    assert further["scores"]["val"]["mae"] == pytest.approx(summary["scores"]["val"]["mae"], rel=0.05)


def test_a_diverging_training_says_so(parts, tmp_path) -> None:
    broken = {**parts, "train": [Record(r.atoms, r.target * 1e38 * 1e5, r.name) for r in parts["train"]]}
    with pytest.raises(ValueError, match=r"the loss became (inf|nan) in epoch 0, batch 0; lower the learning"):
        train(with_settings(normalize=False), broken, tmp_path / "run", progress=False)


def test_bad_settings_are_refused() -> None:
    for name, value in (("epochs", 0), ("epochs", 1.5), ("batchnorm_batches", 0), ("seed", -1), ("seed", 10**14)):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
            with_settings(**{name: value})
    for name, value in (("lr", "a"), ("lr", float("inf")), ("lr", 0.0), ("betas", (0.9, 2.0)), ("weight_decay", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            with_settings(lr=None, options={name: value})
    for options, message in (
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        ({"dynamic": "maybe"}, "dynamic must be True or False"),
        ({"min_stp": 0.1}, "no option 'min_stp'; choose one of: lr, .*min_step.*, accumulate, dynamic, gradient_decay"),
        ({"lr": 1.0}, "two learning rates"),
    ):
        with pytest.raises(ValueError, match=message):
            with_settings(optimizer="elra", options=options)
    with pytest.raises(ValueError, match="'adamw-schedulefree' has no option 'accumulate'"):
        with_settings(options={"accumulate": 2})
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        with_settings(device="gpu")
    with pytest.raises(ValueError, match="unknown precision 'bf16'; choose one of: '32-true', 'bf16-mixed'"):
        with_settings(precision="bf16")
    with pytest.raises(ValueError, match="rod-flow needs precision '32-true'"):
        with_settings(precision="bf16-mixed", optimizer="rod-flow", lr=None)
    with pytest.raises(ValueError, match="a potential needs precision '32-true'"):
        with_settings(precision="bf16-mixed", target="pes", unit="eV", lr=None)
    with pytest.raises(ValueError, match="recompute is not for potentials"):
        with_settings(recompute=True, target="pes", unit="eV", lr=None)


def test_training_that_recomputes_activations_gives_the_same_numbers(parts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gated_conv, "_LITTLE", 0)
    with pytest.raises(ValueError, match="recompute must be True or False, got 'yes'"):
        with_settings(recompute="yes")
    for name, value in (("kept", False), ("recomputed", True)):
        train(with_settings(recompute=value, epochs=1), parts, tmp_path / name, progress=False)
    kept, recomputed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("kept", "recomputed")
    )
    for name, value in kept.items():
        assert torch.equal(value, recomputed[name]), name
    train(with_settings(recompute=True, epochs=2), parts, tmp_path / "kept", resume=True, progress=False)


@pytest.mark.parametrize("optimizer", ["adamw-schedulefree", "adam-onecycle", "elra", "muon"])
def test_training_with_products_in_bfloat16_learns(parts, tmp_path, optimizer: str) -> None:
    products = []

    def watch(module: torch.nn.Module, given: tuple[torch.Tensor, ...], answer: torch.Tensor) -> None:
        if module.training:
            products.append(answer.dtype)

    settings = with_settings(precision="bf16-mixed", optimizer=optimizer, lr=None if optimizer == "elra" else 5e-3)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, answer: watch(module, given, answer) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        summary = train(settings, parts, tmp_path / "run", progress=False)
    finally:
        handle.remove()
    assert set(products) == {torch.bfloat16}
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert summary["scores"]["val"]["mae"] < summary["scores"]["val"]["mean_predictor_mae"]


def test_an_element_of_the_validation_part_unknown_to_training_is_refused(parts, tmp_path) -> None:
    foreign = {**parts, "val": [Record(bulk("Fe"), 0.0, "iron")]}
    with pytest.raises(ValueError, match="crystal 'iron' of the val part has Fe, which no training crystal has"):
        train(SETTINGS, foreign, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- data -----------------------------------------------------------------------------------------------------------

ROW = {"id": "a", "lattice": [[3, 0, 0], [0, 3, 0], [0, 0, 3]], "species": ["Po"], "frac_coords": [[0, 0, 0]], "e": 1.5}


def write_rows(path, rows: list, opener=open) -> None:
    with opener(path, "wt") as file:
        for row in rows:
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


@pytest.mark.filterwarnings("ignore:.*names stand there more than once")
@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".xz", lzma.open), (".gz", gzip.open)])
def test_jsonl_is_read_also_compressed(tmp_path, suffix, opener) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    write_rows(path, [ROW, "", {**ROW, "split": "val", "pbc": [True, True, False]}], opener)
    first, second = read_records(path, "e")
    assert first.atoms == Atoms("Po", cell=[3, 3, 3], pbc=True)
    assert (first.target, first.name, first.split, second.split) == (1.5, "a", None, "val")
    assert second.atoms.pbc.tolist() == [True, True, False]


@pytest.mark.filterwarnings("ignore:.*names stand there more than once")
def test_extxyz_is_read(tmp_path) -> None:
    atoms = bulk("Cu")
    atoms.info.update(e=-3.5, id="copper")
    write(tmp_path / "data.extxyz", [atoms, atoms])
    records = read_records(tmp_path / "data.extxyz", "e")
    assert [(r.target, r.name) for r in records] == [(-3.5, "copper")] * 2
    np.testing.assert_allclose(records[0].atoms.cell.array, atoms.cell.array, atol=1e-7)


def test_mlearn_energies_are_read(shared_data) -> None:
    records = read_records(shared_data / "mlearn" / "Cu_train.extxyz.xz", "energy")
    assert len(records) > 200
    assert all(np.isfinite(record.target) for record in records)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"data.jsonl, line 2: JSONDecodeError: Expecting property name"),
        ({**ROW, "species": ["Xq"]}, r"data.jsonl, line 2: 'Xq' is neither a key of the row nor an element"),
        ({k: v for k, v in ROW.items() if k != "lattice"}, r"line 2: 'lattice' is neither"),
        ({**ROW, "lattice": [[1, 0], [0, 1]]}, r"line 2: the shape of lattice is \(2, 2\)"),
        ({**ROW, "frac_coords": [["x", 0, 0]]}, r"line 2: frac_coords must be numbers"),
        ("[1, 2]", r"line 2: a crystal is an object with lattice"),
        ({**ROW, "frac_coords": [[float("inf"), 0, 0]]}, r"line 2: the position of atom 0 is not finite"),
        ({**ROW, "e": 10**400}, r"line 2: the target 'e' is no number"),
        ({**ROW, "e": "much"}, r"line 2: the target 'e' is no number: 'much'"),
        ({**ROW, "e": float("nan")}, r"the target 'e' is missing in 1 of 2 rows .first: data.jsonl, line 2"),
        (
            {**ROW, "e": None},
            r"the target 'e' is missing in 1 of 2 rows \(first: data.jsonl, line 2\); .*--skip-missing",
        ),
        ({**ROW, "split": "dev"}, r"line 2: split is 'dev'; it must be one of: train, val, test"),
    ],
    ids=str,
)
def test_a_bad_line_is_named_with_file_line_and_reason(tmp_path, row, message) -> None:
    write_rows(tmp_path / "data.jsonl", [ROW, row])
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / "data.jsonl", "e")


def test_bad_files_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_records(tmp_path / "nothing.jsonl", "e")
    (tmp_path / "data.db").write_text("x")
    with pytest.raises(ValueError, match=r"data.db cannot be read"):
        read_records(tmp_path / "data.db", "e")
    (tmp_path / "data.extxyz").write_text("2\nLattice\nCu 0 0\n")
    with pytest.raises(ValueError, match=r"data.extxyz, frame 1"):
        read_records(tmp_path / "data.extxyz", "e")
    write_rows(tmp_path / "none.jsonl", [{**ROW, "e": None}])
    with pytest.raises(ValueError, match="none of the 1 rows has the target 'e'"):
        read_records(tmp_path / "none.jsonl", "e", skip_missing=True)
    truncated = lzma.compress(json.dumps(ROW).encode() * 500)[:-40]
    (tmp_path / "cut.jsonl.xz").write_bytes(truncated)
    with pytest.raises(ValueError, match=r"cut.jsonl.xz.*(truncated|damaged)"):
        read_records(tmp_path / "cut.jsonl.xz", "e")


def test_missing_targets_can_be_skipped(tmp_path) -> None:
    write_rows(tmp_path / "data.jsonl", [ROW, {**ROW, "e": None}])
    with pytest.warns(UserWarning, match="1 of 2 rows are left out: no target 'e'"):
        assert len(read_records(tmp_path / "data.jsonl", "e", skip_missing=True)) == 1


def test_a_bad_crystal_is_named() -> None:
    bad = Record(Atoms("H2", positions=np.zeros((2, 3))), 0.0, "my crystal")
    with pytest.raises(ValueError, match="crystal 'my crystal': atoms 0 and 1 lie on top of each other"):
        GraphDataset([bad], 5.0, 15.0, progress=False)


def test_splits(shared_data) -> None:
    records = read_records(shared_data / "mp2018" / "tiny.jsonl.xz", "e_form")
    parts = split_records(records)
    assert len(parts["train"]) + len(parts["val"]) == len(records) == 568
    assert {record.split for record in parts["val"]} == {"val"}
    unnamed = [Record(r.atoms, r.target, r.name) for r in records]
    sizes = {name: len(part) for name, part in split_records(unnamed, seed=3).items()}
    assert sizes == {"train": 454, "val": 56, "test": 58}
    rare = split_records(unnamed, seed=5)
    learned = {symbol for record in rare["train"] for symbol in record.atoms.symbols}
    assert all(set(record.atoms.symbols) <= learned for part in rare.values() for record in part)
    with pytest.raises(ValueError, match=r"the val part is empty .*no row has the split 'val'"):
        split_records([record for record in records if record.split == "train"])
    with pytest.raises(ValueError, match="rows name no split"):
        split_records([records[0], unnamed[0]])
    with pytest.raises(ValueError, match=r"the train part is empty|the val part is empty .*give more data"):
        split_records(unnamed[:1])


def test_what_comes_again_is_in_one_part() -> None:
    """A model must not be scored on what it has learned: by name, or as the same crystal under another one."""
    records = emt_alloys(40)
    again = [replace(record, name=f"again {record.name}") for record in records]
    with pytest.warns(UserWarning, match=r"40 crystals come again within a part \('.*' is '.*'\), and count as often"):
        parts = split_records([*records, *again], seed=2)
    part_of = {record.name: part for part, some in parts.items() for record in some}
    assert all(part_of[record.name] == part_of[f"again {record.name}"] for record in records)
    assert all(parts.values())
    moved = [replace(record, atoms=shifted(record.atoms)) for record in records]  # other crystals of the same names
    part_of = {}
    for part, some in split_records([*records, *moved], seed=2).items():
        assert all(part_of.setdefault(record.name, part) == part for record in some)
    # As two files behind each other, whose numbers begin anew: names and crystals that are linked in chains.
    twice = [replace(records[n], name=f"{m}") for m, n in [*enumerate(range(20)), *enumerate(range(1, 21))]]
    with (
        pytest.warns(UserWarning, match=r"19 crystals come again within a part"),
        pytest.raises(ValueError, match=r"the val part is empty .* names of their own where many have one"),
    ):
        split_records(twice)  # all in one chain
    pairs = [replace(records[n], name=f"{n // 2}") for n in range(40)]
    sizes = {part: len(some) for part, some in split_records(pairs, seed=1).items()}
    assert sizes == {"train": 32, "val": 4, "test": 4}
    named = [
        replace(again[0], split="test"),
        *(replace(one, split="train" if n else "val") for n, one in enumerate(records)),
    ]
    with pytest.warns(
        UserWarning, match=r"1 crystals are in two parts \('again .*' of the test part is '.*' of the val"
    ):
        split_records(named)


def shifted(atoms: Atoms) -> Atoms:
    """Another crystal: its atoms are moved a little."""
    other = atoms.copy()
    other.rattle(0.05, seed=0)
    return other


def test_emt_alloys_are_reproducible_and_physical() -> None:
    first, second = emt_alloys(30, seed=4), emt_alloys(30, seed=4)
    assert [r.target for r in first] == [r.target for r in second]
    assert all(r.atoms == s.atoms for r, s in zip(first, second, strict=True))
    assert -0.3 < min(r.target for r in first) < max(r.target for r in first) < 3


@pytest.mark.slow
def test_real_crystals_train(shared_data, tmp_path) -> None:
    # The road on real input: formation energies of Materials Project crystals, better than the mean by far.
    records = read_records(shared_data / "mp2018" / "tiny.jsonl.xz", "e_form")
    elements = tuple(sorted({symbol for record in records for symbol in record.atoms.symbols}))
    model = {"dim": 32, "num_layers": 2, "num_rbf": 16, "cutoff": 4.0, "cell_cutoff": 8.0, "element_types": elements}
    settings = with_settings(target="e_form", model=model, epochs=12, batch_size=16)
    summary = train(settings, split_records(records), tmp_path / "run", progress=False)
    score = summary["scores"]["val"]
    assert score["mae"] < 0.6 * score["mean_predictor_mae"]
