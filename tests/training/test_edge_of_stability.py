"""EoSMonitor in Lightning: right at the edge, elsewhere silent with the reason; RodFlow in Lightning, `prism`."""

from __future__ import annotations

import json
import math
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prism_plugin.cli import main
from prism_plugin.edge_of_stability.tracker import BETAS
from prism_plugin.optim import Discrete, RodFlow
from prism_plugin.optim.rod_flow.sharpness import sharpness
from prism_plugin.training import EoSMonitor
from prism_plugin.training.plots import read_columns

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.* the training is at the edge of stability"),
]


class Digits(L.LightningModule):
    """A small classifier on scikit-learn's digits, by squared error."""

    def __init__(self, make, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 10)).double()
        self.make = make

    def loss(self, x, y):
        return 0.5 * (self.model(x) - y).square().sum(dim=1).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def configure_optimizers(self):
        return self.make(self.model.parameters())


def loader(batch: int = 128, shuffle: bool = False) -> DataLoader:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images[:128] / 16 - 0.5)
    y = nn.functional.one_hot(torch.as_tensor(labels[:128]), 10).double()
    return DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=shuffle)


class Book(Callback):
    """Notes every reading, or its reason."""

    def __init__(self, monitor: EoSMonitor) -> None:
        self.monitor, self.readings, self.reasons = monitor, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.readings.append(dict(self.monitor.reading))
        self.reasons.append(self.monitor.reason)


def fit(module: L.LightningModule, data: DataLoader, epochs: int = 300, monitor: EoSMonitor | None = None, **settings):
    monitor = monitor or EoSMonitor()
    book = Book(monitor)
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[monitor, book, *settings.pop("callbacks", [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **settings,
    )
    trainer.fit(module, data)
    return book


LRS = {
    "gd": 0.4, "heavy-ball": 0.8, "nesterov": 0.5, "scalar-rmsprop": 0.08, "rmsprop": 0.002,
    "adam": 0.005, "scalar-nadam": 0.2, "nadam": 0.003,
}  # scalar Adam's orbit is unstable: it comes to the edge in bursts only  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", list(LRS))
def test_at_the_edge_the_reading_is_the_threshold(method) -> None:
    module = Digits(lambda p: Discrete(p, method, LRS[method], *BETAS[method]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        book = fit(module, loader())
    late = [reading["ratio"] for reading in book.readings[100:] if reading]
    assert np.median(late) == pytest.approx(1, abs=0.03)
    assert any("is at the edge of stability" in str(warning.message) for warning in caught)
    assert len([w for w in caught if "EoSMonitor" in str(w.message) or "edge" in str(w.message)]) == 1


def test_far_from_the_edge_the_reading_is_below_and_there_is_no_warning() -> None:
    module = Digits(lambda p: torch.optim.SGD(p, lr=0.05))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*(does not have many workers|number of training batches|LeafSpec).*"
        )
        book = fit(module, loader(), epochs=60)
    readings = [reading for reading in book.readings if reading]
    assert readings
    assert max(reading["ratio"] for reading in readings[5:]) < 0.5
    assert readings[-1]["cosine"] > 0.9
    assert readings[-1]["threshold"] == pytest.approx(40)


def test_the_reading_is_a_rayleigh_quotient_below_the_largest_eigenvalue() -> None:
    module = Digits(lambda p: torch.optim.SGD(p, lr=0.4))
    book = fit(module, loader(), epochs=200)
    largest, _ = sharpness(lambda: module.loss(*next(iter(loader()))), list(module.model.parameters()))
    assert 0.7 * largest < book.readings[-1]["sharpness"] < 1.1 * largest


@pytest.mark.filterwarnings("ignore:EoSMonitor has no reading")
def test_other_data_give_no_reading() -> None:
    for data in (loader(32), loader(32, shuffle=True)):
        book = fit(Digits(lambda p: torch.optim.Adam(p, lr=1e-3)), data, epochs=10)
        assert not any(book.readings)
        assert all("other data" in reason for reason in book.reasons[1:])
    with pytest.warns(UserWarning, match="EoSMonitor has no reading: consecutive updates have other data"):
        fit(Digits(lambda p: torch.optim.Adam(p, lr=1e-3)), loader(32), epochs=1)
    # Two micro-batches an update, always the same two: that is one batch.
    book = fit(Digits(lambda p: torch.optim.SGD(p, lr=0.05)), loader(64), epochs=10, accumulate_grad_batches=2)
    assert [bool(reading) for reading in book.readings][::2] == [False] * 3 + [True] * 7


@pytest.mark.filterwarnings("ignore:EoSMonitor has no reading")
def test_dropout_and_other_randomness_give_no_reading() -> None:
    book = fit(Digits(lambda p: torch.optim.SGD(p, lr=0.01), dropout=0.5), loader(), epochs=5)
    assert not any(book.readings)
    assert "dropout (model.2) makes the loss another function" in book.reasons[-1]

    class Noisy(Digits):
        def loss(self, x, y):
            return super().loss(x + torch.randn_like(x), y)

    book = fit(Noisy(lambda p: torch.optim.SGD(p, lr=0.01)), loader(), epochs=60)
    assert np.mean([not reading for reading in book.readings]) > 0.9  # a heuristic: now and then it passes
    assert any("augmentation, dropout" in reason for reason in book.reasons)


@pytest.mark.filterwarnings("ignore:EoSMonitor has no reading")
def test_a_training_that_diverges_has_no_reading() -> None:
    class Steep(Digits):
        def loss(self, x, y):
            return self.model(x).pow(4).sum()

    book = fit(Steep(lambda p: torch.optim.SGD(p, lr=10.0)), loader(), epochs=30)
    assert book.readings[-1] == {}
    assert book.reasons[-1] == "the loss or its gradient is not finite"


def test_a_closed_rod_gives_no_reading() -> None:
    class Quadratic(Digits):
        def loss(self, x, y):
            return self.model[0].bias.square().sum()

    book = fit(Quadratic(lambda p: torch.optim.SGD(p, lr=0.4)), loader(), epochs=60)
    assert "the rod is closed" in book.reasons[-1]
    assert any(book.readings)


@pytest.mark.filterwarnings("ignore:EoSMonitor has no reading")
def test_half_precision_and_clipping_give_no_reading() -> None:
    module = Digits(lambda p: torch.optim.SGD(p, lr=0.1))
    book = fit(module, loader(), epochs=5, precision="bf16-mixed")
    assert not any(book.readings)
    assert "noise in bf16-mixed" in book.reasons[-1]
    book = fit(module, loader(), epochs=5, gradient_clip_val=1.0)
    assert "a clipped gradient has another threshold" in book.reasons[-1]
    with pytest.warns(UserWarning, match="no reading: a clipped gradient"):
        fit(module, loader(), epochs=1, gradient_clip_val=1.0)


def test_optimizers_without_a_threshold_are_refused() -> None:
    with pytest.raises(ValueError, match="map of phase space of Adagrad is not known"):
        fit(Digits(lambda p: torch.optim.Adagrad(p)), loader())
    with pytest.raises(ValueError, match="amsgrad=True"):
        fit(Digits(lambda p: torch.optim.Adam(p, amsgrad=True)), loader())


def test_the_numbers_of_a_reading(tmp_path) -> None:
    """Against the formulas, in the early steps of Adam, where threshold and scaling change in every step."""
    points = []

    class Watch(Digits):
        def on_before_optimizer_step(self, optimizer) -> None:
            parameters = list(self.model.parameters())
            w = torch.cat([p.detach().reshape(-1) for p in parameters])
            g = torch.cat([p.grad.reshape(-1) for p in parameters])
            points.append((w, g))

    module = Watch(lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-3))
    book = fit(module, loader(), epochs=6)
    nu = torch.zeros_like(points[0][1])
    for number in range(5):
        nu = 0.9 * nu + 0.1 * points[number][1] ** 2
        reading = book.readings[number + 1]
        assert bool(reading) == (number > 0)
        if not reading:
            continue
        (q0, g0), (q1, g1), (q2, g2) = points[number - 1 : number + 2]
        d, e = q0 - 2 * q1 + q2, g0 - 2 * g1 + g2
        p = (nu / (1 - 0.9 ** (number + 1))).sqrt() + 1e-3  # of the step from q1 to q2
        assert reading["sharpness"] == pytest.approx(float(d @ e / (d @ (p * d))), rel=1e-9)
        assert reading["threshold"] == pytest.approx((1 - 0.8 ** (number + 1)) * 2 * 1.8 / 0.2 / 0.01)
        assert reading["rod_length"] == pytest.approx(float(d.norm()) / 4)
        assert reading["cosine"] == pytest.approx(float((q2 - q1) @ (q1 - q0) / (q2 - q1).norm() / (q1 - q0).norm()))


@pytest.mark.filterwarnings("ignore:EoSMonitor has no reading")
def test_batches_of_other_kinds() -> None:
    class Holder:
        def __init__(self, x, y) -> None:
            self.parts = {"x": x, "y": y}

    class Opaque(Digits):
        def training_step(self, batch, batch_idx):
            return self.loss(*(batch.parts.values() if isinstance(batch, Holder) else batch[0]()))

    rows = list(loader(32))
    make = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
    same = DataLoader([Holder(*rows[0])], batch_size=None)
    assert any(fit(Opaque(make), same, epochs=6).readings)
    others = DataLoader([Holder(*row) for row in rows], batch_size=None)
    assert not any(fit(Opaque(make), others, epochs=3).readings)
    hidden = DataLoader([[lambda row=row: row] for row in rows], batch_size=None)
    book = fit(Opaque(make), hidden, epochs=3)
    assert not any(book.readings)
    assert "holds no tensors that can be seen" in book.reasons[-1]


def test_a_reading_counts_once_with_accumulation() -> None:
    class Count(EoSMonitor):
        logged = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            before, super_log = self._fresh, pl_module.log_dict
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.logged += before and bool(self.reading)
            assert super_log is not None
            assert not self._fresh

    monitor = Count()
    fit(Digits(lambda p: torch.optim.SGD(p, lr=0.05)), loader(32), epochs=6, monitor=monitor, accumulate_grad_batches=4)
    assert monitor.logged == 4  # of six updates, the first two have no reading


def test_schedules_that_pass_zero_and_layers_that_thaw() -> None:
    class Fickle(Digits):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_epoch_start(self) -> None:
            self.model[0].requires_grad_(self.current_epoch > 2)

    book = fit(Fickle(None), loader(), epochs=9)
    assert book.readings[-1]


def rod_flow(parameters) -> RodFlow:
    parameters = list(parameters)
    return RodFlow(parameters, torch.optim.SGD(parameters, lr=0.4))


def test_rod_flow_in_lightning_is_at_the_edge_and_its_loss_is_the_mean_of_the_ends() -> None:
    module = Digits(rod_flow)
    with pytest.warns(UserWarning, match="is at the edge of stability"):
        book = fit(module, loader(), epochs=150)
    stats = module.optimizers().optimizer.stats
    assert stats["open"]
    assert book.readings[-1]["ratio"] == stats["ratio"]
    assert stats["ratio"] == pytest.approx(1, abs=0.05)
    center = float(module.loss(*next(iter(loader()))).detach())
    assert stats["loss_center"] == pytest.approx(center, rel=0.05)


def test_what_disturbs_rod_flow_in_lightning_is_refused() -> None:
    for settings, message in (
        ({"gradient_clip_val": 1.0}, "a clipped gradient is not linear.*remove gradient_clip_val"),
        ({"callbacks": [GradientAccumulationScheduler({1: 2})]}, "use no GradientAccumulationScheduler"),
        ({"accumulate_grad_batches": 2}, "set accumulate_grad_batches=1, use no GradientAccumulationScheduler"),
        ({"precision": "bf16-mixed"}, "noise in bf16-mixed: use '32-true'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(Digits(rod_flow), loader(64), **settings)


@pytest.mark.usefixtures("pictures")
def test_prism_train_with_rod_flow(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    options = ["--option", "like=heavy-ball", "--option", "beta1=0.5", "--option", "warmup=3", "--lr", "0.05"]
    sizes = [f"--set={size}" for size in ("dim=8", "num_layers=1", "num_rbf=4", "cell_cutoff=6.0")]
    command = ["train", "--data", "emt-alloys", "--target", "formation_energy", "--out", str(run), "--epochs", "2"]
    assert main([*command, "--batch-size", "200", "--optimizer", "rod-flow", *options, *sizes]) == 0
    assert (run / "rod_flow.png").stat().st_size > 10_000
    columns = read_columns(run / "log", "step", ("loss_plus", "loss_minus", "rod_length", "threshold"))
    assert columns["threshold"][-1] == pytest.approx(2 * 1.5 / 0.5 / 0.05)
    assert math.isfinite(columns["loss_plus"][-1])
    again = ["train", "--resume", str(run)]
    assert main([*again, "--epochs", "1"]) == 2
    assert "has begun 2 epochs, 1 are asked for" in capsys.readouterr().err
    assert main([*again, "--epochs", "3"]) == 0
    assert main([*command, "--optimizer", "rod-flow", "--option", "like=adamw"]) == 2
    assert "unknown like 'adamw'; choose one of: 'gd'" in capsys.readouterr().err


def test_prism_rodflow(tmp_path, capsys) -> None:
    command = ["rodflow", "--optimizer", "nadam", "--network", "toy", "--steps", "20", "--out", str(tmp_path / "a")]
    assert main(command) == 0
    assert "tracking.png" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "toy.json").read_text())
    assert found["summary"]["steps"] == 20
    assert main([*command, "--form", "outer"]) == 2
    assert "other form: choose another folder" in capsys.readouterr().err
    for wrong, message in (
        (["--optimizer", "adagrad"], "unknown optimizer 'adagrad'"),
        (["--data", "crystals.jsonl"], "--data needs --target"),
        (["--target", "x"], "--target names a number in --data"),
        (["--data", "crystals.jsonl", "--target", "x", "--crystals", "1"], "--crystals must be at least 2, got 1"),
        (["--network", "prism", "--data", str(tmp_path / "no.jsonl"), "--target", "x"], "no.jsonl"),
        (["--optimizer", "gd", "--network", "mlp", "--lr", "1e6"], "lower the learning rate"),
    ):
        assert main([*command[:-1], str(tmp_path / "b"), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_prism_rodflow_on_crystals_of_the_user(tmp_path, shared_data, capsys) -> None:
    data = shared_data / "mp2018" / "tiny.jsonl.xz"
    command = ["rodflow", "--network", "prism", "--steps", "2", "--sharpness-every", "0", "--crystals", "4"]
    assert main([*command, "--data", str(data), "--target", "e_form", "--out", str(tmp_path)]) == 0
    assert "4 crystals" in json.loads((tmp_path / "prism.json").read_text())["description"]
