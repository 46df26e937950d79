"""`python -m tinyllm_lib.launch.torchrun agent …` is torchrun that obeys its arguments alone, ends
when its starter is gone, and leaves in the folder of `--log_dir` what failed first.
"""

import itertools
import math
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyllm_lib.data import allowed_cpus, is_running

PATIENCE_WITHOUT_STARTER = 120.0  # seconds that workers have to finish their step and save
# What torchrun and its workers read from the environment: left there by another job or by a
# cluster's controller, it would steer ours.
FOREIGN = (
    r"(PET|TORCHELASTIC|TORCH_ELASTIC)_.*|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME"
    r"|MASTER_(ADDR|PORT)|(TORCH_)?NCCL_ASYNC_ERROR_HANDLING|TORCH_DIST_INIT_BARRIER|PYTHON_EXEC"
    r"|USE_LIBUV|LOGLEVEL|OMP_NUM_THREADS|TINYLLM_SCRATCH"
)
OF_A_NETWORK = r"|(GLOO|NCCL)_SOCKET_IFNAME"  # right in a cluster, of no use inside a machine


def run_agent(arguments: list[str]) -> None:
    """Runs torchrun in this process; SystemExit where a worker failed."""
    options = dict(itertools.pairwise(arguments))
    alone, scratch = options["--nnodes"] == "1", options["--log_dir"]
    for name in [*os.environ]:
        if re.fullmatch(FOREIGN + OF_A_NETWORK * alone, name):
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(max(1, allowed_cpus() // int(options["--nproc_per_node"])))
    loopback = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if alone and loopback:  # not where the machine's name leads, which may be a VPN
        os.environ["GLOO_SOCKET_IFNAME"] = loopback.pop()
    if not alone:  # a store for each meeting: of a shared one rank 0 tells the address only once
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # `_bootstrap_store_info`, 2.13
    os.environ["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = "[rank ${rank}] "
    os.environ["TINYLLM_SCRATCH"] = scratch
    threading.Thread(target=_end_with_starter, args=(scratch,), daemon=True).start()
    from torch.distributed.run import main as torchrun  # reads the environment

    try:
        torchrun(["--local_addr", _own_address(options["--rdzv_endpoint"]), *arguments])
    except Exception as error:
        who = "training process" if "tinyllm_lib.train" in arguments else "rank"
        when, said = _explain(error, who)
        with suppress(OSError):  # another machine may have ended the launch
            Path(scratch, f"failure_{when}.txt").write_text(said, encoding="utf-8")
        if not hasattr(error, "failures"):
            raise
        if not alone:
            time.sleep(3)  # for what other machines say, where it may have begun
        raise SystemExit(1) from None  # torchrun's summary says no more


def _explain(error: Exception, who: str) -> tuple[float, str]:
    """When it happened, and what the starter's `LaunchError` says."""
    if failures := getattr(error, "failures", None):  # a ChildFailedError: by rank
        rank, failure = min(failures.items(), key=lambda item: _when(item[1]))
        said = f"{who} {rank} ended with code {failure.exitcode} and left no traceback"
        if failure.exitcode == -9:
            said += " (killed from outside, or out of memory?)"
        if isinstance(failure.message, dict):  # from the error file
            headline, report = failure.message["message"], failure.message["extraInfo"]
            said = f"{who} {rank} failed:\n{headline}\n\n{report['py_callstack'].rstrip()}"
        return _when(failure), said
    if type(error).__name__ == "RendezvousTimeoutError":
        return time.time(), "The other machines did not come in time: does the command run there?"
    return time.time(), f"no {who} was started:\n{traceback.format_exc()}"


def _when(failure: Any) -> float:
    """The time a worker failed; of one that died in silence one before its loss made others fail.

    Unless torchrun ended it: by SIGTERM, or half a minute later by SIGKILL.
    """
    report = Path(failure.error_file)
    if report.is_file():
        return report.stat().st_mtime
    return math.inf if failure.exitcode == -signal.SIGTERM else failure.timestamp - 1


def _own_address(endpoint: str) -> str:
    """This machine as those see it who meet at `endpoint`; its name may mean nothing to them."""
    host, port = endpoint.rsplit(":", 1)
    found = socket.getaddrinfo(host.strip("[]"), int(port) or 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(*found[:2]) as s:
        s.connect(found[4])  # of this kind: finds the way, sends nothing
        own = s.getsockname()[0]
    return host if own == "::1" or own.startswith("127.") else own


def _end_with_starter(scratch: str) -> None:
    # Workers notice by themselves, and with the last of them torchrun ends. One that has none,
    # because it waits for other machines, would hold the port where they meet.
    while is_running(int(os.environ.get("TINYLLM_LAUNCHER_PID", os.getpid()))):
        time.sleep(0.3)
    if Path(scratch, "started").exists():
        time.sleep(PATIENCE_WITHOUT_STARTER)
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun's own way out: it takes its workers along


if __name__ == "__main__":
    run_agent(sys.argv[2:])
