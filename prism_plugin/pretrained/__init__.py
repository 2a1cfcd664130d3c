"""Models that ship with the package, and loading of any saved PRISM by name or path."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import matgl
import torch

from prism_plugin.devices import find_device
from prism_plugin.model import PRISM

__all__ = [
    "DEFAULT_MODEL",
    "available_models",
    "gives_energy",
    "load_on",
    "load_prism",
    "model_folder",
    "saved_metadata",
]

DEFAULT_MODEL = "prism-mp2018-eform"
_HERE = Path(__file__).parent
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_FILES = ("model.json", "model.pt", "state.pt")


def available_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(folder.parent.name for folder in _HERE.glob("*/model.json"))


def model_folder(model: str | Path) -> Path:
    """Where a model lies: the folder of a shipped one by its name, else what was given."""
    return _HERE / str(model) if str(model) in available_models() else Path(model)


def load_prism(model: str | Path = DEFAULT_MODEL) -> PRISM:
    """Load a PRISM in eval mode.

    Args:
        model: name of a model that ships with the package, or the folder of a saved one.

    Raises:
        TypeError: if ``model`` is neither.
        FileNotFoundError: if there is no such name or folder.
        ValueError: if the folder is no saved model, or one of another class.
    """
    if not isinstance(model, (str, Path)):
        raise TypeError(f"give the name or folder of a model, or a PRISM; got {type(model).__name__}")
    folder = model_folder(model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no model {str(model)!r}; give the folder of a saved model or one of: {', '.join(available_models())}"
        )
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{str(folder)!r} is no saved model: it lacks {', '.join(missing)}; give the folder that "
            "model.save(...) or prism train wrote (RUN/model)"
        )
    name = _saved_class(folder)
    if name not in ("PRISM", "PRISMPotential"):
        raise ValueError(f"{str(folder)!r} holds a {name}, not a PRISM; load it with matgl.load_model")
    try:
        loaded = matgl.load_model(folder)
    except (RuntimeError, ValueError) as error:  # all that matgl raises, whatever it met
        raise ValueError(f"the model in {str(folder)!r} is damaged: {error.__cause__ or error}") from error
    loaded.eval()
    return loaded


def load_on(model: str | Path | PRISM, device: str = "auto", dtype: str = "auto") -> PRISM:
    """Load a model on a device and in a dtype, or take one that was given.

    Args:
        model: name of a shipped model, folder of a saved one, or a PRISM.
        device: ``"auto"`` (CUDA where there is one, else CPU; a given PRISM stays where it is) or a torch device.
        dtype: ``"auto"`` (that of the model), ``"float32"`` or ``"float64"``; a given PRISM of another dtype or device,
            or in train mode, is copied, not changed.

    Raises:
        TypeError: if ``model`` is none of these.
        FileNotFoundError: if there is no such name or folder.
        ValueError: if the folder is no saved PRISM, or device or dtype is unknown.
    """
    if dtype not in ("auto", *_DTYPES):
        raise ValueError(f"unknown dtype {dtype!r}; choose one of: auto, {', '.join(_DTYPES)}")
    given = isinstance(model, PRISM)
    found = model if isinstance(model, PRISM) else load_prism(model)
    place = found.device if given and device == "auto" else find_device(device)
    kind = _DTYPES.get(dtype, found.dtype)
    if kind not in _DTYPES.values():
        raise ValueError(f"the model is of {kind}; choose a dtype: {', '.join(_DTYPES)}")
    if given and ((found.device, found.dtype) != (place, kind) or any(part.training for part in found.modules())):
        found = copy.deepcopy(found)
    return found.to(place, kind).eval()


def gives_energy(model: PRISM) -> bool:
    """Whether the sum of a model's outputs over the atoms is an energy in eV."""
    fits = (model.unit, model.readout) in (("eV/atom", "mean"), ("eV", "sum"))
    return fits and model.task_type == "regression"


def saved_metadata(model: str | Path) -> dict[str, Any]:
    """What was saved beside a model: of a run of :func:`~prism_plugin.training.train` its settings and scores.

    Args:
        model: name of a model that ships with the package, or the folder of a saved one; it must be there.
    """
    folder = model_folder(model)
    return json.loads((folder / "model.json").read_text()).get("metadata") or {}


def _saved_class(folder: Path) -> Any:
    try:
        return json.loads((folder / "model.json").read_text()).get("@class")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{str(folder / 'model.json')!r} is damaged: {error}") from error
