"""Models that ship with the package, and loading of any saved PRISM by name, path or repository."""

from __future__ import annotations

import copy
import json
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import EntryNotFoundError

from prism_plugin.defaults import DEFAULT_MODEL, DEFAULT_POTENTIAL
from prism_plugin.devices import find_device
from prism_plugin.errors import PrismError
from prism_plugin.matgl_bridge import BESIDE, MATGL_CACHE, load_model
from prism_plugin.model import PRISM

__all__ = [
    "BESIDE_MODEL",
    "COMMITTEE",
    "DEFAULT_MODEL",
    "DEFAULT_POTENTIAL",
    "MODEL_FILES",
    "RARE",
    "REPOSITORY",
    "ModelInfo",
    "available_models",
    "gives_energy",
    "hub_folder",
    "load",
    "load_on",
    "model_folder",
    "model_names",
    "models_in",
    "saved_metadata",
]

# The default model and two of a smaller recipe, for PRISMCalculator(COMMITTEE): their mean, and its energy_std.
COMMITTEE = (DEFAULT_MODEL, f"{DEFAULT_MODEL}-seed1", f"{DEFAULT_MODEL}-seed2")
RARE = 50  # fewer training crystals than this, and an element is called rare
_HERE = Path(__file__).parent
_LICENCE = "BSD-3-Clause; learned from Materials Project data, CC BY 4.0"  # unless its metadata say more
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # what matgl takes for one
_CLASSES = ("prism_plugin.model.PRISM", "prism_plugin.potential.PRISMPotential")
MODEL_FILES = ("model.json", "model.pt", "state.pt")
# What may lie beside them: what the model knows of its training crystals, and its card.
BESIDE_MODEL = (*[name for name, _ in BESIDE.values()], "README.md")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model that ships.

    Attributes:
        target: what it predicts.
        unit: of its predictions.
        mae: mean absolute error on the validation part, in this unit; of a potential that of the forces, eV/Å; of two
            classes the share of crystals taken for the other one.
        crystals: number of these crystals.
        elements: how many it knows.
        licence: of the weights.
    """

    target: str
    unit: str
    mae: float
    crystals: int
    elements: int
    licence: str


def available_models() -> dict[str, ModelInfo]:
    """Models that ship with the package, by name.

    Example:
        >>> available_models()["prism-mp2018-gap"].unit
        'eV'
    """
    return {name: _info(name) for name in model_names()}


def model_names() -> list[str]:
    """Names of the models that ship."""
    return sorted(folder.parent.name for folder in _HERE.glob("*/model.json"))


def _info(name: str) -> ModelInfo:
    kept = saved_metadata(name)
    settings, scores = kept["settings"], kept["scores"]["val"]
    elements = torch.load(_HERE / name / "model.pt", weights_only=True)["element_types"]
    if "accuracy" in scores:
        error = 1 - scores["accuracy"]
    elif "forces_mae" in scores:
        error = scores["forces_mae"]
    else:
        error = scores["mae"]
    licence = kept.get("licence", _LICENCE)
    return ModelInfo(settings["target"], settings["unit"], error, scores["crystals"], len(elements), licence)


def model_folder(model: str | Path) -> Path:
    """Where a model lies: the folder of a shipped one by its name, a given folder, or that of a downloaded one.

    Args:
        model: name, folder, or repository of the Hugging Face Hub; its files are kept where matgl keeps its own.

    Raises:
        TypeError: if ``model`` is neither a string nor a path.
        FileNotFoundError: if there is none such here, and none can be had.
    """
    if not isinstance(model, (str, Path)):
        raise TypeError(f"give the name or folder of a model, or a PRISM; got {type(model).__name__}")
    if str(model) in model_names():
        return _HERE / str(model)
    folder = Path(model)
    if folder.is_dir():
        return folder
    known = f"give the folder of a saved model or one of: {', '.join(model_names())}"
    # Where the first part of "a/b" is a folder, a path was meant, and nobody waits for a network.
    if not isinstance(model, str) or not REPOSITORY.fullmatch(model) or folder.parent.is_dir():
        raise FileNotFoundError(f"no model {str(model)!r}; {known}")
    try:
        return hub_folder(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no folder {model!r} is here, and {error}; {known}") from error


def hub_folder(repository: str) -> Path:
    """Where the files of a repository of the Hugging Face Hub lie, once they are downloaded.

    Raises:
        FileNotFoundError: if there is no such model, or it cannot be reached and no copy is kept.
    """
    is_there = _is_reachable()  # without a network the library tries for 20 s
    try:
        how: dict[str, Any] = {"cache_dir": str(MATGL_CACHE), "local_files_only": not is_there}
        paths = [Path(hf_hub_download(repository, file, **how)) for file in MODEL_FILES]
        for file in BESIDE_MODEL:
            with suppress(EntryNotFoundError):  # not every model knows its training crystals, or has a card
                hf_hub_download(repository, file, **how)
        return paths[0].parent
    except Exception as error:  # the libraries below have errors of many kinds, httpx's own among them
        reason = " ".join(str(error).split()) if is_there else "it cannot be reached, and no copy is kept"
        raise FileNotFoundError(f"no such model could be had from the Hugging Face Hub ({reason})") from error


def _is_reachable() -> bool:
    """Whether the Hub's name can be resolved, here or by a proxy."""
    try:
        return bool(getproxies()) or bool(socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443))
    except OSError:
        return False


def models_in(model: Any) -> list[Any]:
    """List what a user gave as a model or several, ``"committee"`` for :data:`COMMITTEE`."""
    given = list(model) if isinstance(model, (list, tuple)) else [model]
    return list(COMMITTEE) if given == ["committee"] else given


def load(model: str | Path = DEFAULT_MODEL) -> PRISM:
    """Load a PRISM in eval mode.

    Args:
        model: name of a model that ships with the package, the folder of a saved one, or ``"owner/name"`` of one on the
            Hugging Face Hub (``prism upload`` puts it there), which is kept where matgl keeps its own.

    Raises:
        TypeError: if ``model`` is none of these.
        FileNotFoundError: if there is no such model.
        ValueError: if the folder is no saved model, or one of another class.
    """
    folder = model_folder(model)
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise PrismError(
            f"{str(folder)!r} is no saved model: it lacks {', '.join(missing)}; give the folder that "
            "model.save(...) or prism train wrote (RUN/model)"
        )
    name = _saved_class(folder)
    if name not in _CLASSES:
        raise PrismError(f"{str(folder)!r} holds a {name}, not a PRISM; load it with matgl.load_model")
    try:
        loaded = load_model(folder)
    except (RuntimeError, ValueError) as error:  # all that matgl raises, whatever it met
        raise PrismError(f"the model in {str(folder)!r} is damaged: {error.__cause__ or error}") from error
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
        raise PrismError(f"unknown dtype {dtype!r}; choose one of: auto, {', '.join(_DTYPES)}")
    given = isinstance(model, PRISM)
    found = model if isinstance(model, PRISM) else load(model)
    place = found.device if given and device == "auto" else find_device(device)
    kind = _DTYPES.get(dtype, found.dtype)
    if kind not in _DTYPES.values():
        raise PrismError(f"the model is of {kind}; choose a dtype: {', '.join(_DTYPES)}")
    if given and ((found.device, found.dtype) != (place, kind) or any(part.training for part in found.modules())):
        found = copy.deepcopy(found)
    return found.to(place, kind).eval()


def gives_energy(model: PRISM) -> bool:
    """Whether the sum of a model's outputs over the atoms is an energy in eV."""
    fits = (model.unit, model.readout) in (("eV/atom", "mean"), ("eV", "sum"))
    return fits and model.task_type == "regression" and model.minimum is None


def saved_metadata(model: str | Path) -> dict[str, Any]:
    """What was saved beside a model: of a run of :func:`~prism_plugin.training.train` its settings and scores.

    Args:
        model: name of a model that ships with the package, or the folder of a saved one; it must be there.
    """
    folder = model_folder(model)
    kept = json.loads((folder / "model.json").read_text()).get("metadata")
    return kept if isinstance(kept, dict) else {}


def _saved_class(folder: Path) -> str:
    """Path of the class that a folder says it holds; matgl imports it."""
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return f"{described.get('@module')}.{described.get('@class')}"
    except (ValueError, AttributeError) as error:
        raise PrismError(f"{str(folder / 'model.json')!r} is damaged: {error}") from error
