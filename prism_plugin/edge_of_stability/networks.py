"""Small smooth networks with a full batch of data: what rod flow is tried on.

Activations are smooth and the loss is half the mean squared error, so that a Hessian exists everywhere. Images are
scikit-learn's digits (8 x 8 pixels, in that package); PRISM's crystals are alloys computed by ASE's EMT, or the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prism_plugin.data import GraphDataset, Record
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.records import elements_of
from prism_plugin.errors import PrismError
from prism_plugin.model import PRISM

__all__ = ["NETWORKS", "Problem", "make_problem"]

IMAGES = 128
CRYSTALS = 32


@dataclass(frozen=True)
class Problem:
    """A network and its loss on all of its data.

    Attributes:
        name: of the network.
        model: in train mode.
        loss: computes the loss of the present weights; twice differentiable, always of the same data.
        description: for a picture's title.
    """

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]
    description: str


class _Attention(nn.Module):
    """Multi-head attention in plain products, which differentiate twice on every device."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among tokens, shape ``(images, tokens, dim)``."""
        images, tokens, dim = x.shape
        q, k, v = self.project(x).view(images, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (dim // self.heads) ** 0.5).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(images, tokens, dim))


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attention = _Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens, shape ``(images, tokens, dim)``."""
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class _ViT(nn.Module):
    """Vision transformer on 8 x 8 images in patches of 2 x 2."""

    def __init__(self, dim: int = 16, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, dim))
        self.blocks = nn.Sequential(*(_Block(dim, heads) for _ in range(depth)), nn.LayerNorm(dim))
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Ten numbers an image, from images of shape ``(images, 1, 8, 8)``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(tokens).mean(dim=1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _toy(seed: int, dtype: torch.dtype, records: Any) -> Problem:
    """The 241 numbers of the specification: tanh 5-12-12-1, on 16 samples of a smooth function."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(16, 5, generator=generator, dtype=torch.float64).to(dtype)
    y = 0.7 * ((2 * x[:, 0]).sin() * x[:, 1].cos())[:, None]
    layers = nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)
    return _regression("toy", nn.Sequential(*layers), x, y, dtype, "tanh 5-12-12-1, 16 samples")


def _digits(name: str, make: Callable[[], nn.Module]) -> Callable[..., Problem]:
    def problem(seed: int, dtype: torch.dtype, records: Any) -> Problem:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("the images need scikit-learn: pip install 'prism-plugin[examples]'") from error
        images, labels = load_digits(return_X_y=True)
        x = torch.as_tensor(images[:IMAGES] / 16 - 0.5, dtype=dtype).view(-1, 1, 8, 8)
        y = nn.functional.one_hot(torch.as_tensor(labels[:IMAGES]), 10).to(dtype)
        return _regression(name, make(), x, y, dtype, f"{IMAGES} digits")

    return problem


def _regression(name: str, model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype, data: str) -> Problem:
    """Half the squared error, summed over outputs and averaged over samples."""
    model = model.to(dtype)
    size = sum(parameter.numel() for parameter in model.parameters())

    def loss() -> Tensor:
        return 0.5 * (model(x) - y).square().sum() / len(x)

    return Problem(name, model, loss, f"{name}: {size:,} parameters, {data}")


def _prism(seed: int, dtype: torch.dtype, records: Sequence[Record] | None) -> Problem:
    """A PRISM of two layers with BatchNorm in train mode; targets in units of their spread."""
    if records is None:
        records = emt_alloys(CRYSTALS, seed=0)
    if len(records) < 2:
        raise PrismError(f"tracking PRISM needs at least two crystals, got {len(records)}")
    elements = tuple(elements_of(records))
    model = PRISM(elements, dim=16, num_layers=2, num_rbf=16, cutoff=4.0, cell_cutoff=8.0).to(dtype)
    dataset = GraphDataset(records, model.cutoff, model.cell_cutoff, progress=False)
    crystals, targets = dataset.__getitems__(range(len(dataset)))
    crystals, y = crystals.to(dtype=dtype), targets.to(dtype)
    y = (y - y.mean()) / (y.std() or 1.0)
    size = sum(parameter.numel() for parameter in model.parameters())

    def loss() -> Tensor:
        return 0.5 * (model(crystals) - y).square().mean()

    return Problem("prism", model, loss, f"prism: {size:,} parameters, {len(records)} crystals")


NETWORKS: dict[str, Callable[..., Problem]] = {
    "toy": _toy,
    "mlp": _digits("mlp", _mlp),
    "cnn": _digits("cnn", _cnn),
    "vit": _digits("vit", _ViT),
    "prism": _prism,
}


def make_problem(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float64, records: Sequence[Record] | None = None
) -> Problem:
    """Make a network with random weights, and its loss.

    Args:
        name: a key of :data:`NETWORKS`: ``"toy"``, ``"mlp"``, ``"cnn"``, ``"vit"``, ``"prism"``.
        seed: of the weights (and of the toy's data).
        dtype: float64 or float32.
        records: crystals and targets for ``"prism"``; None computes alloys with ASE's EMT.

    Raises:
        ValueError: if the name is unknown, or the crystals are too few.
        ImportError: if scikit-learn, which has the images, is missing.
    """
    if name not in NETWORKS:
        raise PrismError(f"unknown network {name!r}; choose one of: {', '.join(NETWORKS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name](seed, dtype, records)
