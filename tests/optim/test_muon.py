"""Muon for many matrices at once is torch's Muon."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Muon

from prism_plugin.optim.muon import GroupedMuon

SHAPES = ((8, 16), (8, 16), (16, 8), (5, 5), (8, 16), (1, 7))


@pytest.mark.parametrize("nesterov", [True, False])
def test_grouped_steps_are_those_of_torch(nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    how = {"lr": 1e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw", "nesterov": nesterov}
    grouped, plain = GroupedMuon(ours, **how), Muon(theirs, **how)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        grouped.step()
        plain.step()
    for one, other in zip(ours, theirs, strict=True):
        # bfloat16 products in another order: a step of 1e-2 keeps two to three digits
        torch.testing.assert_close(one, other, rtol=0, atol=5e-4)
    assert grouped.state_dict()["state"].keys() == plain.state_dict()["state"].keys()
    plain.load_state_dict(grouped.state_dict())


def test_matrices_without_a_gradient_stay() -> None:
    moved, still = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    moved.grad = torch.eye(4)
    optimizer = GroupedMuon([moved, still], lr=0.1)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moved, torch.ones(4, 4))
    assert float(optimizer.step(lambda: torch.tensor(2.0))) == 2.0
