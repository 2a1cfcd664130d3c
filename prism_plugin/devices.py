"""Names of devices -> torch devices, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prism_plugin.errors import PrismError

__all__ = ["find_device", "send"]


def send(numbers: Tensor | np.ndarray | Sequence[int], device: torch.device | str | None) -> Tensor:
    """Copy numbers, if they are of the host, to a device; nothing waits for it. None leaves a tensor where it is.

    Example:
        >>> send([3, 8], "cpu")
        tensor([3, 8])
    """
    tensor = numbers if isinstance(numbers, Tensor) else torch.from_numpy(np.ascontiguousarray(numbers))
    if device is None or torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # from other memory the copy would wait for the device


def find_device(device: str) -> torch.device:
    """Turn a name into a device that is there.

    Args:
        device: ``"auto"`` (CUDA where there is one, else CPU) or a torch device.

    Raises:
        ValueError: if there is no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise PrismError(f"unknown device {device!r}; choose one of: auto, cpu, cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise PrismError("no CUDA device is here, or torch was built without CUDA; use device 'cpu' or 'auto'")
    try:
        torch.ones(1, device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device raises its own
        raise PrismError(f"the device {device!r} is not here: {str(error).splitlines()[0]}") from error
    return place
