"""What imports of other packages need: no garbage collector, and plain numbers in the environment."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_number_of_threads", "uncollected"]


def one_number_of_threads() -> None:
    """Tell numexpr, which pandas imports, the first of ``OMP_NUM_THREADS=4,1``: it reads one number and else fails."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    first = re.match(r"\s*(\d+)", threads)
    if first and not threads.strip().isdecimal():
        os.environ.setdefault("NUMEXPR_NUM_THREADS", first[1])


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch the collector off while the block runs: it takes a fifth of the time of large imports."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
