"""Write alloys computed by ASE's EMT in the format of matbench_jdft2d: a trial of the whole road without a download.

636 crystals, as many as the task has, so that Matbench's own folds and validation work; the scores mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.matbench_files import write_matbench_file

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("file", type=Path, help="where it goes, for example trial.json.gz; it is compressed by gzip")
path = parser.parse_args().file
if path.exists():
    sys.exit(f"error: {path} exists")
try:
    write_matbench_file("matbench_jdft2d", emt_alloys(636), path)
except OSError as error:
    sys.exit(f"error: {path} cannot be written: {error}")
print(f"636 alloys in the format of matbench_jdft2d: {path}")
