"""Data-parallel training: two processes do what one does at the same global batch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from prism_plugin import cli
from prism_plugin.data import PES
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.loading import BatchSampler, EpochSampler
from prism_plugin.nn.gated_conv import Answer, GatedTensors, Settings, gated_messages
from prism_plugin.nn.norm import FeatureNorm
from prism_plugin.training import TrainingSettings


def _values() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(11, 4, generator=generator, dtype=torch.float64) * 3 + 5 for _ in range(2))


def _norm() -> FeatureNorm:
    norm = FeatureNorm(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return norm


def _messages(mine: slice) -> tuple[Answer, list[torch.Tensor]]:
    """Gated messages along a part of 11 edges that end at one node each, and what they depend on."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    edges = _values()[0][mine].clone().requires_grad_()
    nodes = torch.zeros(len(edges), 8, dtype=torch.float64)
    shapes = (8, 4), (4, 4), (4,), (4, 4), (4,), (4,), (4,)
    weights = [random(*shape) for shape in shapes]
    index = torch.arange(len(edges)).expand(2, -1)
    tensors = GatedTensors(nodes, nodes, edges, None, *weights)
    return gated_messages(tensors, Settings(index, False, 1e-5)), [edges, *weights]


def _rank(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values, weights = _values()
    mine = slice(0, 3) if rank == 0 else slice(3, 11)
    norm = _norm()
    norm(values[mine])  # running statistics twice
    given = values[mine].clone().requires_grad_()
    out = norm(given)
    (out * weights[mine]).sum().backward()
    norm.momentum = None
    norm.reset_running_stats()
    for _ in range(2):
        norm(values[mine])
    cumulative = norm.running_var.clone()
    messages, needed = _messages(mine)
    messages.total.sin().sum().backward()
    norm(values[:0])  # nowhere a row: the running statistics serve and stay
    one = norm(values[:1] if rank == 0 else values[:0])
    assert len(one) == (1 if rank == 0 else 0)
    assert torch.equal(norm.running_var, cumulative)
    batches = BatchSampler(EpochSampler(13, 5), 4), BatchSampler(range(13), 4), BatchSampler(EpochSampler(14, 5), 4)
    torch.save(
        {
            "out": out.detach(),
            "gradient": given.grad,
            "weight": norm.weight.grad,
            "bias": norm.bias.grad,
            "cumulative": cumulative,
            "messages": [*messages.statistics[:2], *[tensor.grad for tensor in needed]],
            "batches": [list(sampler) for sampler in batches],
            "lengths": [len(sampler) for sampler in batches],
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(str(folder / "store"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_batchnorm_sees_the_rows_of_all_processes(two) -> None:
    values, weights = _values()
    norm = _norm()
    norm(values)
    given = values.clone().requires_grad_()
    out = norm(given)
    (out * weights).sum().backward()
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([rank["out"] for rank in two]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([rank["gradient"] for rank in two]), given.grad, **close)
    for name in ("weight", "bias"):  # DDP adds these up
        torch.testing.assert_close(two[0][name] + two[1][name], getattr(norm, name).grad, **close)
    norm.momentum = None
    norm.reset_running_stats()
    for _ in range(2):
        norm(values)
    for rank in two:
        torch.testing.assert_close(rank["cumulative"], norm.running_var, **close)


@pytest.mark.slow
def test_gated_messages_normalize_by_the_edges_of_all_processes(two) -> None:
    answer, needed = _messages(slice(0, 11))
    answer.total.sin().sum().backward()
    alone = [*answer.statistics[:2], *[tensor.grad for tensor in needed]]
    for number, (expected, *found) in enumerate(zip(alone, *[rank["messages"] for rank in two], strict=True)):
        if number < 2:  # statistics: the same everywhere
            expected, found = torch.stack([expected] * 2), [torch.stack(found)]
        together = torch.cat(found) if number == 2 else sum(found)  # edges one after the other, weights added up
        torch.testing.assert_close(together, expected, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_processes_divide_the_batches_of_one(two) -> None:
    alone = [list(sampler) for sampler in (BatchSampler(EpochSampler(14, 5), 4), BatchSampler(range(13), 4))]
    for batch, first, second in zip(alone[0], two[0]["batches"][2], two[1]["batches"][2], strict=True):
        assert sorted(first + second) == sorted(batch)
        assert abs(len(first) - len(second)) <= 1
    # one crystal is left for two: they leave it out of the training, and neither waits for the other
    assert [rank["lengths"][0] for rank in two] == [3, 3]
    # validation leaves none out
    validated = [index for rank in two for batch in rank["batches"][1] for index in batch]
    assert sorted(validated) == list(range(13))
    assert len(alone[1]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "optimizer", "target"),
    [
        ("lightning", "adamw-schedulefree", "e"),
        ("torchrun", "adamw-schedulefree", "e"),
        ("lightning", "elra", "e"),
        ("lightning", "rod-flow", "e"),
        ("lightning", "adam-onecycle", "pes"),
    ],
)
def test_two_processes_train_like_one(tmp_path, launcher, optimizer, target) -> None:
    frames = []
    for record, labels in zip(emt_alloys(40), emt_alloys(40, forces=True), strict=True):
        record.atoms.info.update(e=record.target)
        results = {"energy": labels.target, "forces": labels.forces, "stress": labels.stress}
        record.atoms.calc = SinglePointCalculator(record.atoms, **results)
        frames.append(record.atoms)
    write(tmp_path / "alloys.extxyz", frames)
    small = ["--epochs", "2", "--batch-size", "5", "--set", "dim=8", "--set", "num_layers=2"]
    data = ["--data", str(tmp_path / "alloys.extxyz"), "--target", target]
    arguments = ["train", *data, "--optimizer", optimizer, *small]
    assert cli.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    start = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if launcher == "torchrun" else []
    result = subprocess.run(
        [
            sys.executable,
            *start,
            "-m",
            "prism_plugin.cli",
            *arguments,
            "--devices",
            "2",
            "--out",
            str(tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    curves, predictions = [], []
    for name in ("one", "two"):
        with open(tmp_path / name / "log" / "version_0" / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
            keys = ("val_loss", "train_loss") if target == PES else ("val_mae", "train_mae")
            curves.append([float(row[key]) for key in keys for row in rows if row[key]])
        with open(tmp_path / name / "predictions.csv", newline="") as file:
            column = "predicted energy" if target == PES else "prediction"
            predictions.append([float(row[column]) for row in csv.DictReader(file)])
    assert len(curves[0]) == 4
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert predictions[0] == pytest.approx(predictions[1], abs=1e-4)


def test_a_batch_smaller_than_the_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 3 is for all devices together and there are 4"):
        TrainingSettings(target="e", batch_size=3, devices=2, nodes=2)
