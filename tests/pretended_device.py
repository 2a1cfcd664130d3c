"""A device that is not there: real numbers on the CPU, in tensors that say they are elsewhere.

What a GPU refuses or waits for is so seen on a machine without one: operations on tensors of two devices, tensors made
without a device, and every answer that the host must know. Used as FakeTensor is in torch, but with numbers.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

PACKAGE = Path(__file__).parents[1]
ELSEWHERE = torch.device("cuda:0")
# Their answers, or the lengths of these, are known to the device alone; the host waits for it.
_WAITS = ("_local_scalar_dense", "nonzero", "_unique", "unique_", "bincount", "masked_select", "equal", "is_nonzero")
_BY_MASK = ("index", "index_put", "index_put_")  # of which the mask's length must be known
_PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "__matmul__", "__rmatmul__")
_BETWEEN_DEVICES = ("copy_", "_to_copy")


class There(Tensor):
    """A tensor that says it is on :data:`ELSEWHERE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # what torch itself sees: a device whose gradients it computes in the caller's thread
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return ELSEWHERE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, device=self.device)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} outside of PretendedDevice()")


class _Autocast(TorchFunctionMode):
    """What CUDA's autocast does to products: torch's own goes by a device that must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.shortened = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        tensors = [one for one in tree_flatten((args, kwargs or {}))[0] if isinstance(one, There)]
        if name in _PRODUCTS and tensors and torch.is_autocast_enabled("cuda"):
            self.shortened += 1
            short = torch.get_autocast_dtype("cuda")
            args, kwargs = tree_map_only(
                There, lambda one: one.to(short) if one.dtype == torch.float32 else one, (args, kwargs or {})
            )
        return function(*args, **(kwargs or {}))


class PretendedDevice(TorchDispatchMode):
    """Inside, CUDA seems to be here.

    Attributes:
        waits: how often the host waited for the device, by operation and by the place in the package.
        mixed: operations on tensors of two devices, and sums over processes of tensors on the host: a GPU refuses both.
        sums: how often processes waited for each other, by operation and place.
        autocast: counts the products that were shortened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.mixed: Counter[tuple[str, str]] = Counter()
        self.sums: Counter[tuple[str, str]] = Counter()
        self.autocast = _Autocast()
        self._patches = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        self._patches.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        self._patches.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        self._patches.setattr(torch.cuda, "_lazy_init", lambda: None)
        self._patches.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        self._patches.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
        self._patches.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
        make = torch.tensor  # copies to the device where no mode sees it
        self._patches.setattr(
            torch, "tensor", lambda *given, device=None, **others: make(*given, **others).to(device or "cpu")
        )
        self.autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.autocast.__exit__(*raised)
        self._patches.undo()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(function).split(".")[1]
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        there = any(isinstance(one, There) for one in tensors)
        if str(function).startswith("c10d."):
            self.sums[name, _place()] += 1
            if not all(isinstance(one, There) for one in tensors):  # NCCL knows tensors on GPUs only
                self.mixed[name, _place()] += 1
            plain = tree_map_only(There, lambda one: one.held, (args, kwargs))
            return function(*plain[0], **plain[1])
        if there and name not in _BETWEEN_DEVICES and any(not isinstance(one, There) and one.dim() for one in tensors):
            self.mixed[name, _place()] += 1
        goal = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        leaves = goal is not None and goal.type == "cpu"
        waits = name.startswith(_WAITS) or (name == "_to_copy" and leaves)
        waits |= name in _BY_MASK and any(one.dtype == torch.bool and one.dim() for one in tensors[1:])
        waits |= name == "repeat_interleave" and kwargs.get("output_size") is None
        waits |= name == "copy_" and len({isinstance(one, There) for one in tensors}) > 1 and True not in args[2:]
        comes = goal is not None and goal.type == "cuda" and name == "_to_copy" and not there
        if (there and waits) or (comes and not kwargs.get("non_blocking")):
            self.waits[name, _place()] += 1
        if goal is not None and goal.type in ("cuda", "meta"):
            kwargs["device"], there = torch.device("cpu"), True
        elif leaves:
            there = False
        plain = tree_map_only(There, lambda one: one.held, (args, kwargs))
        answer = function(*plain[0], **plain[1])
        if there:
            answer = tree_map_only(Tensor, There, answer)
        return return_and_correct_aliasing(function, args, kwargs, answer) if there and tensors else answer


def moved(model: nn.Module) -> nn.Module:
    """Put a model's weights and buffers elsewhere, in place; its :meth:`~torch.nn.Module.to` cannot."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(There(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = There(buffer)
    return model


def back(tensor: Tensor) -> Tensor:
    """Look at the numbers of a tensor, wherever it is; nothing is counted."""
    return tensor.held if isinstance(tensor, There) else tensor


def _place() -> str:
    """Name the innermost line of the package that is being computed."""
    inside = [frame for frame in traceback.extract_stack() if "/prism_plugin/" in frame.filename]
    inside = [frame for frame in inside if ".venv" not in frame.filename]
    return f"{Path(inside[-1].filename).relative_to(PACKAGE)}:{inside[-1].lineno}" if inside else "elsewhere"
