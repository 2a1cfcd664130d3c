"""Tracking experiments: rod flow and stable flow beside real runs of nine optimizers, on networks of this package."""

from __future__ import annotations

from prism_plugin.edge_of_stability.networks import NETWORKS, Problem, make_problem
from prism_plugin.edge_of_stability.tracker import TrackingSettings, track

__all__ = ["NETWORKS", "Problem", "TrackingSettings", "make_problem", "track"]
