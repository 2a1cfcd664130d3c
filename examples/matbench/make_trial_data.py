"""Write alloys computed by ASE's EMT in the format of matbench_jdft2d: a trial of the whole road without a download.

636 crystals, as many as the task has, so that Matbench's own folds and validation work; the scores mean nothing.
"""

from __future__ import annotations

import sys

from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.named import write_matbench_file

write_matbench_file("matbench_jdft2d", emt_alloys(636), sys.argv[1])
print(f"636 alloys in the format of matbench_jdft2d: {sys.argv[1]}")
