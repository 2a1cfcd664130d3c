"""Dynamic batch size: how many micro-batches an update accumulates, decided once a cycle from its losses.

Source: ELRA paper, section 3.3. Independent of the optimizer: it maps mean and spread of a cycle's losses to the
number of micro-batches.
"""

from __future__ import annotations

from typing import Any

from prism_plugin.errors import PrismError

__all__ = ["BatchSizeControl"]

FACTOR = 1.5


class BatchSizeControl:
    """Raise the batch size when the loss stops falling for its noise; every third change lowers it (cascade).

    Args:
        initial: micro-batches per update at the start, m0.
        largest: micro-batches per update at most.

    Raises:
        ValueError: unless ``1 <= initial <= largest``.

    Example:
        >>> control = BatchSizeControl(initial=2, largest=100)
        >>> control.update(mean=1.0, sigma=0.1)  # the first cycle has nothing to compare with
        2
        >>> control.update(mean=1.1, sigma=0.1)  # risen by more than sigma / 10
        3
    """

    def __init__(self, initial: int = 1, largest: int = 2**20) -> None:
        if not isinstance(initial, int) or not isinstance(largest, int) or not 1 <= initial <= largest:
            raise PrismError(
                f"initial and largest must be whole numbers with 1 <= initial <= largest, got {initial!r}, {largest!r}"
            )
        self.initial = initial
        self.largest = largest
        self.multiple = float(initial)
        self.changes = 0
        self.means: list[float] = []

    @property
    def accumulate(self) -> int:
        """Micro-batches per update: the multiple m, which 1.5 makes fractional, rounded (halves up)."""
        return min(int(self.multiple + 0.5), self.largest)

    def update(self, mean: float, sigma: float) -> int:
        """Read a cycle's mean loss and its standard deviation; give the micro-batches per update of the next cycle."""
        risen = bool(self.means) and mean > self.means[-1] + sigma / 10
        noisy = mean > 0 and sigma / mean > 0.5
        stuck = len(self.means) >= 3 and self.means[-3] < min(mean, self.means[-1], self.means[-2])
        self.means = [*self.means, mean][-3:]
        if risen or noisy or stuck:
            self.changes += 1
            factor = 1 / FACTOR if self.changes % 3 == 0 else FACTOR
            self.multiple = min(max(self.multiple * factor, 1.0), float(self.largest))
        return self.accumulate

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {"multiple": self.multiple, "changes": self.changes, "means": list(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.multiple, self.changes, self.means = state["multiple"], state["changes"], list(state["means"])
