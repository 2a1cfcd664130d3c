"""Matbench v0.1: training on its official folds, and submissions in its format."""

from __future__ import annotations

from prism_plugin.matbench.official import TASKS
from prism_plugin.matbench.submission import assemble
from prism_plugin.matbench.task_run import TaskRun

__all__ = ["TASKS", "TaskRun", "assemble"]
