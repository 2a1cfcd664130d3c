"""Checkpoints that are whole or not there, and the newest whole one of a run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from prism_plugin.errors import PrismError, warn
from prism_plugin.files import replaced, storing, write_json

__all__ = ["CHECKPOINTS", "LAST", "WholeCheckpoints", "is_within_epoch", "newest_checkpoint", "read_checkpoint"]

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
_PREVIOUS = "previous.ckpt"
_DIGESTS = "digests.json"
_KEPT = 8  # digests; a run has three checkpoints


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, on the same file system, and renames it when it is on the disk.

    A killed process or a full disk leaves the checkpoint that was there. The one before stays as
    ``previous.ckpt``. The SHA-256 of what is written is kept first, by which a later run finds a damaged one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; Lightning calls this."""
        path = Path(path)
        with replaced(path) as aside:
            with storing(path):
                torch.save(checkpoint, aside)
            _keep_digest(path.parent, digest_of(aside))
            if path.name == LAST and path.exists():
                with replaced(path.with_name(_PREVIOUS)) as link:
                    os.link(path, link)


def digest_of(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path) -> list[str] | None:
    """Digests of what was written to a folder; None for a run of a version that kept none."""
    try:
        return [str(one) for one in json.loads((folder / _DIGESTS).read_text())]
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return []


def _keep_digest(folder: Path, digest: str) -> None:
    write_json(folder / _DIGESTS, [*(_digests(folder) or []), digest][-_KEPT:])


def newest_checkpoint(run: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Find the newest whole checkpoint of a run, and read it; says so where it is not the last one.

    Args:
        run: the run folder.

    Returns:
        Its path and what it holds; None if there is none at all.

    Raises:
        ValueError: if there are some, and none is whole.
    """
    folder = run / CHECKPOINTS
    digests = _digests(folder)
    reasons = []
    for name in (LAST, _PREVIOUS, "best.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            if digests is not None and digest_of(path) not in digests:
                raise PrismError(
                    f"the checkpoint {str(path)!r} is damaged (its SHA-256 is of no checkpoint of the run)"
                )
            saved = read_checkpoint(path)
        except PrismError as error:
            reasons.append(str(error))
            continue
        if reasons or name != LAST:
            why = f" ({reasons[0]})" if reasons else ""
            where = f"{'within' if is_within_epoch(saved) else 'after'} epoch {saved['epoch']}"
            warn(f"{LAST} is missing or damaged{why}: the run goes on {where}, from {name}")
        return path, saved
    if reasons:
        raise PrismError(f"{reasons[0]}; no other is whole: start again in another folder, or delete them")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; ValueError if it is damaged."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved["callbacks"], saved["state_dict"], int(saved["epoch"])
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise PrismError(f"the checkpoint {str(path)!r} is damaged ({error})") from error
    return saved


def is_within_epoch(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved between an epoch's steps, and not after its validation."""
    try:
        return not saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    except KeyError:  # it has no loops: what Lightning writes has them
        return False
