"""Seeds of random streams, one for each purpose, epoch, batch and process: a resumed run draws what it would have."""

from __future__ import annotations

__all__ = ["seed_of"]


def seed_of(*numbers: int) -> int:
    """Mix whole numbers (a seed, an epoch, a batch, a process) into one seed, the same on every machine."""
    return hash(numbers) % 2**63
