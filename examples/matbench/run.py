"""Train a Matbench task on its official folds: examples/matbench/run.py --task matbench_jdft2d --out runs/matbench.

The same command goes on after an interruption. Then: examples/matbench/assemble.py runs/matbench --authors "...".
What is not given of how to train is that of the preset, whatever default an option names.
"""

from __future__ import annotations

import argparse
import sys

from prism_plugin.commands.options import table_values
from prism_plugin.commands.train import add_training_options
from prism_plugin.matbench import TASKS, TaskRun

parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
add = parser.add_argument
add("--task", required=True, help=", ".join(TASKS))
add("--fold", type=int, nargs="+", default=range(5), help="some of the five (default: all)")
add("--seeds", type=int, nargs="+", default=[0], help="trainings of each fold, an ensemble if several (default: 0)")
add("--out", default="runs/matbench", help="gets a folder for each configuration (default: runs/matbench)")
add("--data", default=None, help="a file in the task's format, in place of the official one")
add(
    "--dry-run",
    action="store_true",
    default=False,
    help="two epochs on a few crystals; says what all would take, keeps nothing",
)
# What is not given below is the preset's.
add("--preset", help="an experiment of prism presets (default: the task's own, else matbench/mp_e_form)")
add("--device", help="auto, cpu or cuda (default: auto)")
add("--cache", help="folder for graphs (default: that of the downloads; with --data none)")
add_training_options(parser)
arguments = vars(parser.parse_args())
task, folds, seeds, out, data, dry_run = (
    arguments.pop(name) for name in ("task", "fold", "seeds", "out", "data", "dry_run")
)
try:
    run = TaskRun.prepare(task, table_values(arguments), data)
    if dry_run:
        print(run.try_out(folds, seeds))
    else:
        print(f"folder: {run.run(out, folds, seeds)}")
except (ValueError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
except KeyboardInterrupt:
    sys.exit("interrupted; the same command goes on")
