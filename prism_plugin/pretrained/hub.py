"""Models to the Hugging Face Hub and from it, as folders that ``load`` and ``matgl.load_model`` read."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from prism_plugin.errors import PrismError
from prism_plugin.pretrained import BESIDE_MODEL, MODEL_FILES, REPOSITORY, hub_folder, load, model_folder

__all__ = ["download", "upload"]

_CARD = "README.md"
# What the Hub sorts models by. It names no licence: that is its owner's to choose.
_HEAD = "---\nlibrary_name: prism-plugin\ntags:\n- materials-science\n- crystals\n- matgl\n---\n"


def upload(model: str | Path, repository: str, private: bool = False) -> str:
    """Put a saved model on the Hub, with its card and what it knows of its training crystals.

    Args:
        model: folder of a saved model, such as ``RUN/model``, or the name of one that ships.
        repository: ``"owner/name"``; made if it is missing.
        private: whether only its owner may see a repository that is made.

    Returns:
        The address of the repository.

    Raises:
        ValueError: if the model is damaged, has no card, or ``repository`` is no such name.
        OSError: if the Hub refuses, or cannot be reached.
    """
    _check_name(repository)
    folder = model_folder(model)
    load(folder)
    card = folder / _CARD
    if not card.is_file():
        raise PrismError(
            f"{str(folder)!r} has no {_CARD}: whoever finds the model needs to know what it predicts, how well, and "
            "under which licence; write it (a run's model folder has one to fill in)"
        )
    text = card.read_text(encoding="utf-8")
    content = (text if text.startswith("---\n") else _HEAD + text).encode()
    files = [name for name in (*MODEL_FILES, *BESIDE_MODEL) if (folder / name).is_file()]
    operations = [CommitOperationAdd(name, content if name == _CARD else folder / name) for name in files]
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, operations, commit_message="Upload a model of prism-plugin")
    except Exception as error:  # the libraries below have errors of many kinds, httpx's own among them
        reason = " ".join(str(error).split())
        raise OSError(
            f"the model was not uploaded to {repository!r} ({reason}); log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write"
        ) from error
    return str(address)


def download(repository: str, folder: str | Path) -> Path:
    """Fetch a model from the Hub into a folder.

    Args:
        repository: ``"owner/name"``.
        folder: where to; it must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder has files.
        FileNotFoundError: if there is no such model, or no network and no copy.
        ValueError: if ``repository`` is no such name, or holds no PRISM.
    """
    _check_name(repository)
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{str(folder)!r} is there already: give a new folder")
    source = hub_folder(repository)
    load(source)
    target.mkdir(parents=True, exist_ok=True)
    for name in (*MODEL_FILES, *BESIDE_MODEL):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target


def _check_name(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise PrismError(f"{repository!r} is no repository of the Hugging Face Hub; give owner/name")
