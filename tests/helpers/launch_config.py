"""Launches a run as a notebook does: launch_config.py CONFIG PROCESSES."""

import json
import sys
from pathlib import Path

from tinyllm_lib.launch import launch
from tinyllm_lib.train import TrainConfig

if __name__ == "__main__":
    launch(TrainConfig(**json.loads(Path(sys.argv[1]).read_text("utf-8"))), int(sys.argv[2]))
