"""Records -> train, validation and test parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prism_plugin.data.records import Record
from prism_plugin.errors import PrismError, warn
from prism_plugin.files import open_text

__all__ = ["SPLITS", "assign_splits", "split_records"]

SPLITS = ("train", "val", "test")


def assign_splits(records: Sequence[Record], path: str | Path) -> list[Record]:
    """Assign records to the parts that a JSON file lists by name: ``{"train": [...], "val": [...], "test": [...]}``.

    The keys may also be ``id_train``, ``id_val`` and ``id_test``, as ALIGNN and its kin write them; ``test`` may be
    missing. Records that are not listed are left out.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such JSON, lists a name twice, or one that no record has.
    """
    try:
        with open_text(path) as file:
            listed = json.load(file, object_pairs_hook=_once)
        names = [(str(name), part) for part in SPLITS for name in listed.get(part, listed.get(f"id_{part}", []))]
    except PrismError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PrismError(f"{path}: no JSON object with lists of names under {', '.join(SPLITS)}: {error}") from error
    part_of = dict(names)
    if len(names) > len(part_of):
        raise PrismError(f"{path}: {len(names) - len(part_of)} names are listed twice; a crystal has one part")
    unknown = sorted(part_of.keys() - {record.name for record in records})
    if unknown:
        raise PrismError(f"{path}: {len(unknown)} names are in no record, for example {', '.join(unknown[:3])}")
    return [replace(record, split=part_of[record.name]) for record in records if record.name in part_of]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the object of a file of splits: each part once, and nothing else."""
    parts = [key.removeprefix("id_") for key, _ in pairs]
    unknown = [key for (key, _), part in zip(pairs, parts, strict=True) if part not in SPLITS]
    if unknown:
        raise PrismError(f"the splits have an unknown part {unknown[0]!r}; choose one of: {', '.join(SPLITS)}")
    if len(set(parts)) < len(parts) or not all(isinstance(names, list) for _, names in pairs):
        raise PrismError("the splits must be lists of names, each part once")
    return dict(pairs)


def split_records(
    records: Sequence[Record], seed: int = 0, fractions: tuple[float, float] = (0.8, 0.1)
) -> dict[str, list[Record]]:
    """Divide records into train, val and test.

    Args:
        records: if all of them name their split, that is taken.
        seed: of the shuffle, where none does.
        fractions: parts of train and val; the rest is test. A crystal with an element that no training crystal has
            goes to train, whatever its turn; where a name or a crystal (to 1e-4 Å, as it is written) comes again, all
            are in one part.

    Raises:
        ValueError: if only some records name a split, a name is in two parts, or train or val would be empty. A crystal
            that is in two parts, or comes again, is warned of.
    """
    if seed < 0:
        raise PrismError(f"a seed is a whole number of at least 0, got {seed}")
    crystals = [_as_written(record.atoms) for record in records]
    named = sum(record.split is not None for record in records)
    if 0 < named < len(records):
        raise PrismError(f"{len(records) - named} of {len(records)} rows name no split; let all name one, or none")
    parts: dict[str, list[Record]] = {split: [] for split in SPLITS}
    if named:
        for record in records:
            parts[str(record.split)].append(record)
    else:
        order = np.random.default_rng(seed).permutation(len(records))
        train = int(fractions[0] * len(records))
        val = max(1, int(fractions[1] * len(records)))
        known: set[str] = set()
        placed = 0
        keys = ((record.name, crystal) for record, crystal in zip(records, crystals, strict=True))
        for group in _groups(order, keys) if records else ():
            some = [records[index] for index in group]
            elements = {symbol for record in some for symbol in record.atoms.symbols}
            split = "train" if placed < train else "val" if placed < train + val else "test"
            placed += len(some)
            if not elements <= known:
                split = "train"  # what no training crystal has, no model learns
            if split == "train":
                known |= elements
            parts[split] += some
    _check_names(parts)
    _warn_of_twins(parts, {id(record): crystal for record, crystal in zip(records, crystals, strict=True)})
    for split in ("train", "val"):
        if not parts[split]:
            remedy = (
                f"no row has the split {split!r}; mark some, or name no split at all"
                if named
                else "give more data, or names of their own where many have one: what comes again stays in one part"
            )
            raise PrismError(f"the {split} part is empty ({len(records)} crystals in all): {remedy}")
    return parts


def _groups(order: Iterable[int], keys: Iterable[tuple[str, bytes]]) -> list[list[int]]:
    """Put what has a key in common together, in the order of the first of each."""
    number: dict[str | bytes, int] = {}
    links = [(index, number.setdefault(key, len(number))) for index, pair in enumerate(keys) for key in pair]
    indices, of_keys = np.array(links).T
    size = 1 + indices[-1] + len(number)
    graph = coo_array((np.ones(len(links)), (indices, of_keys + 1 + indices[-1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(component[index], []).append(index)
    return list(groups.values())


def _as_written(atoms: Atoms) -> bytes:
    """Return what crystals that are written alike have in common."""
    numbers = (np.round(array, 4) + 0.0 for array in (atoms.cell.array, atoms.positions))
    parts = (atoms.numbers.astype(np.int64), atoms.pbc, *numbers)
    return blake2b(b"".join(array.tobytes() for array in parts), digest_size=16).digest()


def _warn_of_twins(parts: Mapping[str, Sequence[Record]], crystal_of: Mapping[int, bytes]) -> None:
    """Warn of crystals that come again, in one part or in two."""
    first: dict[bytes, tuple[str, str]] = {}
    within, across = [], []
    for part, records in parts.items():
        for record in records:
            other, where = first.setdefault(crystal_of[id(record)], (record.name, part))
            if where != part:
                across.append(f"{record.name!r} of the {part} part is {other!r} of the {where} part")
            elif other != record.name:
                within.append(f"{record.name!r} is {other!r}")
    if across:
        warn(f"{len(across)} crystals are in two parts ({across[0]}): a model is scored on what it has learned")
    if within:
        warn(f"{len(within)} crystals come again within a part ({within[0]}), and count as often")


def _check_names(parts: Mapping[str, Sequence[Record]]) -> None:
    """Raise ValueError if a name is in two parts, by which a model would be scored on what it has learned."""
    part_of: dict[str, str] = {}
    for part, records in parts.items():
        for record in records:
            if part_of.setdefault(record.name, part) != part:
                raise PrismError(
                    f"the name {record.name!r} is in the parts {part_of[record.name]} and {part}: give each crystal a "
                    "name of its own, or name the parts (a key split, or --splits)"
                )
