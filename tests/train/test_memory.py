"""How much memory training needs, and what to change where it is not there."""

import re
from pathlib import Path

import pytest
import torch

from tinyllm_lib.course.memory import memory_table
from tinyllm_lib.train import Processes, TrainConfig, train_memory
from tinyllm_lib.train.memory import (
    device_gigabytes,
    is_out_of_memory,
    memory_advice,
    micro_batches_that_fit,
)

CONFIG = TrainConfig(
    dim=1024,
    n_layers=18,
    n_heads=16,
    n_kv_heads=8,
    batch_size=64,
    max_seq_len=512,
    optimizer="adamw",
)
PARAMETERS = 215_127_040


def test_weights_gradients_and_means_take_four_bytes_a_parameter_each():
    parts = train_memory(CONFIG, 6144)
    assert parts["weights, fp32"] == parts["gradients, fp32"] == 4 * PARAMETERS / 1e9
    assert parts["AdamW: two means per weight"] == 8 * PARAMETERS / 1e9


def test_muon_keeps_one_mean_of_hidden_matrices():
    parts = train_memory(TrainConfig(**{**CONFIG.__dict__, "optimizer": "muon"}), 6144)
    hidden = 18 * (1024 * 1024 * 2 + 1024 * 512 * 2 + 3 * 1024 * 2752)
    assert parts["Muon: one mean per weight"] == 4 * hidden / 1e9
    assert parts["AdamW: two means per weight"] == 8 * (PARAMETERS - hidden) / 1e9


@pytest.mark.parametrize(
    ("changes", "share"),
    [({"grad_accumulation_steps": 4}, 1 / 4), ({"dtype": "fp32"}, 2), ({"batch_size": 128}, 2)],
)
def test_activations_follow_the_micro_batch_and_the_number_format(changes, share):
    *_, usual = train_memory(CONFIG, 6144).values()
    *_, changed = train_memory(TrainConfig(**{**CONFIG.__dict__, **changes}), 6144).values()
    assert changed == pytest.approx(share * usual)


def test_the_accumulation_that_fits_is_the_smallest_power_that_does(monkeypatch):
    def number(gigabytes, device="cuda"):
        monkeypatch.setattr("tinyllm_lib.train.memory.device_gigabytes", lambda _: gigabytes)
        return micro_batches_that_fit(CONFIG, 6144, Processes(0, 1, torch.device(device)))

    assert number(1000.0) == number(8.0, "cpu") == 1
    assert 2 < number(16.0) < number(8.0) <= 64


def test_advice_names_what_there_is_and_what_to_change(monkeypatch):
    monkeypatch.setattr("tinyllm_lib.train.memory.device_gigabytes", lambda _: 16.0)
    advice = memory_advice(CONFIG, 6144, Processes(0, 1, torch.device("cuda")))
    assert re.match(r"By estimate this run needs 24\.9 of 16 GB: double grad_acc.* .now 1;", advice)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
                " 10 bytes"
            ),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_for_want_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_on_a_cpu_the_memory_is_what_may_be_used_shared_by_the_processes(monkeypatch):
    # as of a container's limit
    monkeypatch.setattr("tinyllm_lib.train.memory.allowed_memory", lambda: 8 * 10**9)
    assert device_gigabytes(Processes(0, 2, torch.device("cpu"))) == 4.0


def test_auto_micro_batches_count_as_one():
    assert train_memory(
        TrainConfig(**{**CONFIG.__dict__, "grad_accumulation_steps": "auto"}), 6144
    ) == train_memory(CONFIG, 6144)


def test_the_table_has_every_profile_that_a_gpu_runs():
    table = memory_table((8, 16))
    assert all(f"| `{name}`" in table for name in ("laptop", "gpu", "full"))
    assert {line.count("|") for line in table.splitlines()} == {5}


def test_the_table_in_docs_is_the_computed_one():
    page = Path(__file__).resolve().parents[2] / "docs/gpus.md"
    assert memory_table() in page.read_text(encoding="utf-8")
