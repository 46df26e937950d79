"""`python -m tinyllm_lib.train`; leaves the traceback where `launch` finds it when it fails."""

import os
import sys

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from tinyllm_lib.data import utf8_output
from tinyllm_lib.train.config import parse_args
from tinyllm_lib.train.start import train


@record
def main() -> None:
    """Trains as the command line says."""
    utf8_output()  # a terminal that cannot show a sample must not end the run
    config = parse_args()
    if not config.data_path or not config.out_dir:
        raise SystemExit("tinyllm_lib.train: --data_path and --out_dir are needed; see --help.")
    train(config)
    if dist.is_initialized():
        # Else gloo's threads may abort a finished worker, about once in 25 runs. All is saved.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
