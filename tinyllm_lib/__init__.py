"""tinyllm_lib: from raw text to a chat model that you trained yourself.

A folder for each notebook: `data`, `tokenizer`, `dataset`, `model`, `generate`, `train`, `launch`,
`evaluate`, `share`, and `course` for what only the teaching needs (docs/contributing.md has the
table). Each folder's docstring lists what it offers; here only `data` is imported.
"""

import os
import sys

from tinyllm_lib.data import allowed_cpus

__version__ = "0.1.0"

# OpenMP reads both once, when torch is loaded, and child processes inherit them. Threads that spin
# while they wait make everything crawl as soon as another process is busy (docs/speed.md).
if "torch" not in sys.modules:  # else it is too late, and what does not hold is not said
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(allowed_cpus()))
