"""The processes that train together, and what their devices are good for."""

import math
import os
import time
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.data import allowed_cpus
from tinyllm_lib.generate import usual_dtype
from tinyllm_lib.model import ModelConfig
from tinyllm_lib.train.config import TrainConfig


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and this one's place among them."""

    rank: int
    world_size: int
    device: torch.device
    machines: int = 1

    @classmethod
    def join(cls, config: TrainConfig) -> Self:
        """Takes its place among the processes that torchrun, or another launcher, has started."""
        place = os.environ if "MASTER_ADDR" in os.environ else {}  # else nobody to meet
        rank, world_size = int(place.get("RANK", 0)), int(place.get("WORLD_SIZE", 1))
        local_rank, local = int(place.get("LOCAL_RANK", 0)), int(place.get("LOCAL_WORLD_SIZE", 1))
        device = _find_device(config.device, local_rank, world_size)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.set_float32_matmul_precision("high")  # products of fp32 on tensor cores (TF32)
            if config.deterministic:
                _compute_the_same_twice()
        elif device.type == "cpu" and (world_size > 1 or "OMP_NUM_THREADS" not in os.environ):
            # Alone the variable is the user's word; among others it is torchrun's 1.
            torch.set_num_threads(max(1, allowed_cpus() // local))
        if world_size > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        return cls(rank, world_size, device, int(place.get("GROUP_WORLD_SIZE", 1)))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; of a CPU tensor without waiting for a GPU."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait_for_each_other(self) -> None:
        """Returns when all processes have come here; over gloo, which has more patience."""
        self.all_reduce(torch.zeros(()))


def _compute_the_same_twice() -> None:
    """Has every kernel sum in a fixed order; an operation that cannot raises a RuntimeError.

    With `warn_only` the backward of flash and memory-efficient attention keep their atomic sums
    (`attention_backward.cu`), and cuDNN's attention is not asked.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch._inductor.config.deterministic = True  # no kernel chosen by its time


def _find_device(wanted: str, local_rank: int, world_size: int) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0  # 0: too old a driver
    there = {"cuda": gpus, "mps": int(torch.backends.mps.is_available())}
    kind = wanted
    if wanted == "auto":
        kind = "cuda" if there["cuda"] else "mps" if there["mps"] and world_size == 1 else "cpu"
    if local_rank >= there.get(kind, world_size):
        found = f"process {local_rank} of this machine finds {there[kind]} of them"
        raise ValueError(f"device={kind!r}: {found}. Start one per GPU, or take device='cpu'.")
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


# ---- what a device is good for

DTYPE_NAMES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}  # as a run's config.json has them
BF16_PAYS = 1.3  # times the speed of fp32, measured on a CPU, from which bf16 is taken there


def choose_dtype(wanted: str, device: torch.device, shape: ModelConfig) -> tuple[str, str]:
    """The number format, and why. "auto" takes bf16 on GPUs that multiply it natively, fp16 on
    older ones, and on a CPU bf16 where a layer of the model, tried, trains faster.
    """
    if wanted != "auto":
        return wanted, "asked for"
    if device.type == "cuda":
        native = usual_dtype(device) == torch.bfloat16
        return ("bf16", "this GPU has it") if native else ("fp16", "this GPU lacks bf16")
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32", f"this {device.type} has no bf16 instructions"
    speedup = bf16_speedup(shape.dim, shape.hidden_dim)
    why = f"in bf16 a layer trains {speedup:.2g} times as fast, and it pays from {BF16_PAYS:g} on"
    return "bf16" if speedup >= BF16_PAYS else "fp32", why


def bf16_speedup(inputs: int, outputs: int, positions: int = 256) -> float:
    """How many times faster this CPU trains a linear layer in bf16 than in fp32."""
    weight = torch.ones(outputs, inputs, requires_grad=True)
    x = torch.ones(positions, inputs, requires_grad=True)
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in [*best] * 3:  # in turns, so that what else the machine does hits both
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = torch.nn.functional.linear(x, weight)
        torch.autograd.grad(y, [x, weight], torch.ones_like(y))
        best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


# bf16 products (fp16 where a card lacks it) with fp32 sums in TFLOP/s, from NVIDIA's data sheets,
# without the "sparsity" that doubles the printed number, by torch.cuda.get_device_name.
PEAK_TFLOPS = (
    "GeForce RTX 3090: 71, GeForce RTX 4090: 165, RTX A6000: 154.8, RTX 6000 Ada Generation: 364, "
    "L4: 121, L40: 181, L40S: 362, A10: 125, A30: 165, A40: 149.7, A100-SXM4-40GB: 312, "
    "A100-SXM4-80GB: 312, A100-PCIE-40GB: 312, A100 80GB PCIe: 312, A800-SXM4-80GB: 312, "
    "A800 80GB PCIe: 312, H20: 148, H100 PCIe: 756, H100 NVL: 835, H100 80GB HBM3: 989, H800: 989, "
    "H200: 989, GH200 480GB: 989, B200: 2250, Tesla T4: 65, Tesla V100-PCIE-16GB: 112, "
    "Tesla V100-SXM2-16GB: 125, Tesla V100-SXM2-32GB: 125"
)


def data_sheet_flops(card: str) -> float:
    """FLOP/s of a known GPU in bf16 or fp16, else 0."""
    peaks = dict(line.split(": ") for line in PEAK_TFLOPS.split(", "))
    return float(peaks.get(card.removeprefix("NVIDIA "), 0)) * 1e12


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s this process could reach: by the data sheet, else the best of a few products."""
    known = device.type == "cuda" and data_sheet_flops(torch.cuda.get_device_name(device))
    if known and dtype != torch.float32:
        return known
    best, n = 0.0, 512 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


COMPILE_SECONDS = 54.0  # the most that compiling took on an H200 (docs/gpus.md)


def compile_pays(seconds: float) -> tuple[bool, str]:
    """Whether to use `torch.compile` for so many seconds of training without it, and why."""
    limit = 2 * COMPILE_SECONDS
    why = f"it pays back from {limit:g} s on, without it this run would take {seconds:.3g} s"
    return seconds >= limit, why
