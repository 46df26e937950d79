"""What each rank of `launch_function` runs: `python -m tinyllm_lib.launch.call CALL RESULT`."""

import io
import os
import sys
from contextlib import suppress

import cloudpickle
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from tinyllm_lib.train import end_with_starter


@record
def call(call: str, result: str) -> None:
    """Calls the function in the file `call`; rank 0 writes what it returns to `result`."""
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    fn, args, kwargs = torch.load(call, map_location="cpu", weights_only=False)
    try:
        returned = fn(*args, **kwargs)
    except SystemExit as leaving:
        raise RuntimeError("the function called sys.exit(): use return") from leaving
    if on_gpus:
        torch.cuda.synchronize()  # another rank may still wait for this one's share
    if dist.get_rank() == 0:
        torch.save(returned, result, pickle_module=cloudpickle)


if __name__ == "__main__":
    end_with_starter()
    code = 1
    if isinstance(sys.stdout, io.TextIOWrapper):  # torchrun reads whole lines
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    with suppress(Exception):
        call(*sys.argv[1:])
        code = 0
    print()  # ends a last line that has no end
    os._exit(code)  # gloo's threads may abort a process that takes them down in order
