"""The processes that train together, and what their devices are good for: the number format, the
speed that they could reach, whether compiling pays.
"""

import math
import os
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.data import allowed_cpus
from tinyllm_lib.train.config import TrainConfig

ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_WORLD_SIZE": 1}
MEETING_SECONDS = 300.0  # from the first process to the last


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and this one's place among them."""

    rank: int
    world_size: int
    device: torch.device
    machines: int = 1

    @classmethod
    def join(cls, config: TrainConfig) -> Self:
        """Takes its place among the processes that torchrun, or another launcher, has started.

        Raises:
            ValueError: no such device.
            RuntimeError: the other processes did not come within `MEETING_SECONDS`.
        """
        rank, world_size, local_rank, local_world_size, machines = _place_in_environment()
        device = _find_device(config.device, local_rank, world_size)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif device.type == "cpu" and (world_size > 1 or "OMP_NUM_THREADS" not in os.environ):
            # Alone the variable is the user's word; among others it is torchrun's 1.
            torch.set_num_threads(max(1, allowed_cpus() // local_world_size))
        if world_size > 1:
            _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank, world_size)
        return cls(rank, world_size, device, machines)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; of a CPU tensor without waiting for a GPU."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def _find_device(wanted: str, local_rank: int, world_size: int) -> torch.device:
    mps = torch.backends.mps.is_available()
    found = "cuda" if torch.cuda.is_available() else "mps" if mps and world_size == 1 else "cpu"
    kind = found if wanted == "auto" else wanted
    there = {"cuda": torch.cuda.device_count(), "mps": int(mps)}
    if there.get(kind, local_rank + 1) <= local_rank:
        raise ValueError(
            f"device={kind!r}: process {local_rank} of this machine finds {there[kind]} of them."
            " Start a process per GPU, or take device='cpu'."
        )
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def _place_in_environment() -> tuple[int, ...]:
    """The numbers of `ALONE` as a launcher has set them, if it has set all that a meeting needs."""
    found = {
        name: int(value)
        for name in (*ALONE, "MASTER_PORT")
        if (value := os.environ.get(name, "")).isdecimal()
    }
    port, world_size = found.pop("MASTER_PORT", 0), found.get("WORLD_SIZE", 0)
    if os.environ.get("MASTER_ADDR") and port and found.get("RANK", math.inf) < world_size:
        return tuple((ALONE | found).values())
    if world_size > 1:
        left_over = f"WORLD_SIZE={world_size} is in the environment, but not a RANK below it with"
        print(f"{left_over} MASTER_ADDR and MASTER_PORT: this process trains alone.", flush=True)
    return tuple(ALONE.values())


def _meet(backend: str, rank: int, world_size: int) -> None:
    """Joins the process group once all its processes are there."""
    patience = timedelta(seconds=MEETING_SECONDS)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=patience))
        store.set(f"tinyllm/{rank}", "here")
        store.wait([f"tinyllm/{other}" for other in range(world_size)], patience)
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RuntimeError(
            f"Process {rank} of {world_size} did not meet the others at {place} within"
            f" {MEETING_SECONDS:.0f} s ({str(error).splitlines()[0]}). Are they all started? To"
            " train in this process alone, remove RANK and WORLD_SIZE from the environment."
        ) from error
    store.set_timeout(dist.default_pg_timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


# ---- what a device is good for

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BF16_PAYS = 1.3  # times the speed of fp32, measured on a CPU, from which bf16 is taken there
BF16_SECONDS = 0.2  # for that measurement


def choose_dtype(
    wanted: str, device: torch.device, product: tuple[int, int, int]
) -> tuple[torch.dtype, str]:
    """fp32 or bf16, and why, in words. `auto` takes bf16 where it is faster: on GPUs that multiply
    it natively, and on CPUs by trying: of two with the same bf16 instructions one multiplies at
    three times its fp32 speed, another at half of it.

    Args:
        product: (positions, inputs, outputs) of a matrix product of the run, to try it with.
    """
    if wanted != "auto":
        return DTYPES[wanted], "asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        why = f"bf16 is native from capability 8.0 on, this GPU has {major}.{minor}"
        return DTYPES["bf16" if major >= 8 else "fp32"], why
    if device.type != "cpu":
        return torch.float32, f"on {device.type} it is what works"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32, "this CPU has no bf16 instructions"
    speedup, positions = bf16_speedup(*product)
    why = (
        f"in bf16 this CPU trains a layer of {product[1]} x {product[2]} {speedup:.2g} times as"
        f" fast (tried with {positions} positions), and it pays from {BF16_PAYS:g} on"
    )
    return DTYPES["bf16" if speedup >= BF16_PAYS else "fp32"], why


def dtype_name(dtype: torch.dtype) -> str:
    """As a run's config.json has it, float32 or bfloat16."""
    return str(dtype).removeprefix("torch.")


def bf16_speedup(positions: int, inputs: int, outputs: int) -> tuple[float, int]:
    """How many times faster this CPU trains a linear layer in bf16 than in fp32, and the positions
    that it was tried with: as many as `BF16_SECONDS` allow (emulated, bf16 may take a minute).
    """
    end, tried, fp32, bf16 = time.perf_counter() + BF16_SECONDS, 1, math.inf, math.inf
    weight = torch.ones(outputs, inputs, requires_grad=True)
    while True:
        for _ in range(3):  # in turns, so that what else the machine does hits both
            fp32 = min(fp32, _seconds_of_layer(weight, tried, torch.float32))
            bf16 = min(bf16, _seconds_of_layer(weight, tried, torch.bfloat16))
        larger = min(4 * tried, positions)
        if larger > tried and time.perf_counter() + 12 * (fp32 + bf16) < end:
            tried, fp32, bf16 = larger, math.inf, math.inf
        elif time.perf_counter() >= end:
            return fp32 / bf16, tried


def _seconds_of_layer(weight: Tensor, positions: int, dtype: torch.dtype) -> float:
    """Forward and backward pass of a linear layer under autocast, with the casts that it needs."""
    x = torch.ones(positions, weight.shape[1], requires_grad=True)
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = torch.nn.functional.linear(x, weight)
    torch.autograd.grad(y, [x, weight], torch.ones_like(y))
    return time.perf_counter() - start


# bf16 products with fp32 sums in TFLOP/s, from NVIDIA's data sheets and white papers, without the
# "sparsity" that doubles the printed number, of the cards that torch.cuda.get_device_name calls
# exactly so: an L40 is no L4, and a slice (MIG) or a laptop's card is none of these.
A800 = ("A800-SXM4-80GB", "A800 80GB PCIe")
PEAK_TFLOPS = {
    71: ("GeForce RTX 3090",),
    121: ("L4",),
    125: ("A10",),
    148: ("H20",),
    149.7: ("A40",),
    154.8: ("RTX A6000",),
    165: ("A30", "GeForce RTX 4090"),
    181: ("L40",),
    312: ("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe", *A800),
    362: ("L40S",),
    364: ("RTX 6000 Ada Generation",),
    756: ("H100 PCIe",),
    835: ("H100 NVL",),
    989: ("H100 80GB HBM3", "H800", "H200", "GH200 480GB"),
    2250: ("B200",),
}


def data_sheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """bf16 FLOP/s of a known GPU, else None."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    known = (tera for tera, cards in PEAK_TFLOPS.items() if name.removeprefix("NVIDIA ") in cards)
    return next((tera * 1e12 for tera in known), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s this process could reach: by the data sheet, else the best of a few products."""
    if known := data_sheet_flops(device, dtype):
        return known
    best = 0.0
    for n in (256, 1024) if device.type == "cpu" else (4096,):
        a = torch.randn(n, n, device=device, dtype=dtype)
        for _ in range(4):
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            seconds = time.perf_counter() - start
            best = max(best, 2 * n**3 / seconds)
            if seconds > 0.2:  # bf16 on a CPU without it: a larger product takes minutes
                return best
    return best


# For the estimate of `compile_pays`. Not measured: the share of a GPU's peak reached without
# compiling, and the peak of a GPU that is not in the table. Measured on a 2-core Xeon, 2026-11-25:
# the FLOP/s at which a CPU core trains without compiling, and how long a run must be to win back
# the compiler's 5 to 50 seconds (1.17 times faster at the laptop preset, 1.08 at 82.6M), or its one
# to two minutes on a GPU.
USUAL_MFU, UNKNOWN_GPU_FLOPS, CPU_CORE_FLOPS, COMPILE_PAYS_MINUTES = 0.3, 100e12, 60e9, 10


def compile_pays(
    wanted: bool | str, flops: float, device: torch.device, dtype: torch.dtype
) -> tuple[bool, str]:
    """Whether to use `torch.compile`, and why, in words.

    Args:
        flops: of the whole run and not of what is left of it, for one process, so that a run that
            goes on decides as it did at its start.
    """
    if wanted != "auto":
        return bool(wanted), "asked for" if wanted else "not asked for"
    if device.type == "cuda":
        speed = USUAL_MFU * (data_sheet_flops(device, dtype) or UNKNOWN_GPU_FLOPS)
    elif device.type == "cpu" and sys.platform == "linux":
        speed = CPU_CORE_FLOPS * torch.get_num_threads()
    else:
        where = f"this is {device.type} under {sys.platform}"
        return False, f"unasked it is used on CUDA GPUs and on CPUs under Linux only, {where}"
    minutes = flops / speed / 60
    pays = minutes > COMPILE_PAYS_MINUTES
    why = (
        f"without it the run takes about {minutes:.0f} min by estimate, and compiling pays back in"
        f" runs {'longer' if pays else 'only if they are longer'} than {COMPILE_PAYS_MINUTES}"
    )
    if pays and device.type == "cpu" and (missing := missing_for_cpu_compile()):
        return False, f"{why}, but {missing}"
    return pays, why


def missing_for_cpu_compile() -> str:
    """What `torch.compile` needs on a CPU under Linux and does not find, in words; else empty."""
    missing = "it needs {}, which is not installed (Debian, Ubuntu: apt install {})"
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        return missing.format(f"the C++ compiler {compiler}", "g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return missing.format("Python.h", "python3-dev")
    return ""
