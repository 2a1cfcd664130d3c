"""The error of a user's making, and warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

import numpy as np

__all__ = ["OF_A_STRUCTURE", "PrismError", "warn"]


# What calls us on behalf of a user.
_BETWEEN = ("prism_plugin", "ase", "contextlib", "lightning", "matgl", "torch", "torch_sim")


class PrismError(ValueError):
    """What was given cannot be used; the message says what is wrong, what was given, what to do.

    It is a ``ValueError``. The command line prints its message and nothing else; any other ``ValueError`` is a fault of
    the program.
    """


# What a structure, or a library below that computes with it, can be at fault for.
OF_A_STRUCTURE = (PrismError, MemoryError, np.linalg.LinAlgError)


def warn(text: str) -> None:
    """Warn at the line that called into this package, through whatever lies between."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
