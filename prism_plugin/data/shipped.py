"""The data that the models in the package learned from: what files call a target, and which crystals validate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from prism_plugin.data.readers import read_records
from prism_plugin.data.records import Record
from prism_plugin.data.splits import split_records
from prism_plugin.errors import PrismError

__all__ = ["SHIPPED", "Source", "drawn_parts", "parts_of", "read_target"]


@dataclass(frozen=True)
class Source:
    """Where a target comes from.

    Attributes:
        key: what files call the value.
        unit: of the target.
        target: value -> target.
        positive: whether only values above 0 have a target.
    """

    key: str
    unit: str
    target: Callable[[float], float] = float
    positive: bool = False


SHIPPED: Mapping[str, Source] = MappingProxyType(
    {
        "formation_energy": Source("e_form", "eV/atom"),
        "band_gap": Source("gap_pbe", "eV"),
        "metal": Source("gap_pbe", "", lambda gap: float(gap == 0)),
        "log10_k_vrh": Source("K_vrh", "log10(GPa)", math.log10, positive=True),
        "log10_g_vrh": Source("G_vrh", "log10(GPa)", math.log10, positive=True),
    }
)


def read_target(path: str | Path, target: str) -> list[Record]:
    """Read crystals with one of the targets of :data:`SHIPPED`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no data file with that value, or a logarithm is of something that is not positive.
    """
    source = SHIPPED[target]
    records = read_records(path, source.key)
    bad = [record.name for record in records if source.positive and record.target <= 0]
    if bad:
        raise PrismError(
            f"{len(bad)} crystals have a {source.key} that is not positive, the first is {bad[0]!r}: remove them"
        )
    return [replace(record, target=source.target(record.target)) for record in records]


def parts_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the parts that the records name, or parts that are drawn where they name none."""
    return split_records(records) if records[0].split is not None else drawn_parts(records)


def drawn_parts(records: Sequence[Record], test: np.ndarray | None = None) -> dict[str, list[Record]]:
    """Give a tenth of the crystals that are not tested to the validation, drawn by a fixed seed.

    Args:
        records: the crystals.
        test: places of those to be tested among them.
    """
    order = np.random.default_rng(1).permutation(len(records))
    left = order if test is None else order[~np.isin(order, test)]
    tenth = len(left) // 10
    parts = {"train": left[tenth:], "val": left[:tenth], **({} if test is None else {"test": test})}
    return {name: [records[index] for index in some] for name, some in parts.items()}
