"""Make a Matbench submission of finished runs: examples/matbench/assemble.py runs/matbench --authors "A. Author"."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prism_plugin.matbench import assemble

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("folders", nargs="+", help="folders of examples/matbench/run.py, or one that holds them")
parser.add_argument("--authors", required=True, help="names, for info.json")
parser.add_argument("--algorithm", default="PRISM", help="short name, unique on the leaderboard")
parser.add_argument("--notes", default="", help="free text for info.json: hardware, what is special")
parser.add_argument("--out", type=Path, default=Path("submission"), help="gets the submission folder and the pictures")
parser.add_argument("--allow-local-data", action="store_true", help="take runs on other data than the official ones")
given = vars(parser.parse_args())

try:
    print(assemble(**given, scripts=[Path(__file__).with_name("run.py"), __file__]))
except (ValueError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
print(f"\nsubmission folder and pictures: {given['out']}")
