"""What each rank of `launch_function` runs: `python -m tinyllm_lib.launch.call CALL RESULT`."""

from __future__ import annotations

import linecache
import os
import sys
import types
from contextlib import suppress

import cloudpickle
import torch
import torch.distributed as dist

from tinyllm_lib.train import Lifeline, failure_reported


def call(call: str, result: str) -> None:
    """Calls the function in the file `call`; rank 0 writes what it returns to `result`."""
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    Lifeline.mark("met")
    fn, args, kwargs, file, source = torch.load(call, map_location="cpu", weights_only=False)
    if isinstance(fn, types.FunctionType):  # a traceback shows the lines of the cell
        fn.__code__ = fn.__code__.replace(co_filename=file)
        linecache.cache[file] = (0, None, source, file)
    try:
        returned = fn(*args, **kwargs)
    except SystemExit as leaving:
        raise RuntimeError(f"the function called exit({leaving.code}); use return") from leaving
    if on_gpus:
        torch.cuda.synchronize()  # another rank may still wait for this one's share
    if dist.get_rank() == 0:
        try:
            torch.save(returned, result, pickle_module=cloudpickle)
        except Exception as error:
            raise TypeError(
                f"launch_function: rank 0 returned a {type(returned).__name__}, which cannot be"
                f" sent to the notebook ({error}). Return numbers, strings, lists or tensors."
            ) from None


if __name__ == "__main__":
    Lifeline()
    code = 1
    with suppress(Exception), failure_reported(__file__):
        call(*sys.argv[1:])
        code = 0
    print()  # ends a last line that has no end
    os._exit(code)  # gloo's threads may abort a process that takes them down in order
