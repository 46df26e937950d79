"""Fixtures of the smallest size: a tokenizer of 400 entries, its token shards, a TrainConfig for
two layers.

A test file takes them with `pytest_plugins = ["helpers.tiny_fixtures"]`; they are made once a
session."""

import pytest
import torch

from helpers.tiny import DIALOGUES, TEXTS
from tinyllm_lib.dataset import write_pretrain_tokens, write_sft_tokens
from tinyllm_lib.tokenizer import load_tokenizer, train_tokenizer
from tinyllm_lib.train import TrainConfig


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "tokenizer"
    train_tokenizer(TEXTS, folder, vocab_size=400)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def pretrain_tokens(tmp_path_factory, tokenizer):
    """Folder with train/ (five in six of TEXTS) and val/ shards."""
    folder = tmp_path_factory.mktemp("tiny") / "pretrain"
    write_pretrain_tokens([t for i, t in enumerate(TEXTS) if i % 6], tokenizer, folder / "train")
    write_pretrain_tokens(TEXTS[::6], tokenizer, folder / "val")
    return folder


@pytest.fixture(scope="session")
def sft_tokens(tmp_path_factory, tokenizer):
    """Folder with train/ and val/ shards of DIALOGUES."""
    folder = tmp_path_factory.mktemp("tiny") / "sft"
    write_sft_tokens(DIALOGUES[8:], tokenizer, folder / "train", max_length=64)
    write_sft_tokens(DIALOGUES[:8], tokenizer, folder / "val", max_length=64)
    return folder


@pytest.fixture(scope="session")
def tiny_config(pretrain_tokens, tokenizer_folder):
    """tiny_config(out_dir, **changes) -> TrainConfig for 12 steps of a model with two layers."""

    def make(out_dir, **changes):
        values = {
            "data_path": str(pretrain_tokens),
            "tokenizer_path": str(tokenizer_folder),
            "out_dir": str(out_dir),
            **{"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 32},
            **{
                "batch_size": 8,
                "steps": 12,
                "warmup_steps": 3,
                "learning_rate": 1e-2,
                "log_interval": 1,
            },
            **{"device": "cpu", "dtype": "fp32"},
        }
        return TrainConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def one_thread():
    """Training in this process, or in one it starts, computes on one thread: much quicker on a busy
    machine.
    """
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)
