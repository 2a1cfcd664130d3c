"""Fixtures: crystals of every awkward kind, small models, and the data beside the checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matgl
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import write
from matplotlib.figure import Figure

from prism_plugin import PRISM, PRISMPotential
from prism_plugin.data.emt_alloys import emt_alloys
from tests.processes import empty_picture

_savefig = Figure.savefig
_drawn = False


def _savefig_if_looked_at(figure: Figure, path: object, *arguments: object, **named: object) -> None:
    """Drawing takes longer than a small training: pictures are drawn in tests that look at them, else empty files."""
    if _drawn:
        _savefig(figure, path, *arguments, **named)
    else:
        empty_picture(figure, path)


Figure.savefig = _savefig_if_looked_at


torch.set_num_threads(1)  # the models are small: threads would only wait for each other

SHARED = Path(__file__).parents[2] / "shared"


@contextmanager
def drawing() -> Iterator[None]:
    """Draw pictures within the block."""
    global _drawn
    _drawn, before = True, _drawn
    try:
        yield
    finally:
        _drawn = before


@pytest.fixture
def pictures() -> Iterator[None]:
    """Draw pictures in this test, not in fixtures that others share."""
    with drawing():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real crystals beside the checkout; absent in a user's clone, required in CI."""
    folder = SHARED / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI needs ../shared/data beside the checkout")
        pytest.skip("../shared/data is not here: real crystals are not part of the project")
    return folder


def alloy_file(folder: Path, count: int) -> Path:
    """Write alloys with their formation energies as ``e`` to a file of a folder."""
    frames = []
    for record in emt_alloys(count):
        record.atoms.info["e"] = record.target
        frames.append(record.atoms)
    write(folder / "alloys.extxyz", frames)
    return folder / "alloys.extxyz"


def crystal_zoo() -> dict[str, Atoms]:
    """Structures by name: cubic, skewed, tiny, slab, wire, molecule, one atom, atoms outside the cell."""
    rng = np.random.default_rng(7)
    skewed = Atoms(
        "LiO2", scaled_positions=rng.random((3, 3)), cell=[[3.1, 0, 0], [5.2, 3.3, 0], [-6.1, 4.4, 3.6]], pbc=True
    )
    low = Atoms("SiO2Na", positions=rng.random((4, 3)) * 4, cell=rng.normal(size=(3, 3)) + 4 * np.eye(3), pbc=True)
    outside = low.copy()
    outside.positions += rng.integers(-3, 4, size=(4, 3)) @ outside.cell.array
    wire = Atoms(
        "C2H2", positions=[[0, 0, 0], [1.3, 0.2, 0], [0.1, 1.1, 0], [1.2, -0.9, 0.1]], cell=[2.5, 0, 0], pbc=[1, 0, 0]
    )
    tiny = Atoms("H", cell=[[0.9, 0, 0], [0.2, 1.0, 0], [0.1, 0.3, 1.1]], pbc=True)
    slab = fcc111("Al", (2, 1, 2), orthogonal=False)
    slab.pbc = [True, True, False]
    return {
        "rocksalt": bulk("NaCl", "rocksalt", a=5.64),
        "cesium chloride": bulk("CsCl", "cesiumchloride", a=4.12),
        "skewed": skewed,
        "low symmetry": low,
        "outside the cell": outside,
        "slab": slab,
        "wire": wire,
        "tiny cell": tiny,
        "one atom": bulk("Cu", "fcc", a=3.6),
        "molecule": molecule("CH3OH"),
        "isolated atom": Atoms("Ar"),
        "far apart": Atoms("ArNe", positions=[[0, 0, 0], [9, 0, 0]], cell=[20, 20, 20], pbc=True),
    }


@pytest.fixture(params=list(crystal_zoo()))
def structure(request: pytest.FixtureRequest) -> Atoms:
    """Each of the zoo in turn."""
    return crystal_zoo()[request.param]


# Ends of the names of weights that begin at zero, beside biases.
ZERO_AT_START = ("out.weight", "logit.2.weight")


def small_model(**arguments: object) -> PRISM:
    """A small float64 PRISM in eval mode whose every weight and running statistic is random."""
    torch.manual_seed(3)
    settings = {"dim": 8, "num_layers": 2, "num_rbf": 6, "cutoff": 3.2, "cell_cutoff": 6.0, "mean": -1.3, "std": 0.7}
    model = PRISM(**{**settings, **arguments}).double()
    generator = torch.Generator().manual_seed(5)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name and name.endswith(("weight", "running_var")):
            tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
        elif name.endswith(("bias", "running_mean", "logits", "_scale", *ZERO_AT_START)):
            tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
        elif name.endswith("weight") and "embedding" not in name:
            tensor.data.mul_(2.5)  # so that the output depends on the geometry by much more than a tolerance
    return model.eval()


@pytest.fixture
def model() -> PRISM:
    """A small float64 model with all four experts."""
    return small_model()


@pytest.fixture
def float64(monkeypatch):
    """Matgl builds its graphs in its own default dtype; switch it and torch's for one test.

    Where NVIDIA's search for neighbors is installed, matgl takes that, which knows float32 only.
    """
    for name in ("ase", "pymatgen"):
        monkeypatch.setattr(f"matgl.ext.{name}._alchmtk_available", False)
    matgl.set_default_dtype("float", 64)
    yield
    matgl.set_default_dtype("float", 32)


SMALL_POTENTIAL = {"dim": 16, "num_rbf": 12, "cutoff": 4.0, "cell_cutoff": 6.0}


def random_potential(elements: tuple[str, ...] | None = None, **arguments: object) -> PRISMPotential:
    """A small float64 potential in eval mode, with forces of the order of 1 eV/Å."""
    torch.manual_seed(1)
    refs = None if elements is None else tuple(-1.5 - 0.5 * number for number in range(len(elements)))
    given = {**SMALL_POTENTIAL, "similarity_cutoff": 3.0, "std": 1.3, **arguments}
    model = PRISMPotential(elements, element_refs=refs, **given).double()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
        elif "embedding" not in name:
            tensor.data.mul_(2.0)
    return model.eval()
