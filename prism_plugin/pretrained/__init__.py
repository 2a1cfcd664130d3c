"""Models that ship with the package, and loading of any saved PRISM by name or path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matgl

from prism_plugin.model import PRISM

__all__ = ["DEFAULT_MODEL", "available_models", "load_prism", "model_folder", "saved_metadata"]

DEFAULT_MODEL = "prism-mp2018-eform"
_HERE = Path(__file__).parent
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
    if name != "PRISM":
        raise ValueError(f"{str(folder)!r} holds a {name}, not a PRISM; load it with matgl.load_model")
    try:
        loaded = matgl.load_model(folder)
    except (RuntimeError, ValueError) as error:  # all that matgl raises, whatever it met
        raise ValueError(f"the model in {str(folder)!r} is damaged: {error.__cause__ or error}") from error
    loaded.eval()
    return loaded


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
