"""Seeds of random streams, one for each purpose, epoch, batch and process: a resumed run draws what it would have."""

from __future__ import annotations

__all__ = ["seed_of"]


def seed_of(*numbers: int) -> int:
    """Mix whole numbers (a seed, an epoch, a batch, a process) into one seed.

    By Python's hash of a tuple of whole numbers, the same in every CPython of 64 bits (decisions #73).

    Example:
        >>> seed_of(0, 1, 2)
        2187946392326065592
    """
    return hash(numbers) % 2**63
