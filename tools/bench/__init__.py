"""How fast, and in how much memory: ours against a library or program that does the same, on this
machine.

`harness` is what all benches share; `data` measures notebooks 01 to 03 (`make bench-data`).
"""

import tinyllm_lib  # noqa: F401  before torch: it says how OpenMP's threads wait
