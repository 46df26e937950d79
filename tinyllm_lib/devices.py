"""The hardware a run has: its processes and devices, the number format, the speed it could reach."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.config import TrainConfig


@dataclass
class Processes:
    """The torchrun processes this one belongs to."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls, config: TrainConfig) -> Processes:
        rank, local, world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
        kind = config.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and world == 1 else "cpu"
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if there.get(kind, local + 1) <= local:
            raise ValueError(f"device={kind!r}: process {local} of this machine finds {there[kind]} of them. Start a process per GPU, or "
                             f"take device='cpu'.")
        device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        elif kind == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        if world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
        return cls(rank, local, world, device)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place. A CPU tensor travels over gloo and never waits for a GPU."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """fp32 or bf16. `auto` takes bf16 where it is faster: on GPUs that multiply it natively and on CPUs with matrix tiles (AMX).
    A CPU that has only AVX-512's bf16 instructions gains too little to pay for the casts, or multiplies at half the speed."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        native = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


# For the estimate of `compile_pays`: the share of a GPU's peak reached without compiling and the peak of a GPU that is not in
# the table (neither measured); FLOP/s that a CPU core trains at without compiling, and how long a run must be to win back the
# compiler's 5 to 50 seconds on a CPU (both measured on a 2-core Xeon, 2026-11-25: 1.17 times faster at the laptop preset, 1.08
# at 82.6M) or its one to two minutes on a GPU.
USUAL_MFU, UNKNOWN_GPU_FLOPS, CPU_CORE_FLOPS, COMPILE_PAYS_MINUTES = 0.3, 100e12, 60e9, 10.0

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71, "A10": 125}


def data_sheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """bf16 FLOP/s of a known GPU, else None."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and dtype == torch.bfloat16 else ""
    return next((teraflops * 1e12 for gpu, teraflops in PEAK_TFLOPS.items() if gpu in name), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s this process could reach: from the data sheet of a known GPU, else the best of a few matrix products."""
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
            if seconds > 0.2:                                  # bf16 on a CPU without it: a larger product takes minutes
                return best
    return best


def compile_pays(wanted: bool | str, flops: float, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether to use `torch.compile`, and why, in words.

    A function of the whole run and not of what is left of it, so that a run that goes on decides as it did at its start.

    Args:
        flops: of the whole run, for one process.
    """
    if wanted != "auto":
        return bool(wanted), "asked for" if wanted else "not asked for"
    if device.type == "cuda":
        minutes = flops / (USUAL_MFU * (data_sheet_flops(device, dtype) or UNKNOWN_GPU_FLOPS)) / 60
    elif device.type == "cpu" and sys.platform == "linux":
        minutes = flops / (CPU_CORE_FLOPS * torch.get_num_threads()) / 60
    else:
        return False, f"unasked it is used on CUDA GPUs and on CPUs under Linux only, this is {device.type} under {sys.platform}"
    pays = minutes > COMPILE_PAYS_MINUTES
    why = (f"without it the run takes about {minutes:.0f} min by estimate, and compiling pays back in runs "
           f"{'longer' if pays else 'only if they are longer'} than {COMPILE_PAYS_MINUTES:.0f}")
    if pays and device.type == "cpu" and (missing := missing_for_cpu_compile()):
        return False, f"{why}, but {missing}"
    return pays, why


def missing_for_cpu_compile() -> str:
    """What `torch.compile` needs on a CPU under Linux and does not find, in words; empty if all is there."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        return f"it needs the C++ compiler {compiler}, which is not installed (Debian, Ubuntu: apt install g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "it needs Python.h, which is not installed (Debian, Ubuntu: apt install python3-dev)"
    return ""
