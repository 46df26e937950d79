"""The trainer: the same result however the work is cut up, stopped or resumed."""

import io
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import gradients
from helpers.tiny import TEXTS, arguments, dialogue, start_python, wait_until
from safetensors.torch import load_file, save_file
from torch.optim import AdamW

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.demo.classroom import model_name
from tinyllm_lib.data import sha256, write_json
from tinyllm_lib.dataset import (
    DataOrder,
    PackedDataset,
    read_manifest,
    write_pretrain_tokens,
    write_sft_tokens,
)
from tinyllm_lib.evaluate import bits_per_byte
from tinyllm_lib.evaluate.exam import kind_of_run
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import (
    ModelConfig,
    Transformer,
    document_starts,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    step_folders,
    step_of,
)
from tinyllm_lib.share.card import read_stages
from tinyllm_lib.share.server import free_port
from tinyllm_lib.tokenizer import token_bytes, train_tokenizer
from tinyllm_lib.train import (
    Processes,
    TrainConfig,
    Trainer,
    build,
    devices,
    get_lr,
    prepare_run,
    train,
    train_memory,
)
from tinyllm_lib.train.__main__ import main
from tinyllm_lib.train.config import parse_args
from tinyllm_lib.train.devices import choose_dtype
from tinyllm_lib.train.memory import micro_batches_that_fit
from tinyllm_lib.train.optim import make_optimizers
from tinyllm_lib.train.start import Objective

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler"
)
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
METERS = {"tokens_per_second", "mfu"}  # what may differ between two equal runs


def trainer_of(config, processes=ALONE):
    return build(prepare_run(config, processes))


def on(trainer, **changes):
    """Makes a trainer take itself for another of the processes, or to have another device."""
    trainer.run = replace(trainer.run, processes=replace(ALONE, **changes))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def measured(run):
    """metrics.jsonl without what depends on the speed of the machine."""
    return [{k: v for k, v in row.items() if k not in METERS} for row in metrics(run)]


def weights(run):
    tensors = load_file(latest_checkpoint(run) / "model.safetensors")
    # load_file only maps the file
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same_end(run, other):
    """Same weights, optimiser state and metrics, bit for bit."""
    assert latest_checkpoint(run).name == latest_checkpoint(other).name
    for found, expected in (
        (weights(run), weights(other)),
        *zip(optimizer_states(run), optimizer_states(other), strict=True),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert measured(run) == measured(other)


def optimizer_states(run):
    """The tensors of each optimizer: {(parameter, name): tensor}."""
    states = load_state(latest_checkpoint(run))["optimizers"]
    return [
        {(i, key): torch.as_tensor(v) for i, p in s["state"].items() for key, v in p.items()}
        for s in states
    ]


# ---- a token weighs the same wherever it lies


UNEVEN = [33, 1, 1, 1, 3, 33, 5, 1]  # learned tokens of the rows of the first step, in its order


@pytest.fixture(scope="module")
def uneven_tokens(tmp_path_factory, tokenizer):
    """Eight rows of 32 positions whose masks could hardly be less even."""
    folder = tmp_path_factory.mktemp("uneven")
    write_sft_tokens(
        [],
        tokenizer,
        folder,
        replay=[f"{n}" + "小猫和白鹅。" * 20 for n in range(8)],
        max_length=33,
    )
    learned = dict(zip(DataOrder(8, seed=0).step_rows(0, 8), UNEVEN, strict=True))
    mask = [[0] * (33 - learned[row]) + [1] * learned[row] for row in range(8)]
    (folder / "shard_00000.mask").write_bytes(np.array(mask, np.uint8).tobytes())
    manifest = read_manifest(folder)
    manifest["shards"][0]["sha256"]["shard_00000.mask"] = sha256(folder / "shard_00000.mask")
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def uneven_config(tiny_config, uneven_tokens, tmp_path):
    return tiny_config(tmp_path / "run", data_path=str(uneven_tokens), batch_size=8, steps=2)


@pytest.fixture
def one_batch(uneven_config):
    return gradients.first_gradient(uneven_config, ALONE)


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_gradient_is_that_of_the_mean_over_all_supervised_tokens(
    uneven_config, uneven_tokens, one_batch
):
    rows = [*PackedDataset(uneven_tokens, 32)]
    assert sorted(int(row.loss_mask.sum()) for row in rows) == sorted(min(n, 32) for n in UNEVEN)
    model = trainer_of(replace(uneven_config, resume="never")).model
    model.zero_grad()
    ids, targets, mask = (torch.stack([row[i] for row in rows]) for i in range(3))
    loss = F.cross_entropy(model(ids)[mask == 1], targets[mask == 1])
    loss.backward()
    assert_same_gradients(
        one_batch, {"loss": loss, **{n: p.grad for n, p in model.named_parameters()}}
    )


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_gradient_accumulation_changes_nothing(uneven_config, one_batch, micro_batches):
    config = replace(uneven_config, grad_accumulation_steps=micro_batches)
    if micro_batches == 4:
        parts = trainer_of(replace(config, out_dir=config.out_dir + "_parts")).load_step(0)[0]
        # of 33 learned tokens 32 are targets
        assert [int(part.loss_mask.sum()) for part in parts] == [33, 2, 35, 6]
    assert_same_gradients(gradients.first_gradient(config, ALONE), one_batch)


@needs_compiler
def test_compiling_changes_nothing_and_the_compiler_reads_one_block_for_all(
    uneven_config, one_batch
):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = replace(uneven_config, compile=True, grad_accumulation_steps=2)
    assert_same_gradients(gradients.first_gradient(config, ALONE), one_batch)
    assert config.n_layers > 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """torchrun(config, processes) -> what gradients.py found in processes that talk over gloo."""

    def run(config, processes):
        folder = tmp_path_factory.mktemp("torchrun")
        (folder / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            processes,
            gradients.__file__,
        ]
        process = start_python(
            *command, folder / "config.json", folder / "found.pt", OMP_NUM_THREADS="1"
        )
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
        return {**torch.load(folder / "found.pt", weights_only=True), "output": output}

    return run


def test_two_processes_with_accumulation_get_the_same_gradient(uneven_config, one_batch, torchrun):
    found = torchrun(replace(uneven_config, grad_accumulation_steps=2), 2)
    assert_same_gradients(found["gradients"], one_batch)
    assert "Warning" not in found["output"], found["output"]


def test_a_process_without_a_row_of_its_own_takes_part(uneven_config, torchrun):
    config = replace(uneven_config, batch_size=1)
    alone = gradients.first_gradient(replace(config, out_dir=config.out_dir + "_alone"), ALONE)
    assert_same_gradients(torchrun(config, 2)["gradients"], alone)


def test_one_and_two_processes_see_the_same_global_batches_and_the_same_losses(
    tiny_config, torchrun, tmp_path
):
    config = tiny_config(tmp_path / "two", batch_size=7)  # rank 0 gets four rows, rank 1 three
    two = torchrun(config, 2)
    alone = trainer_of(replace(config, out_dir=str(tmp_path / "one")))
    for step, ids in enumerate(two["batches"]):
        assert torch.equal(ids, torch.cat([batch.X for batch in alone.load_step(step)[0]]))
    alone.fit()
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_rows_with_nothing_to_learn_are_left_out_and_said_and_no_step_has_loss_zero(
    tiny_config, tokenizer, tmp_path
):
    # the reply is in the last piece
    questions = [
        dialogue("小猫在河边走了很久，遇见一只白鹅。" * 12 + str(n), "好。") for n in range(4)
    ]
    write_sft_tokens(questions, tokenizer, tmp_path / "tokens", max_length=2048)
    data = PackedDataset(tmp_path / "tokens", 32)
    assert all(row.loss_mask.any() for row in data) and 0 < len(data) < data.left_out
    run = train(
        tiny_config(tmp_path / "run", data_path=str(tmp_path / "tokens"), batch_size=1, steps=12)
    )
    assert all(row["loss"] > 0 for row in metrics(run))
    assert f"{data.left_out} without a token to learn left out" in (run / "train.log").read_text(
        "utf-8"
    )


def test_data_without_any_token_to_learn_is_refused(tiny_config, tokenizer, tmp_path):
    write_sft_tokens(
        [], tokenizer, tmp_path / "tokens", replay=["小猫和白鹅。" * 20] * 8, max_length=33
    )
    mask = tmp_path / "tokens" / "shard_00000.mask"
    mask.write_bytes(bytes(mask.stat().st_size))
    with pytest.raises(ValueError, match="tokens: none of 8 rows has a token to learn"):
        train(tiny_config(tmp_path / "run", data_path=str(tmp_path / "tokens"), steps=2))


@pytest.mark.parametrize("empty_folder", [False, True])
def test_without_validation_documents_a_run_trains_and_says_so(
    tiny_config, pretrain_tokens, tmp_path, empty_folder
):
    shutil.copytree(pretrain_tokens / "train", tmp_path / "tokens" / "train")
    if empty_folder:
        (tmp_path / "tokens" / "val").mkdir()
    run = train(
        tiny_config(tmp_path / "run", data_path=str(tmp_path / "tokens"), steps=2, eval_interval=1)
    )
    assert (
        not any("val_loss" in row for row in metrics(run)) and step_of(latest_checkpoint(run)) == 2
    )
    assert ", 0 for validation, " in (run / "train.log").read_text("utf-8")


def test_validation_that_was_begun_and_not_finished_is_no_empty_one(
    tiny_config, pretrain_tokens, tmp_path
):
    shutil.copytree(pretrain_tokens, tmp_path / "tokens")
    (tmp_path / "tokens" / "val" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="val holds no finished token shards"):
        train(tiny_config(tmp_path / "run", data_path=str(tmp_path / "tokens")))


# ---- the order of the data


def test_the_order_is_a_pure_function_of_seed_and_step():
    order, other = DataOrder(37, seed=5), DataOrder(37, seed=5)
    forwards = [order.step_rows(step, 8) for step in range(20)]
    backwards = [other.step_rows(step, 8) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert DataOrder(37, seed=6).step_rows(0, 8) != forwards[0]


def test_every_epoch_covers_every_row_once_in_an_order_of_its_own():
    order = DataOrder(37, seed=0)
    rows = [row for step in range(37) for row in order.step_rows(step, 10)]  # ten epochs
    epochs = [rows[i : i + 37] for i in range(0, 370, 37)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_a_batch_may_be_larger_than_the_data():
    assert Counter(DataOrder(3, seed=0).step_rows(0, 9)) == {0: 3, 1: 3, 2: 3}


def test_a_step_is_shared_out_completely_between_processes_and_micro_batches(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", batch_size=7, grad_accumulation_steps=3)
    trainer = trainer_of(config)
    whole = torch.cat([batch.X for batch in trainer.load_step(4)[0]])
    shares = []
    for rank in (0, 1):
        on(trainer, rank=rank, world_size=2)
        shares += [batch.X for batch in trainer.load_step(4)[0]]
    assert torch.equal(torch.cat(shares), whole)
    assert len(whole) == 7


# ---- the learning rate


def test_the_learning_rate_rises_to_its_highest_and_ends_at_the_given_share():
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=0.5, min_lr_share=0.1)
    rates = [get_lr(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == rates[10] == max(rates) == 0.5
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx(0.5 * (0.1 + 0.9 / 2))  # half way down the cosine
    assert rates[100] == get_lr(1000, config) == pytest.approx(0.05)


def test_no_warmup_starts_at_the_highest_rate():
    assert get_lr(0, TrainConfig(steps=10, warmup_steps=0, learning_rate=0.5)) == 0.5


# ---- a run


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(tiny_config, tmp_path, optimizer):
    run = train(tiny_config(tmp_path / "run", optimizer=optimizer, steps=40))
    losses = [row["loss"] for row in metrics(run)]
    assert losses[0] == pytest.approx(math.log(400), abs=0.3)  # untrained: all tokens alike
    assert losses[-1] < 0.6 * losses[0]


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory, one_thread):
    """A finished run of 30 steps."""
    return train(
        tiny_config(
            tmp_path_factory.mktemp("runs") / "pretrain", steps=30, eval_interval=10, log_interval=5
        )
    )


def test_what_a_run_folder_holds(pretrained):
    assert sorted(path.name for path in pretrained.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "train.log",
    ]
    rows = metrics(pretrained)
    assert [row["step"] for row in rows] == [1, 5, 10, 15, 20, 25, 30]
    always = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu"}
    for row in rows:
        evaluated = {"val_loss", "val_bits_per_byte"} if row["step"] % 10 == 0 else set()
        assert row.keys() == always | evaluated
        assert all(math.isfinite(value) for value in row.values())
    assert rows[-1]["val_loss"] < rows[2]["val_loss"]
    assert step_of(latest_checkpoint(pretrained)) == 30
    log = (pretrained / "train.log").read_text("utf-8").splitlines()
    assert log[-1].endswith("Finished: pretrain, 30 steps, " + f"{rows[-1]['tokens']:,} tokens.")


def test_config_json_holds_every_option_and_what_auto_became(pretrained, tiny_config):
    saved = json.loads((pretrained / "config.json").read_text("utf-8"))
    resolved, made_from = saved.pop("resolved"), saved.pop("made_from")
    assert saved == asdict(TrainConfig(**saved))
    assert saved.keys() == {f.name for f in fields(TrainConfig)}
    assert (resolved["dtype"], resolved["device"]) == ("float32", "cpu")
    assert (
        made_from.keys() == {"shards", "tokenizer", "init_from"} and made_from["init_from"] is None
    )


def test_validation_is_in_nats_per_token_and_bits_per_byte(pretrained, pretrain_tokens, tokenizer):
    model = Transformer.from_pretrained(latest_checkpoint(pretrained))
    nats, tokens, text, size = 0.0, 0, 0.0, 0
    for row in PackedDataset(pretrain_tokens / "val", 32):
        X, Y, mask, position_ids, document_ids = (part[None] for part in row)
        with torch.no_grad():
            logits = model(X, position_ids=position_ids, document_ids=document_ids)
        each = F.cross_entropy(logits[mask == 1], Y[mask == 1], reduction="none")
        nats, tokens, text = (
            nats + each.sum().item(),
            tokens + int(mask.sum()),
            text + each[Y[mask == 1] > 4].sum().item(),
        )
        size += sum(len(token_bytes(tokenizer, i)) for i in Y[mask == 1].tolist() if i > 4)
    last = metrics(pretrained)[-1]
    assert last["val_loss"] == pytest.approx(nats / tokens, abs=1e-4)
    assert last["val_bits_per_byte"] == pytest.approx(text / math.log(2) / size, abs=1e-4)


@pytest.mark.parametrize("packing", ["best_fit", "stream", "none"])
def test_validation_and_bits_per_byte_agree_on_the_same_documents(
    tiny_config, tokenizer, tmp_path, packing
):
    run = train(tiny_config(tmp_path / "run", max_seq_len=128, steps=8, packing=packing))
    model = Transformer.from_pretrained(latest_checkpoint(run))
    assert metrics(run)[-1]["val_bits_per_byte"] == pytest.approx(
        bits_per_byte(model, tokenizer, TEXTS[::6]), abs=1e-4
    )


def test_two_processes_measure_the_same_bits_per_byte(tiny_config, tokenizer, tmp_path, torchrun):
    run = tmp_path / "run"
    torchrun(tiny_config(run, max_seq_len=128, steps=3), 2)
    model = Transformer.from_pretrained(latest_checkpoint(run))
    assert metrics(run)[-1]["val_bits_per_byte"] == pytest.approx(
        bits_per_byte(model, tokenizer, TEXTS[::6]), abs=1e-4
    )


@pytest.fixture(scope="module")
def uneven_validation(pretrain_tokens, tokenizer, tmp_path_factory):
    """Training data, and validation documents of very different lengths: the long ones are much
    easier to guess.
    """
    folder = tmp_path_factory.mktemp("uneven_validation")
    shutil.copytree(pretrain_tokens / "train", folder / "train")
    write_pretrain_tokens(
        [*["法国的首都是巴黎。" * 40] * 40, *["Zq7#x" * 2] * 400], tokenizer, folder / "val"
    )
    return folder


def test_fewer_eval_rows_change_the_noise_and_not_the_mean(
    tiny_config, uneven_validation, tmp_path
):
    config = tiny_config(tmp_path / "run", data_path=str(uneven_validation), steps=12)
    trainer = trainer_of(config)
    trainer.fit()
    rows = len(trainer.run.val_data)

    def loss(eval_rows):
        trainer.run = replace(trainer.run, config=replace(config, eval_rows=eval_rows))
        return trainer.evaluate()["val_loss"]

    assert rows > 300
    assert loss(rows // 4) == pytest.approx(loss(rows), rel=0.15)
    trainer.run = replace(trainer.run, config=replace(config, seed=5, eval_rows=20))
    some = trainer.eval_rows()
    trainer.run = replace(trainer.run, config=replace(config, eval_rows=40))
    assert len(some) == 20 and set(some) < set(trainer.eval_rows())


def test_a_run_that_fails_says_so_in_its_log(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "update", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config(tmp_path / "run"))
    assert (
        (tmp_path / "run" / "train.log")
        .read_text("utf-8")
        .splitlines()[-1]
        .endswith("  Failed after step 0: division by zero")
    )


def test_steps_follow_from_tokens_or_epochs(tiny_config, tmp_path, pretrain_tokens):
    data = PackedDataset(pretrain_tokens / "train", 32)
    by_epochs = prepare_run(tiny_config(tmp_path / "a", steps=0, epochs=2.5), ALONE).config
    assert by_epochs.steps == math.ceil(2.5 * len(data) / 8)
    by_tokens = prepare_run(
        tiny_config(tmp_path / "b", steps=0, tokens=3 * data.positions), ALONE
    ).config
    assert by_tokens.steps == pytest.approx(3 * len(data) / 8, abs=1)


def test_fine_tuning_starts_from_the_weights_and_the_tokenizer_of_a_run(
    tiny_config, pretrained, sft_tokens, tmp_path
):
    changes = {
        "data_path": str(sft_tokens),
        "tokenizer_path": "",
        "dim": 1024,
        "n_layers": 18,
        "steps": 2,
    }
    run = train(
        tiny_config(tmp_path / "chat", init_from=str(pretrained), learning_rate=1e-9, **changes)
    )
    for name, before in weights(pretrained).items():
        torch.testing.assert_close(weights(run)[name], before, rtol=0, atol=1e-6)
    from_folder = train(
        tiny_config(tmp_path / "two", init_from=str(latest_checkpoint(pretrained)), **changes)
    )
    assert metrics(from_folder)[0]["loss"] == metrics(run)[0]["loss"]


def test_training_gives_the_signal_handlers_back(tiny_config, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tiny_config(tmp_path / "run", steps=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# ---- stopped and resumed


LONG = {"steps": 120, "batch_size": 4, "save_interval": 20, "seed": 3}


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory, one_thread):
    return train(tiny_config(tmp_path_factory.mktemp("runs") / "run", **LONG))


def test_a_run_stopped_by_sigterm_saves_goes_on_and_ends_the_same(
    tiny_config, undisturbed, tmp_path
):
    config = tiny_config(tmp_path / "run", **LONG)
    process = start_python("-m", "tinyllm_lib.train", *arguments(config))
    wait_until(
        lambda: lines_in(tmp_path / "run" / "metrics.jsonl") > 5 or process.poll() is not None,
        "six steps",
    )
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert 5 < stopped < 120
    assert f"Stopped after step {stopped} of 120; the checkpoint is saved. The same" in output

    train(config)
    assert f"Going on from step_{stopped:06d}." in (tmp_path / "run" / "train.log").read_text(
        "utf-8"
    )
    assert_same_end(tmp_path / "run", undisturbed)
    assert [row["step"] for row in metrics(undisturbed)] == list(range(1, 121))


def test_a_run_killed_at_a_random_step_goes_on_and_ends_the_same(
    tiny_config, undisturbed, tmp_path
):
    config, run = tiny_config(tmp_path / "run", **LONG), tmp_path / "run"
    step = random.SystemRandom().randrange(1, 110)
    process = start_python("-m", "tinyllm_lib.train", *arguments(config))
    wait_until(
        lambda: lines_in(run / "metrics.jsonl") >= step or process.poll() is not None,
        f"step {step}",
    )
    process.kill()
    assert "Finished" not in process.communicate()[0], step
    for name, torn in (
        ("metrics.jsonl", b'{"step": 119, "tok'),
        ("samples.jsonl", '{"step": 119, "text": "小'.encode()[:-1]),
    ):
        with (run / name).open("ab") as file:
            # what a kill or a full disk leaves, in the middle of a line and of a character
            file.write(torn)
    train(config)
    assert_same_end(run, undisturbed)
    assert [row["step"] for row in metrics(run)] == list(range(1, 121)), step
    assert not (run / "samples.jsonl").exists() or not (run / "samples.jsonl").read_bytes()


def test_a_line_separator_in_a_sample_is_no_end_of_line(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(
        tmp_path / "run", steps=2, save_interval=1, eval_interval=1, sample_prompts="小猫"
    )
    monkeypatch.setattr(TextGenerator, "complete", lambda *_, **__: "one\u2028two")
    train(config)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000002")
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    train(config)
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
def test_a_compiled_run_killed_at_a_random_step_goes_on_and_ends_the_same(tiny_config, tmp_path):
    torch._dynamo.reset()
    # of 4 rows: micro-batches of two sizes
    compiled = {**LONG, "compile": True, "grad_accumulation_steps": 3}
    undisturbed = train(tiny_config(tmp_path / "undisturbed", **compiled))
    config, run = tiny_config(tmp_path / "run", **compiled), tmp_path / "run"
    step = random.SystemRandom().randrange(1, 110)
    process = start_python("-m", "tinyllm_lib.train", *arguments(config))
    wait_until(
        lambda: lines_in(run / "metrics.jsonl") >= step or process.poll() is not None,
        f"step {step}",
        240,
    )
    process.kill()
    assert "Finished" not in process.communicate()[0], step
    torch._dynamo.reset()
    train(config)
    assert "1 x cpu, fp32, compiled" in (run / "train.log").read_text("utf-8")
    assert_same_end(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_random_kills_leave_no_trace_in_the_result(tiny_config, tmp_path):
    long = {
        "steps": 1000,
        "batch_size": 4,
        "save_interval": 7,
        "seed": 3,
        "eval_interval": 50,
        "sample_prompts": "小猫",
    }
    config, run, dice = (
        tiny_config(tmp_path / "run", **long),
        tmp_path / "run",
        random.SystemRandom(),
    )
    for kill in range(20):
        process = start_python("-m", "tinyllm_lib.train", *arguments(config))
        done = lines_in(run / "metrics.jsonl")
        step = dice.randrange(done + 1, done + 40)
        wait_until(
            lambda step=step, process=process: last_step(run) >= step or process.poll() is not None,
            f"step {step}",
            240,
        )
        time.sleep(dice.random() * 0.02)  # anywhere in a step, or in a checkpoint
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, f"kill {kill} at step {step}:\n{output}"
    train(config)
    undisturbed = train(replace(config, out_dir=str(tmp_path / "undisturbed")))
    assert_same_end(run, undisturbed)
    assert [row["step"] for row in metrics(run)] == list(range(1, 1001))
    assert (run / "samples.jsonl").read_text("utf-8") == (undisturbed / "samples.jsonl").read_text(
        "utf-8"
    )


@pytest.mark.slow
def test_two_killed_processes_go_on_and_end_the_same(tiny_config, tmp_path):
    def start(run):
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            2,
            "-m",
            "tinyllm_lib.train",
        ]
        config = tiny_config(run, steps=60, batch_size=4, save_interval=10)
        return start_python(
            *command, *arguments(config), OMP_NUM_THREADS="1", start_new_session=True
        )

    killed = start(tmp_path / "run")
    wait_until(
        lambda: last_step(tmp_path / "run") > 25 or killed.poll() is not None, "step 26", 240
    )
    os.killpg(killed.pid, signal.SIGKILL)
    assert "Finished" not in killed.communicate(timeout=60)[0]
    for name in ("run", "undisturbed"):
        process = start(tmp_path / name)
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0 and "Finished" in output, output
    assert_same_end(tmp_path / "run", tmp_path / "undisturbed")


def last_step(run):
    """The last whole line of metrics.jsonl tells; 0 before the first."""
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_a_damaged_newest_checkpoint_is_passed_over(tiny_config, tmp_path, capsys):
    config = tiny_config(tmp_path / "run", steps=6, save_interval=2)
    run = train(config)
    expected = weights(run)
    (step_folders(run)[-1] / "model.safetensors").write_bytes(b"")
    train(config)
    out = capsys.readouterr().out
    assert "step_000006 is damaged" in out and "Going on from step_000004." in out
    assert all(torch.equal(weights(run)[name], expected[name]) for name in expected)


def test_a_finished_run_started_again_is_left_as_it_is(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", steps=3)
    before = metrics(train(config))
    # none of these changes the result
    train(replace(config, save_interval=1, log_interval=2, num_workers=2))
    assert metrics(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_configuration_sets_the_old_run_aside(tiny_config, tmp_path, capsys):
    config = tiny_config(tmp_path / "run", steps=3)
    train(config)
    first = measured(tmp_path / "run")
    train(replace(config, seed=1, learning_rate=2e-2))
    differing = "learning_rate (was 0.01, now 0.02), seed (was 0, now 1)"
    assert (
        f"An older run lay in run; it is now run.old1 (different: {differing})."
        in capsys.readouterr().out
    )
    assert measured(tmp_path / "run.old1") == first != measured(tmp_path / "run")
    train(replace(config, seed=1, learning_rate=2e-2, resume="never"))
    assert "it is now run.old2." in capsys.readouterr().out
    assert measured(tmp_path / "run.old2") == measured(tmp_path / "run")


# ---- what a run was made from


def test_a_new_base_at_the_same_path_makes_a_new_chat_run(
    tiny_config, sft_tokens, tmp_path, capsys
):
    base = tiny_config(tmp_path / "base", steps=2)
    train(base)
    chat = tiny_config(
        tmp_path / "chat",
        init_from=str(tmp_path / "base"),
        data_path=str(sft_tokens),
        tokenizer_path="",
        steps=2,
    )
    train(chat)
    old = weights(tmp_path / "chat")
    train(replace(base, resume="never"))  # the same weights once more
    train(replace(chat, resume="must"))
    train(replace(base, seed=1))
    with pytest.raises(
        ValueError,
        match=(
            r"resume='must', but .*chat is another run; different: init_from \(was \w{16}, now"
            r" \w{16}\)\."
        ),
    ):
        train(replace(chat, resume="must"))
    capsys.readouterr()
    train(chat)
    assert (
        "An older run lay in chat; it is now chat.old1 (different: init_from (was "
        in capsys.readouterr().out
    )
    assert any(
        not torch.equal(tensor, old[name]) for name, tensor in weights(tmp_path / "chat").items()
    )


def test_a_changed_second_shard_makes_another_run_and_a_changed_validation_set_does_not(
    tiny_config, tokenizer, tmp_path
):
    def write(split, texts):
        return write_pretrain_tokens(
            texts,
            tokenizer,
            tmp_path / "tokens" / split,
            shard_tokens=1,
            replace=True,
            source=f"{texts}",
        )

    texts = TEXTS * (1 + 1024 // len(TEXTS))  # shards end with a batch of 1,024 documents
    before, _ = write("train", texts), write("val", TEXTS[:4])
    config = tiny_config(tmp_path / "run", data_path=str(tmp_path / "tokens"), steps=1)
    train(config)
    write("val", TEXTS[4:9])
    train(replace(config, resume="must"))
    after = write("train", [*texts[:-1], TEXTS[0] + "！"])
    assert before["shards"][0] == after["shards"][0] and before["shards"][1] != after["shards"][1]
    with pytest.raises(
        ValueError, match=r"is another run; different: shards \(was \w{16}, now \w{16}\)\."
    ):
        train(replace(config, resume="must"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_that_was_changed_and_kept_its_size_is_never_trained_on(
    tiny_config, tmp_path, split
):
    config = tiny_config(tmp_path / "run", steps=4)
    shutil.copytree(config.data_path, tmp_path / "tokens")
    shard = tmp_path / "tokens" / split / "shard_00000.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    with pytest.raises(ValueError, match=rf"{split}/shard_00000\.bin does not match its checksum"):
        train(replace(config, data_path=str(tmp_path / "tokens")))


def test_a_run_of_which_nobody_knows_what_it_was_made_from_is_set_aside(
    tiny_config, tmp_path, capsys
):
    config = tiny_config(tmp_path / "run", steps=1)
    saved = json.loads((train(config) / "config.json").read_text("utf-8"))
    del saved["made_from"]  # as version 0.1 wrote it
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved), "utf-8")
    train(config)
    assert (
        "it is now run.old1 (different: there is no record of what it was made from)."
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("left", [b"", b'{"steps": 1,', b"null", b"[1]", b"\xff\x00"])
def test_a_run_whose_config_json_is_damaged_is_set_aside_too(tiny_config, tmp_path, capsys, left):
    config = tiny_config(tmp_path / "run", steps=1)
    (train(config) / "config.json").write_bytes(left)
    with pytest.raises(
        ValueError, match=r"resume='must', but .* there is no record of what it was made from\."
    ):
        train(replace(config, resume="must"))
    assert model_name(latest_checkpoint(tmp_path / "run")) == "run, step 1 of ?"
    assert kind_of_run(tmp_path / "run") == "chat"
    assert [config for _, config, _ in read_stages(latest_checkpoint(tmp_path / "run"))] == [{}]
    train(config)
    assert (
        "it is now run.old1 (different: there is no record of what it was made from)."
        in capsys.readouterr().out
    )


def test_a_run_that_was_moved_is_named_as_it_is_now_where_it_goes_on(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "here" / "run", steps=2, save_interval=1)
    before = json.loads((train(config) / "config.json").read_text("utf-8"))
    shutil.rmtree(step_folders(tmp_path / "here" / "run")[-1])
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = train(replace(config, out_dir=str(tmp_path / "there" / "run"), save_interval=2))
    after = json.loads((moved / "config.json").read_text("utf-8"))
    assert after == before | {"out_dir": str(moved), "save_interval": 2}
    # as it says itself how to go on
    train(parse_args(["--config", str(moved / "config.json"), "--resume", "must"]))
    assert [step_of(folder) for folder in step_folders(tmp_path / "here" / "run")] == [1]


def test_other_weights_written_into_the_checkpoint_that_a_run_started_from_are_seen(
    tiny_config, sft_tokens, tmp_path
):
    base, other = (
        latest_checkpoint(train(tiny_config(tmp_path / f"base{seed}", steps=1, seed=seed)))
        for seed in (0, 1)
    )
    chat = tiny_config(
        tmp_path / "chat",
        init_from=str(base),
        data_path=str(sft_tokens),
        tokenizer_path="",
        steps=1,
    )
    train(chat)
    # its checkpoint.json still has the sums of what was there before
    shutil.copy(other / "model.safetensors", base)
    with pytest.raises(ValueError, match=r"is another run; different: init_from \(was "):
        train(replace(chat, resume="must"))


@pytest.mark.parametrize("own", ["config.json", "samples.jsonl"])
def test_a_folder_that_is_no_run_is_not_emptied(tiny_config, tmp_path, own):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / own).write_text('{"mine": 1}', "utf-8")
    with pytest.raises(ValueError, match=rf"mine is no run, but holds \['{own}'\]: choose another"):
        train(tiny_config(tmp_path / "mine", steps=1))
    assert (tmp_path / "mine" / own).read_text("utf-8") == '{"mine": 1}'


def test_checkpoints_of_another_kind_are_not_deleted(tiny_config, tmp_path):
    (tmp_path / "run" / "checkpoints" / "checkpoint-500").mkdir(parents=True)
    train(tiny_config(tmp_path / "run", steps=1))
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-500").is_dir()


def test_config_json_tells_the_size_that_a_model_brought_along(tiny_config, sft_tokens, tmp_path):
    train(tiny_config(tmp_path / "base", steps=1))
    changes = {"init_from": str(tmp_path / "base"), "data_path": str(sft_tokens), "steps": 1}
    for dim in (512, 1024):  # an option that plays no part makes no other run
        run = train(tiny_config(tmp_path / "chat", dim=dim, **changes))
        assert json.loads((run / "config.json").read_text("utf-8"))["dim"] == 32
    assert not (tmp_path / "chat.old1").exists()


def test_how_the_number_of_steps_came_about_makes_no_other_run(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", steps=0, epochs=0.25)
    steps = json.loads((train(config) / "config.json").read_text("utf-8"))["steps"]
    train(replace(config, epochs=7.0, steps=steps, resume="must"))


def test_a_second_trainer_in_one_folder_is_refused_and_never_mixes_with_the_first(
    tiny_config, tmp_path, monkeypatch
):
    fcntl = pytest.importorskip("fcntl")
    config = tiny_config(tmp_path / "run", steps=1)

    def taken(self=None):
        with (tmp_path / "run" / "train.log").open("a") as log, pytest.raises(BlockingIOError):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(Trainer, "sample", taken)
    train(config)
    with (tmp_path / "run" / "train.log").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="Another process trains in .*run, or still saves"):
            train(replace(config, seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    train(replace(config, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old1"]


def test_a_run_that_never_saved_is_begun_anew(tiny_config, tmp_path):
    (tmp_path / "run" / "checkpoints" / ".tmp-0123abcd-step_000002").mkdir(parents=True)
    (
        tmp_path / "run" / "checkpoints" / ".tmp-0123abcd-step_000002" / "model.safetensors"
    ).write_bytes(b"half")
    (tmp_path / "run" / "config.json").write_text(
        json.dumps(asdict(tiny_config(tmp_path / "run", steps=9)))
    )
    (tmp_path / "run" / "metrics.jsonl").write_text("old")
    run = train(tiny_config(tmp_path / "run", steps=1))
    assert [row["step"] for row in metrics(run)] == [1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000001"]


@pytest.mark.parametrize("out_dir", ["run", "model"])
def test_a_run_never_moves_away_the_model_it_starts_from(tiny_config, tmp_path, out_dir):
    run = train(tiny_config(tmp_path / "run", steps=1))
    shutil.copytree(latest_checkpoint(run), tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"out_dir .*{out_dir} holds a model that would be moved"):
        train(tiny_config(tmp_path / out_dir, init_from=str(tmp_path / out_dir), seed=1))
    assert [path for path in before if not path.exists()] == []


def test_resume_must_refuses_anything_else(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", steps=1)
    with pytest.raises(FileNotFoundError, match="resume='must', but .*run holds no checkpoint"):
        train(replace(config, resume="must"))
    train(config)
    with pytest.raises(
        ValueError,
        match=(
            r"resume='must', but .*run is another run; different: weight_decay \(was 0\.1, now"
            r" 0\.0\)"
        ),
    ):
        train(replace(config, resume="must", weight_decay=0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---- what goes wrong


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    tiny_config, pretrained, tmp_path
):
    poisoned = tmp_path / "poisoned"
    Transformer.from_pretrained(latest_checkpoint(pretrained)).save_pretrained(poisoned)
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RuntimeError,
        match=r"loss is nan at step 1, .* Last good checkpoint: none\. Lower learning_rate",
    ):
        train(tiny_config(tmp_path / "run", init_from=str(poisoned)))
    assert not step_folders(tmp_path / "run")


def test_a_learning_rate_far_too_high_names_the_last_good_checkpoint(tiny_config, tmp_path):
    config = tiny_config(
        tmp_path / "run", learning_rate=1e38, warmup_steps=0, optimizer="adamw", save_interval=1
    )
    with pytest.raises(RuntimeError, match=r"at step 2, .*Last good checkpoint: step_000001\."):
        train(replace(config, log_interval=100))  # also between two lines of the log
    assert [step_of(folder) for folder in step_folders(tmp_path / "run")] == [1]


def test_no_memory_left_says_what_the_run_needs_and_what_to_change(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("tinyllm_lib.train.memory.device_gigabytes", lambda processes: 16.0)
    monkeypatch.setattr(Transformer, "weighted_nll", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as raised:
        train(tiny_config(tmp_path / "run", batch_size=8))
    advice = (
        "By estimate this run needs 0.00208 of 16 GB: double grad_accumulation_steps (now 1; the"
        " result is the same), or take a smaller model or max_seq_len; samples need no room without"
        " sample_prompts."
    )
    assert raised.value.__notes__ == [f"{advice} Last good checkpoint: none."]
    log = (tmp_path / "run" / "train.log").read_text("utf-8")
    assert log.endswith(f"Failed after step 0: CUDA out of memory. {advice}\n")


def test_no_memory_left_on_a_cpu_later_in_the_run_names_the_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    nll, calls = Transformer.weighted_nll, []

    def too_large_in_step_three(*args, **options):
        calls.append(1)
        if len(calls) > 8:
            torch.empty(2**60, dtype=torch.uint8)  # the CPU's own error
        return nll(*args, **options)

    monkeypatch.setattr(Transformer, "weighted_nll", too_large_in_step_three)
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        train(tiny_config(tmp_path / "run", save_interval=1, grad_accumulation_steps=4))
    advice = r"grad_accumulation_steps .now 4;.*checkpoint: step_000002\.$"
    assert re.search(advice, raised.value.__notes__[0])


@pytest.mark.parametrize("where", ["train.trainer.score", "generate.decoding.KVCache"])
def test_no_memory_left_for_an_evaluation_or_the_samples_says_so(
    tiny_config, tmp_path, monkeypatch, where
):
    monkeypatch.setattr(f"tinyllm_lib.{where}", no_memory)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        train(tiny_config(tmp_path / "run", steps=1, sample_prompts="小猫"))
    assert raised.value.__notes__[0].startswith("By estimate this run needs")


def test_what_memory_does_not_hold_in_training_it_need_not_hold_in_an_evaluation(
    tiny_config, tmp_path, monkeypatch
):
    trainer = trainer_of(tiny_config(tmp_path / "run", grad_accumulation_steps=4))
    sizes, nats = [], Transformer.hidden_states
    monkeypatch.setattr(
        Transformer,
        "hidden_states",
        lambda model, ids, **options: sizes.append(len(ids)) or nats(model, ids, **options),
    )
    trainer.evaluate()
    assert set(sizes) <= {1, 2} and 2 in sizes


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_auto_takes_the_micro_batches_that_fit_on_a_gpu_and_one_elsewhere(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(tmp_path / "run", steps=2, grad_accumulation_steps="auto")
    train(config)
    need = train_memory(replace(config, grad_accumulation_steps=1), 400)
    *rest, activations = need.values()
    monkeypatch.setattr(
        "tinyllm_lib.train.memory.device_gigabytes",
        lambda *_: (sum(rest) + 1.35 * activations / 4) / 0.9,
    )
    run = prepare_run(replace(config, resume="must"), ALONE)  # the same result: the same run
    assert run.micro_batches == 1
    number = micro_batches_that_fit(config, 400, replace(ALONE, device=torch.device("cuda")))
    settled = replace(run.config, grad_accumulation_steps=number)
    assert len(build(replace(run, config=settled)).load_step(0)[0]) == 4
    assert "grad_accumulation_steps is 1" in (tmp_path / "run" / "train.log").read_text("utf-8")
    assert (
        get_profile("full").pretrain["grad_accumulation_steps"]
        == get_profile("full").sft["grad_accumulation_steps"]
        == "auto"
    )


def test_another_error_in_a_step_stays_what_it_is(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Transformer, "weighted_nll", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as raised:
        train(tiny_config(tmp_path / "run"))
    assert not hasattr(raised.value, "__notes__")


def test_samples_are_written_at_each_evaluation_and_change_nothing(tiny_config, tmp_path):
    options = {"steps": 4, "eval_interval": 2, "save_interval": 2}
    silent, talking = (tiny_config(tmp_path / name, **options) for name in ("silent", "talking"))
    train(silent)
    train(replace(talking, sample_prompts="小猫|白鹅 "))
    rows = [
        json.loads(line)
        for line in (tmp_path / "talking" / "samples.jsonl").read_text("utf-8").splitlines()
    ]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (2, "小猫"),
        (2, "白鹅"),
        (4, "小猫"),
        (4, "白鹅"),
    ]
    assert all(isinstance(row["text"], str) for row in rows)
    assert "sample  小猫 → " in (tmp_path / "talking" / "train.log").read_text("utf-8")
    assert_same_end(tmp_path / "talking", tmp_path / "silent")


@pytest.mark.parametrize(
    ("tokens", "how"), [("pretrain_tokens", "complete"), ("sft_tokens", "chat")]
)
def test_samples_go_on_with_a_text_or_answer_as_the_run_learns(
    tiny_config, tmp_path, monkeypatch, request, tokens, how
):
    for name in ("complete", "chat"):
        monkeypatch.setattr(TextGenerator, name, lambda *_, name=name, **__: name)
    data = str(request.getfixturevalue(tokens))
    train(tiny_config(tmp_path / "run", steps=1, sample_prompts="小猫", data_path=data))
    assert json.loads((tmp_path / "run" / "samples.jsonl").read_text("utf-8"))["text"] == how


def test_a_terminal_that_cannot_show_a_sample_does_not_end_the_run(
    tiny_config, tmp_path, monkeypatch
):
    # shown with ⏎, which GBK does not have
    config = tiny_config(tmp_path / "run", steps=1, sample_prompts="小猫\n白鹅")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="gbk"))
    monkeypatch.setattr(sys, "argv", ["train", *arguments(config)])
    main()
    assert [step_of(folder) for folder in step_folders(tmp_path / "run")] == [1]


def test_a_full_disk_under_the_launchers_output_does_not_end_the_run(
    tiny_config, tmp_path, monkeypatch
):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    train(tiny_config(tmp_path / "run", steps=1))
    assert "Finished" in (tmp_path / "run" / "train.log").read_text("utf-8")


def test_a_sample_prompt_that_does_not_fit_is_told_and_the_run_goes_on(
    tiny_config, sft_tokens, tmp_path
):
    prompts = {"sample_prompts": "小猫" * 99, "data_path": str(sft_tokens)}
    run = train(tiny_config(tmp_path / "run", steps=1, **prompts))
    assert "does not fit" in json.loads((run / "samples.jsonl").read_text("utf-8"))["text"]


def test_a_run_made_before_an_option_existed_goes_on(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", steps=4, save_interval=2)
    train(config)
    saved = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    saved["tracker"] = "none"  # an option that is gone, and two that came later
    del saved["sample_prompts"], saved["min_lr_share"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved), "utf-8")
    train(replace(config, resume="must"))


def test_batches_are_prepared_in_order_by_several_threads(tiny_config, tmp_path):
    for name, threads in (("one", 1), ("three", 3)):
        train(tiny_config(tmp_path / name, steps=6, num_workers=threads))
    assert_same_end(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_never_waits_for_the_device(tiny_config, tmp_path, optimizer, monkeypatch):
    """On the meta device there are no numbers, so to read one is an error, where on a GPU it would
    be a wait.
    """
    # meta has no autocast and no fused optimiser
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda params, fused, **options: AdamW(params, **options)
    )
    trainer = trainer_of(tiny_config(tmp_path / "run", optimizer=optimizer))
    on(trainer, device=torch.device("meta"))
    trainer.model = trainer.model.to("meta")
    trainer.objective = Objective(trainer.model)
    trainer.optimizers = make_optimizers(trainer.model, trainer.run.config)
    batches, supervised, _ = trainer.load_step(0)
    for _ in range(2):
        trainer.accumulate_gradients(batches, supervised)
        trainer.update()
    with pytest.raises(RuntimeError, match="meta"):
        trainer.check_finite()  # a line of the log is where the numbers are read


def test_a_batch_for_a_gpu_lies_in_pinned_memory(tiny_config, tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    trainer = trainer_of(tiny_config(tmp_path / "run", grad_accumulation_steps=2))
    trainer.load_step(0)
    assert not pinned
    on(trainer, device=torch.device("cuda"))
    batches = trainer.load_step(0)[0]
    assert [id(tensor) for tensor in pinned] == [
        id(tensor) for batch in batches for tensor in batch
    ]


def test_where_flash_attention_works_a_batch_tells_where_its_documents_begin(
    tiny_config, tmp_path, monkeypatch
):
    """On a GPU they would have to be looked for, which waits for it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    trainer = trainer_of(tiny_config(tmp_path / "run"))
    on(trainer, device=torch.device("cuda"))
    (batch,), *counts = trainer.load_step(0)
    assert trainer.run.documents_of(batch).keys() == {"position_ids", "document_ids"}
    trainer.flash = True
    (with_starts,), *same_counts = trainer.load_step(0)
    assert trainer.run.documents_of(with_starts).keys() == {"position_ids", "document_starts"}
    assert torch.equal(with_starts.document_ids, document_starts(batch.document_ids))
    assert same_counts == counts


# ---- the machine


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 0),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 0),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 D", 0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 0),
        ("NVIDIA GeForce RTX 3090 Ti", 0),
        ("Tesla T4", 65),
        ("Tesla P100-PCIE-16GB", 0),
    ],
)
def test_the_peak_is_that_of_the_card_with_this_whole_name_and_others_are_measured(name, teraflops):
    assert devices.data_sheet_flops(name) == teraflops * 1e12


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_threads_are_as_many_as_the_cores_that_are_allowed(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        os.sched_setaffinity(0, {min(allowed)})
        Processes.join(TrainConfig(device="cpu"))
        assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def test_without_a_place_to_meet_what_is_left_in_the_environment_makes_no_other_processes(
    monkeypatch,
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = Processes.join(TrainConfig(device="cpu"))
    assert (found.rank, found.world_size, found.machines) == (0, 1, 1)


def test_processes_of_another_launcher_that_says_all_train_together(tiny_config, tmp_path):
    place = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "LOCAL_WORLD_SIZE": "2",
    }
    command = ["-m", "tinyllm_lib.train", *arguments(tiny_config(tmp_path / "run", steps=2))]
    started = [start_python(*command, **place, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "2 x cpu" in outputs[0]


def test_compile_is_used_where_a_run_is_longer_than_twice_the_compilers_time():
    assert devices.compile_pays(2 * devices.COMPILE_SECONDS)[0]
    assert devices.compile_pays(107.0) == (
        False,
        "it pays back from 108 s on, without it this run would take 107 s",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, is 0"),
        (
            {"learning_rate": -1.0, "log_interval": 0},
            "learning_rate must be positive, is -1.0; log_interval must be",
        ),
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps must be positive"),
        (
            {"grad_accumulation_steps": "some"},
            "grad_accumulation_steps must be of type int or 'auto', is 'some'",
        ),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, is 'sgd'"),
        ({"dtype": "fp8"}, "dtype must be one of auto, fp32, bf16, fp16, is 'fp8'"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, mps"),
        ({"resume": "yes"}, "resume must be one of auto, never, must"),
        ({"compile": "yes"}, "compile must be one of auto, True, False, is 'yes'"),
        (
            {"packing": "tight"},
            "packing must be one of best_fit, stream, none, is 'tight'",
        ),
        ({"packing": "bestfit"}, "packing must be one of best_fit, stream, none"),
        ({"steps": -5}, "steps must not be negative, is -5"),  # it "finished" and had no checkpoint
        ({"grad_clip": -1.0}, "grad_clip must not be negative"),  # it went uphill
        ({"eval_rows": 0}, "eval_rows must be positive"),  # its validation loss was 0
        ({"learning_rate": math.nan}, "learning_rate must be positive, is nan"),
        ({"learning_rate": "1e-3"}, "learning_rate must be of type float, is '1e-3'"),
        (
            {"batch_size": 8.5, "out_dir": None},
            "out_dir must be of type str, is None; batch_size must be of type int, is 8.5",
        ),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=f"TrainConfig: .*{message}"):
        TrainConfig(**changes)


def test_a_path_and_a_whole_number_written_as_a_float_are_taken(tmp_path):
    config = TrainConfig(out_dir=tmp_path, tokens=1e9, steps=np.int64(5))
    assert type(config.steps) is int, "for config.json"
    assert (config.out_dir, config.tokens) == (str(tmp_path), 10**9)
    assert (
        parse_args([f"--{name}={getattr(config, name)}" for name in ("out_dir", "tokens", "steps")])
        == config
    )


def test_a_tokenizer_that_does_not_fit(tiny_config, pretrained, tmp_path):
    other = train_tokenizer(["小猫和白鹅。"] * 9, tmp_path / "other", vocab_size=280)
    changes = {"tokenizer_path": str(tmp_path / "other")}
    with pytest.raises(ValueError, match="written with another tokenizer"):
        train(tiny_config(tmp_path / "run", **changes))
    write_sft_tokens([], other, tmp_path / "tokens", replay=["小猫" * 40])
    changes |= {"data_path": str(tmp_path / "tokens"), "init_from": str(pretrained)}
    with pytest.raises(
        ValueError,
        match="tokenizer has 280 tokens, the model was made for 400.* leave tokenizer_path empty",
    ):
        train(tiny_config(tmp_path / "run", **changes))
    with pytest.raises(ValueError, match="tokenizer_path is empty, and so is init_from"):
        train(tiny_config(tmp_path / "run", tokenizer_path=""))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(tiny_config, tmp_path, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=f"device='{device}': process 0 of this machine finds 0 of them"
    ):
        train(tiny_config(tmp_path / "run", device=device))


def test_a_gpu_whose_driver_is_too_old_leaves_the_cpu(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the driver counts it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert Processes.join(tiny_config(tmp_path / "run", device="auto")).device.type == "cpu"


def test_a_start_that_is_not_there_or_too_short(tiny_config, pretrained, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train(tiny_config(tmp_path / "run", init_from=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="knows 32 positions, max_seq_len is 64: lower it"):
        train(tiny_config(tmp_path / "run", init_from=str(pretrained), max_seq_len=64))
    with pytest.raises(FileNotFoundError, match="no finished token shards"):
        train(tiny_config(tmp_path / "run", data_path=str(tmp_path)))


# ---- number formats


SHAPE = ModelConfig(32, 2, 4, 2)


@pytest.mark.parametrize(("speedup", "dtype"), [(1.8, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_on_a_cpu_auto_takes_bf16_where_a_layer_of_the_model_trains_clearly_faster_in_it(
    monkeypatch, speedup, dtype
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(devices, "bf16_speedup", lambda inputs, outputs: speedup)
    found, why = choose_dtype("auto", torch.device("cpu"), SHAPE)
    assert found == dtype and f"a layer trains {speedup:.2g} times as fast" in why


def test_a_cpu_without_bf16_is_not_made_to_try(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(devices, "bf16_speedup", None)
    found = choose_dtype("auto", torch.device("cpu"), SHAPE)
    assert found == ("fp32", "this cpu has no bf16 instructions")


def test_the_trial_draws_no_random_number():
    before = torch.get_rng_state()
    assert devices.bf16_speedup(16, 32) > 0 and torch.equal(torch.get_rng_state(), before)


def test_a_run_says_why_it_has_its_number_format_and_tries_it_with_its_own_shapes(
    tiny_config, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "tinyllm_lib.train.run_folder.choose_dtype",
        lambda *about: asked.append(about) or ("fp32", "tried it"),
    )
    run = train(tiny_config(tmp_path / "run", dtype="auto", steps=1))
    assert asked == [("auto", torch.device("cpu"), SHAPE)]
    assert "The number format is float32: tried it." in (run / "train.log").read_text("utf-8")


def test_of_several_processes_the_first_one_decides_on_the_number_format(
    tiny_config, tmp_path, monkeypatch
):
    decided = [None, {"dtype": "bfloat16", "device": "cpu"}, "the first one says so"]
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda found, src: found.__setitem__(slice(None), decided)
    )
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr("tinyllm_lib.train.run_folder.choose_dtype", None)
    config = tiny_config(tmp_path / "run", dtype="auto")
    run = prepare_run(config, replace(ALONE, rank=1, world_size=2))
    assert run.dtype == torch.bfloat16


def test_a_run_keeps_the_number_format_it_began_with_on_whatever_machine_it_goes_on(
    tiny_config, tmp_path, capsys
):
    config = tiny_config(tmp_path / "run", dtype="auto", steps=3, save_interval=1, keep_last=3)
    run = train(config)
    saved = json.loads((run / "config.json").read_text("utf-8"))
    saved["resolved"] |= {"dtype": "bfloat16", "device": "cuda"}  # as a GPU would have begun it
    (run / "config.json").write_text(json.dumps(saved), "utf-8")
    before = metrics(run)
    for dtype in ("auto", "bf16"):
        train(replace(config, dtype=dtype, device="cpu"))  # finished is finished
        assert metrics(run) == before and [path.name for path in tmp_path.iterdir()] == ["run"]
    shutil.rmtree(step_folders(run)[-1])
    train(config)
    assert "steps 2 to 3, 1 x cpu, bf16" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"another run; different: dtype \(was bfloat16, now float32\)\."
    ):
        train(replace(config, dtype="fp32", resume="must"))


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_on_a_gpu_auto_takes_bf16_from_ampere_on_and_fp16_before(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cuda"), SHAPE)[0] == dtype


def test_a_number_format_that_is_asked_for_is_used(tiny_config, tmp_path):
    assert choose_dtype("fp32", torch.device("cuda"), SHAPE) == ("fp32", "asked for")
    assert choose_dtype("auto", torch.device("mps"), SHAPE)[0] == "fp32"
    run = train(tiny_config(tmp_path / "run", dtype="bf16", steps=2))
    assert json.loads((run / "config.json").read_text("utf-8"))["resolved"]["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert metrics(run)[0]["loss"] == pytest.approx(math.log(400), abs=0.3)


# ---- fp16, whose numbers end at 65,504 and vanish below 6e-8


def test_gradients_too_small_for_fp16_do_not_vanish(tiny_config, tmp_path):
    """Divided by the tokens of a large step they would."""
    norms = {}
    for dtype in ("fp32", "fp16"):
        trainer = trainer_of(tiny_config(tmp_path / dtype, dtype=dtype))
        trainer.accumulate_gradients(trainer.load_step(0)[0], supervised_tokens=10**7)
        trainer.update()
        norms[dtype] = trainer.norm.item(), trainer.loss.item()
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.01)


def test_in_fp16_a_run_learns_as_in_fp32(tiny_config, tmp_path):
    losses = [
        [row["loss"] for row in metrics(train(tiny_config(tmp_path / dtype, dtype=dtype)))]
        for dtype in ("fp32", "fp16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


@pytest.fixture
def too_large_a_scale(monkeypatch):
    """The first steps in fp16 overflow."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**34, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


def test_a_step_without_a_finite_gradient_is_skipped_said_and_counted(
    tiny_config, tmp_path, too_large_a_scale
):
    trainer = trainer_of(tiny_config(tmp_path / "run", dtype="fp16"))
    before = [p.clone() for p in trainer.model.parameters()]
    batches, supervised, _ = trainer.load_step(0)
    trainer.accumulate_gradients(batches, supervised)
    trainer.update()
    assert trainer.skipped == 1 and trainer.scaler.get_scale() == 2.0**33
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert not any(optimizer.state for optimizer in trainer.optimizers)

    run = train(tiny_config(tmp_path / "other", dtype="fp16", steps=30, log_interval=1))
    skipped = [row["skipped_steps"] for row in metrics(run)]
    assert 5 < skipped[-1] < 29 and skipped == sorted(skipped)
    log = (run / "train.log").read_text("utf-8")
    assert log.count("is skipped: its gradient was not finite") == skipped[-1]
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"] and "grad_norm" in metrics(run)[-1]


@pytest.mark.parametrize("stop_after", [4, 20])
def test_a_run_in_fp16_goes_on_with_its_scale_and_ends_the_same(
    tiny_config, tmp_path, too_large_a_scale, stop_after
):
    config = tiny_config(tmp_path / "whole", dtype="fp16", steps=24, save_interval=stop_after)
    train(config)
    parts = replace(config, out_dir=str(tmp_path / "parts"), keep_last=99)
    train(parts)
    for folder in step_folders(tmp_path / "parts"):
        if step_of(folder) > stop_after:
            shutil.rmtree(folder)
    train(parts)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    states = [load_state(latest_checkpoint(tmp_path / name)) for name in ("whole", "parts")]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["skipped"] == states[1]["skipped"] > 3


def test_in_fp16_too_a_model_that_is_broken_ends_the_run(tiny_config, pretrained, tmp_path):
    poisoned = tmp_path / "poisoned"
    model = Transformer.from_pretrained(latest_checkpoint(pretrained))
    model.model.norm.weight.data[3] = math.nan
    model.save_pretrained(poisoned)
    config = tiny_config(tmp_path / "run", init_from=str(poisoned), dtype="fp16", steps=40)
    with pytest.raises(RuntimeError, match=r"loss is nan at step .*Last good checkpoint: none"):
        train(config)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")


# ---- checkpoints are written beside training


def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_its_own_step(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(tmp_path / "run", steps=4, save_interval=2, keep_last=9)
    train(replace(config, out_dir=str(tmp_path / "undisturbed")))
    trainer, two_more = trainer_of(config), threading.Event()

    def slow_disk(run, step, *args, **options):
        assert step > 2 or two_more.wait(60)
        return save_checkpoint(run, step, *args, **options)

    monkeypatch.setattr("tinyllm_lib.train.trainer.save_checkpoint", slow_disk)
    update = trainer.update
    monkeypatch.setattr(trainer, "update", lambda: (update(), trainer.step == 3 and two_more.set()))
    trainer.fit()
    for found, expected in zip(
        step_folders(tmp_path / "run"), step_folders(tmp_path / "undisturbed"), strict=True
    ):
        for name in ("model.safetensors", "trainer_state.pt"):
            assert sha256(found / name) == sha256(expected / name)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_says_why(
    tiny_config, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match=r"cannot be written: .*No space left.*Is the disk full"):
        train(tiny_config(tmp_path / "run", steps=9, save_interval=2, log_interval=1))
    log = (tmp_path / "run" / "train.log").read_text("utf-8")
    assert (
        "Failed after step" in log
        and "Finished" not in log
        and not list(tmp_path.glob("run/checkpoints/*/checkpoint.json"))
    )


# ---- torch.compile and the same twice on a GPU, as far as a machine without one shows


@pytest.mark.parametrize(("seconds", "compiled"), [(50.0, True), (0.01, False)])
def test_on_a_gpu_auto_tries_a_step_and_compiles_where_the_run_is_long_enough(
    tiny_config, tmp_path, monkeypatch, seconds, compiled
):
    trainer = trainer_of(tiny_config(tmp_path / "run", steps=6))
    on(trainer, device=torch.device("cuda"))
    clock = iter(range(100))
    monkeypatch.setattr(
        "tinyllm_lib.train.trainer.time.perf_counter", lambda: next(clock) * seconds
    )
    monkeypatch.setattr(trainer, "load_step", lambda step: ([], 1, 1))
    monkeypatch.setattr(trainer, "accumulate_gradients", lambda *_: None)
    trainer._warm_up()
    assert trainer.compiled is compiled
    said = f"torch.compile is {'on' if compiled else 'off'}: it pays back from 108 s on, without it"
    assert f"{said} this run would take {6 * seconds:.3g} s" in (
        tmp_path / "run" / "train.log"
    ).read_text("utf-8")


def test_where_the_compiler_fails_a_run_that_did_not_ask_for_it_goes_on_without(
    uneven_config, one_batch, monkeypatch
):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", None)
    torch._dynamo.reset()
    trainer = trainer_of(replace(uneven_config, resume="never", compile="auto"))
    with torch._dynamo.config.patch(suppress_errors=False):  # restores what compile() sets
        trainer.compile()
        trainer.accumulate_gradients(trainer.load_step(0)[0], sum(UNEVEN) - 2)
    assert_same_gradients(
        {name: p.grad for name, p in trainer.model.named_parameters()},
        {name: gradient for name, gradient in one_batch.items() if name != "loss"},
    )


@needs_compiler
def test_evaluations_and_samples_are_not_compiled(tiny_config, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(tiny_config(tmp_path / "run", steps=2, compile=True, sample_prompts="小猫"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_deterministic_asks_every_kernel_for_a_fixed_order():
    """Not as warnings only: then the backward of attention would keep its atomic sums."""
    code = (
        "import torch; from tinyllm_lib.train import devices; devices._compute_the_same_twice();"
        "print(torch.are_deterministic_algorithms_enabled(),"
        " torch.is_deterministic_algorithms_warn_only_enabled(),"
        " torch.backends.cuda.cudnn_sdp_enabled(), torch._inductor.config.deterministic)"
    )
    process = start_python("-c", code)
    assert process.communicate(timeout=240)[0].split()[-4:] == ["True", "False", "False", "True"]


# ---- the command line


def test_help_lists_every_option_with_a_sentence_and_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for option in fields(TrainConfig):
        assert f"--{option.name} " in out
        assert option.metadata["help"] in out
    assert "(default: 'muon')" in out and "(default: 0.003)" in out


def test_options_come_from_a_file_and_the_command_line_wins(pretrained, tmp_path):
    config = parse_args(
        [
            "--config",
            str(pretrained / "config.json"),
            "--seed",
            "9",
            "--compile=true",
            "--epochs=0.5",
        ]
    )
    saved = json.loads((pretrained / "config.json").read_text("utf-8"))
    assert (config.dim, config.learning_rate, config.out_dir) == (32, 1e-2, saved["out_dir"])
    assert (config.seed, config.compile, config.epochs) == (9, True, 0.5)
    assert parse_args([]) == TrainConfig()
    written = ["--learning_rate", ".003", "--batch_size", "1_024", "--seed", str(2**60 + 1)]
    config = parse_args([*written, "--steps", "1e6", "--compile", "False"])
    assert (config.learning_rate, config.batch_size, config.seed) == (0.003, 1024, 2**60 + 1)
    assert (config.steps, config.compile) == (1_000_000, False)
    assert [
        parse_args(["--grad_accumulation_steps", word]).grad_accumulation_steps
        for word in ("auto", "4")
    ] == ["auto", 4]


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ('{"seeds": 1, "dim": 8}', ["--config", "FILE"], "unexpected keyword argument 'seeds'"),
        ("[]", ["--config", "FILE"], "a list, expected an object"),
        ('{"dim": null}', ["--config", "FILE"], "dim must be of type int, is None"),
        ("{}", ["--dim", "wide"], "dim must be of type int, is 'wide'"),
        (
            "{}",
            ["--grad_accumulation_steps", "some"],
            "grad_accumulation_steps must be of type int or 'auto', is 'some'",
        ),
        ("{}", ["--dims", "8"], "unrecognized arguments: --dims 8"),
    ],
)
def test_what_the_command_line_refuses(content, args, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        parse_args([str(tmp_path / "config.json") if arg == "FILE" else arg for arg in args])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
