"""Data sets, splits and augmentation."""

from __future__ import annotations

from prism_plugin.data.augmentation import rotate_batch
from prism_plugin.data.datasets import DATASETS, load_named
from prism_plugin.data.loading import EnergyLabels, GraphDataset, make_datasets, make_loader
from prism_plugin.data.readers import read_records
from prism_plugin.data.records import Record
from prism_plugin.data.splits import assign_splits, split_records
from prism_plugin.data.structure_files import read_structure_file
from prism_plugin.tasks import PES

__all__ = [
    "DATASETS",
    "PES",
    "EnergyLabels",
    "GraphDataset",
    "Record",
    "assign_splits",
    "load_named",
    "make_datasets",
    "make_loader",
    "read_records",
    "read_structure_file",
    "rotate_batch",
    "split_records",
]
