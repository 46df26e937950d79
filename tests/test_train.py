"""The trainer: the same result however the work is cut up, stopped or resumed."""

import io
import json
import math
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import gradients
from helpers.tiny import arguments, start_python, wait_until
from safetensors.torch import load_file, save_file
from torch.optim import AdamW

from tinyllm_lib import devices
from tinyllm_lib.checkpoint import latest_checkpoint, load_state, step_folders, step_of
from tinyllm_lib.dataset import PackedDataset
from tinyllm_lib.model import Transformer
from tinyllm_lib.optim import make_optimizers
from tinyllm_lib.tokenizer import token_bytes, train_tokenizer
from tinyllm_lib.tokens import write_sft_tokens
from tinyllm_lib.train import DataOrder, Processes, TrainConfig, Trainer, choose_dtype, get_lr, main, parse_args, train

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

needs_compiler = pytest.mark.skipif(bool(devices.missing_for_cpu_compile()), reason="torch.compile on a CPU needs a C++ compiler")
ALONE = Processes(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
METERS = {"tokens_per_second", "mfu"}  # what may differ between two equal runs


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def measured(run):
    """metrics.jsonl without what depends on the speed of the machine."""
    return [{k: v for k, v in row.items() if k not in METERS} for row in metrics(run)]


def weights(run):
    tensors = load_file(latest_checkpoint(run) / "model.safetensors")
    return {name: tensor.clone() for name, tensor in tensors.items()}  # load_file only maps the file


def assert_same_end(run, other):
    """Same weights, optimiser state and metrics, bit for bit."""
    assert latest_checkpoint(run).name == latest_checkpoint(other).name
    for found, expected in ((weights(run), weights(other)), *zip(optimizer_states(run), optimizer_states(other), strict=True)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert measured(run) == measured(other)


def optimizer_states(run):
    """The tensors of each optimizer: {(parameter, name): tensor}."""
    states = load_state(latest_checkpoint(run))["optimizers"]
    return [{(i, key): torch.as_tensor(v) for i, p in s["state"].items() for key, v in p.items()} for s in states]


# ---- a token weighs the same wherever it lies


UNEVEN = [33, 1, 0, 0, 3, 33, 5, 1]  # learned tokens of the rows of the first step, in its order; the second pair has none


@pytest.fixture(scope="module")
def uneven_tokens(tmp_path_factory, tokenizer):
    """Eight rows of 32 positions whose masks could hardly be less even; the second micro-batch of two has nothing to learn."""
    folder = tmp_path_factory.mktemp("uneven")
    write_sft_tokens([], tokenizer, folder, replay=[f"{n}" + "小猫和白鹅。" * 20 for n in range(8)], max_length=33)
    learned = dict(zip(DataOrder(8, seed=0).step_rows(0, 8), UNEVEN, strict=True))
    mask = [[0] * (33 - learned[row]) + [1] * learned[row] for row in range(8)]
    (folder / "shard_00000.mask").write_bytes(np.array(mask, np.uint8).tobytes())
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


def test_the_gradient_is_that_of_the_mean_over_all_supervised_tokens(uneven_config, uneven_tokens, one_batch):
    rows = [*PackedDataset(uneven_tokens, 32)]
    assert sorted(int(row.loss_mask.sum()) for row in rows) == sorted(min(n, 32) for n in UNEVEN)
    model = Trainer(replace(uneven_config, resume="never"), ALONE).model
    model.zero_grad()
    ids, targets, mask = (torch.stack([row[i] for row in rows]) for i in range(3))
    loss = F.cross_entropy(model(ids)[mask == 1], targets[mask == 1])
    loss.backward()
    assert_same_gradients(one_batch, {"loss": loss, **{n: p.grad for n, p in model.named_parameters()}})


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_gradient_accumulation_changes_nothing(uneven_config, one_batch, micro_batches):
    config = replace(uneven_config, grad_accumulation_steps=micro_batches)
    if micro_batches == 4:
        parts = Trainer(replace(config, out_dir=config.out_dir + "_parts"), ALONE).load_step(0)[0]
        assert [int(part.loss_mask.sum()) for part in parts] == [33, 0, 35, 6]  # of 33 learned tokens 32 are targets
    assert_same_gradients(gradients.first_gradient(config, ALONE), one_batch)


@needs_compiler
def test_compiling_changes_nothing_and_breaks_the_graph_at_the_head_alone(uneven_config, one_batch):
    torch._dynamo.reset()
    assert_same_gradients(gradients.first_gradient(replace(uneven_config, compile=True, grad_accumulation_steps=2), ALONE), one_batch)
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert breaks and all("torch.compiler.disable" in reason for reason in breaks), breaks


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """torchrun(config, processes) -> what gradients.py found in real processes that talk over gloo."""

    def run(config, processes):
        folder = tmp_path_factory.mktemp("torchrun")
        (folder / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, gradients.__file__]
        process = start_python(*command, folder / "config.json", folder / "found.pt", OMP_NUM_THREADS="1")
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
        return torch.load(folder / "found.pt", weights_only=True)

    return run


def test_two_processes_with_accumulation_get_the_same_gradient(uneven_config, one_batch, torchrun):
    found = torchrun(replace(uneven_config, grad_accumulation_steps=2), 2)
    assert_same_gradients(found["gradients"], one_batch)


def test_one_and_two_processes_see_the_same_global_batches_and_the_same_losses(tiny_config, torchrun, tmp_path):
    config = tiny_config(tmp_path / "two", batch_size=7)  # rank 0 gets four rows, rank 1 three
    two = torchrun(config, 2)
    alone = Trainer(replace(config, out_dir=str(tmp_path / "one")), ALONE)
    for step, ids in enumerate(two["batches"]):
        assert torch.equal(ids, torch.cat([batch.X for batch in alone.load_step(step)[0]]))
    alone.fit()
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_a_batch_with_nothing_to_learn_has_loss_zero(tiny_config, tokenizer, tmp_path):
    write_sft_tokens([], tokenizer, tmp_path / "tokens", replay=["小猫和白鹅。" * 20] * 8, max_length=33)
    mask = tmp_path / "tokens" / "shard_00000.mask"
    mask.write_bytes(bytes(mask.stat().st_size))
    run = train(tiny_config(tmp_path / "run", data_path=str(tmp_path / "tokens"), steps=2))
    assert [(row["loss"], row["grad_norm"]) for row in metrics(run)] == [(0.0, 0.0)] * 2
    assert all(w.isfinite().all() for w in weights(run).values())


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
    trainer = Trainer(config, ALONE)
    whole = torch.cat([batch.X for batch in trainer.load_step(4)[0]])
    shares = []
    for rank in (0, 1):
        trainer.processes = replace(ALONE, rank=rank, world_size=2)
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
    return train(tiny_config(tmp_path_factory.mktemp("runs") / "pretrain", steps=30, eval_interval=10, log_interval=5))


def test_what_a_run_folder_holds(pretrained):
    assert sorted(path.name for path in pretrained.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl", "train.log"]
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
    resolved = saved.pop("resolved")
    assert saved == asdict(TrainConfig(**saved))
    assert saved.keys() == {f.name for f in fields(TrainConfig)}
    assert (resolved["dtype"], resolved["device"]) == ("float32", "cpu")
    assert {"data", "tokenizer"} < resolved.keys()


def test_validation_is_in_nats_per_token_and_bits_per_byte(pretrained, pretrain_tokens, tokenizer):
    model = Transformer.from_pretrained(latest_checkpoint(pretrained))
    nats, tokens, size = 0.0, 0, 0
    for row in PackedDataset(pretrain_tokens / "val", 32):
        X, Y, mask, position_ids, document_ids = (part[None] for part in row)
        with torch.no_grad():
            logits = model(X, position_ids=position_ids, document_ids=document_ids)
        nats += F.cross_entropy(logits[mask == 1], Y[mask == 1], reduction="sum").item()
        tokens += int(mask.sum())
        size += sum(len(token_bytes(tokenizer, i)) for i in Y[mask == 1].tolist() if i > 4)
    last = metrics(pretrained)[-1]
    assert last["val_loss"] == pytest.approx(nats / tokens, abs=1e-4)
    assert last["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, abs=1e-4)


def test_a_run_that_fails_says_so_in_its_log(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "update", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config(tmp_path / "run"))
    assert (tmp_path / "run" / "train.log").read_text("utf-8").splitlines()[-1].endswith("  Failed after step 0: division by zero")


def test_steps_follow_from_tokens_or_epochs(tiny_config, tmp_path, pretrain_tokens):
    data = PackedDataset(pretrain_tokens / "train", 32)
    by_epochs = Trainer(tiny_config(tmp_path / "a", steps=0, epochs=2.5), ALONE).config
    assert by_epochs.steps == math.ceil(2.5 * len(data) / 8)
    by_tokens = Trainer(tiny_config(tmp_path / "b", steps=0, tokens=3 * data.positions), ALONE).config
    assert by_tokens.steps == pytest.approx(3 * len(data) / 8, abs=1)


def test_fine_tuning_starts_from_the_weights_and_the_tokenizer_of_a_run(tiny_config, pretrained, sft_tokens, tmp_path):
    changes = {"data_path": str(sft_tokens), "tokenizer_path": "", "dim": 1024, "n_layers": 18, "steps": 2}
    run = train(tiny_config(tmp_path / "chat", init_from=str(pretrained), learning_rate=1e-9, **changes))
    for name, before in weights(pretrained).items():
        torch.testing.assert_close(weights(run)[name], before, rtol=0, atol=1e-6)
    from_folder = train(tiny_config(tmp_path / "two", init_from=str(latest_checkpoint(pretrained)), **changes))
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


def test_a_run_stopped_by_sigterm_saves_goes_on_and_ends_the_same(tiny_config, undisturbed, tmp_path):
    config = tiny_config(tmp_path / "run", **LONG)
    process = start_python("-m", "tinyllm_lib.train", *arguments(config))
    wait_until(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") > 5 or process.poll() is not None, "six steps")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert 5 < stopped < 120
    assert f"Stopped after step {stopped} of 120; the checkpoint is saved. The same command goes on from here, or: " in output
    assert f"-m tinyllm_lib.train --config {tmp_path / 'run' / 'config.json'} --resume must" in output

    train(config)
    assert f"Going on from step_{stopped:06d}." in (tmp_path / "run" / "train.log").read_text("utf-8")
    assert_same_end(tmp_path / "run", undisturbed)
    assert [row["step"] for row in metrics(undisturbed)] == list(range(1, 121))


def test_a_run_killed_at_a_random_step_goes_on_and_ends_the_same(tiny_config, undisturbed, tmp_path):
    config, run = tiny_config(tmp_path / "run", **LONG), tmp_path / "run"
    step = random.SystemRandom().randrange(1, 110)
    process = start_python("-m", "tinyllm_lib.train", *arguments(config))
    wait_until(lambda: lines_in(run / "metrics.jsonl") >= step or process.poll() is not None, f"step {step}")
    process.kill()
    assert "Finished" not in process.communicate()[0], step
    for name, torn in (("metrics.jsonl", b'{"step": 119, "tok'), ("samples.jsonl", '{"step": 119, "text": "小'.encode()[:-1])):
        with (run / name).open("ab") as file:
            file.write(torn)  # what a kill or a full disk leaves, in the middle of a line and of a character
    train(config)
    assert_same_end(run, undisturbed)
    assert [row["step"] for row in metrics(run)] == list(range(1, 121)), step
    assert not (run / "samples.jsonl").exists() or not (run / "samples.jsonl").read_bytes()


def test_a_line_separator_in_a_sample_is_no_end_of_line(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", steps=2, save_interval=1, eval_interval=1, sample_prompts="小猫")
    monkeypatch.setattr(Trainer, "_sample_writer", lambda self: lambda prompt: "one\u2028two")
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
    compiled = {**LONG, "compile": True, "grad_accumulation_steps": 3}  # of 4 rows: micro-batches of two sizes
    undisturbed = train(tiny_config(tmp_path / "undisturbed", **compiled))
    config, run = tiny_config(tmp_path / "run", **compiled), tmp_path / "run"
    step = random.SystemRandom().randrange(1, 110)
    process = start_python("-m", "tinyllm_lib.train", *arguments(config))
    wait_until(lambda: lines_in(run / "metrics.jsonl") >= step or process.poll() is not None, f"step {step}", 240)
    process.kill()
    assert "Finished" not in process.communicate()[0], step
    torch._dynamo.reset()
    train(config)
    assert "torch.compile is on" in (run / "train.log").read_text("utf-8")
    assert_same_end(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_random_kills_leave_no_trace_in_the_result(tiny_config, tmp_path):
    long = {"steps": 1000, "batch_size": 4, "save_interval": 7, "seed": 3, "eval_interval": 50, "sample_prompts": "小猫"}
    config, run, dice = tiny_config(tmp_path / "run", **long), tmp_path / "run", random.SystemRandom()
    for kill in range(20):
        process = start_python("-m", "tinyllm_lib.train", *arguments(config))
        done = lines_in(run / "metrics.jsonl")
        step = dice.randrange(done + 1, done + 40)
        wait_until(lambda step=step, process=process: last_step(run) >= step or process.poll() is not None, f"step {step}", 240)
        time.sleep(dice.random() * 0.02)  # anywhere in a step, or in a checkpoint
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, f"kill {kill} at step {step}:\n{output}"
    train(config)
    undisturbed = train(replace(config, out_dir=str(tmp_path / "undisturbed")))
    assert_same_end(run, undisturbed)
    assert [row["step"] for row in metrics(run)] == list(range(1, 1001))
    assert (run / "samples.jsonl").read_text("utf-8") == (undisturbed / "samples.jsonl").read_text("utf-8")


@pytest.mark.slow
def test_two_killed_processes_go_on_and_end_the_same(tiny_config, tmp_path):
    def start(run):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "tinyllm_lib.train"]
        config = tiny_config(run, steps=60, batch_size=4, save_interval=10)
        return start_python(*command, *arguments(config), OMP_NUM_THREADS="1", start_new_session=True)

    killed = start(tmp_path / "run")
    wait_until(lambda: last_step(tmp_path / "run") > 25 or killed.poll() is not None, "step 26", 240)
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
    train(replace(config, save_interval=1, log_interval=2, num_workers=2))  # none of these changes the result
    assert metrics(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_configuration_sets_the_old_run_aside(tiny_config, tmp_path, capsys):
    config = tiny_config(tmp_path / "run", steps=3)
    train(config)
    first = measured(tmp_path / "run")
    train(replace(config, seed=1, learning_rate=2e-2))
    assert "An older run lay in run; it is now run.old1 (different: learning_rate, seed)." in capsys.readouterr().out
    assert measured(tmp_path / "run.old1") == first != measured(tmp_path / "run")
    train(replace(config, seed=1, learning_rate=2e-2, resume="never"))
    assert "it is now run.old2." in capsys.readouterr().out
    assert measured(tmp_path / "run.old2") == measured(tmp_path / "run")


def test_a_second_trainer_in_one_folder_waits_for_the_first_and_never_mixes_with_it(tiny_config, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    config = tiny_config(tmp_path / "run", steps=1)

    def taken(self=None):
        with (tmp_path / "run" / "train.log").open("a") as log, pytest.raises(BlockingIOError):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(Trainer, "sample", taken)
    train(config)
    monkeypatch.setattr("tinyllm_lib.train.CLAIM_SECONDS", 0.1)
    with (tmp_path / "run" / "train.log").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="Another process trains in .*run: stop that one first"):
            train(replace(config, seed=1))
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        monkeypatch.setattr("tinyllm_lib.train.CLAIM_SECONDS", 60.0)
        threading.Timer(0.5, fcntl.flock, (first, fcntl.LOCK_UN)).start()
        train(replace(config, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old1"]


def test_a_run_that_never_saved_is_begun_anew(tiny_config, tmp_path):
    (tmp_path / "run" / "checkpoints" / ".tmp-0123abcd-step_000002").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".tmp-0123abcd-step_000002" / "model.safetensors").write_bytes(b"half")
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "run" / name).write_text("old")
    run = train(tiny_config(tmp_path / "run", steps=1))
    assert [row["step"] for row in metrics(run)] == [1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000001"]


@pytest.mark.parametrize("out_dir", ["run", "model"])
def test_a_run_never_moves_away_the_model_it_starts_from(tiny_config, tmp_path, out_dir):
    run = train(tiny_config(tmp_path / "run", steps=1))
    shutil.copytree(latest_checkpoint(run), tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"out_dir .*{out_dir} holds the model to start from"):
        train(tiny_config(tmp_path / out_dir, init_from=str(tmp_path / out_dir), seed=1))
    assert [path for path in before if not path.exists()] == []


def test_resume_must_refuses_anything_else(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", steps=1)
    with pytest.raises(FileNotFoundError, match="resume='must', but .*run holds no checkpoint"):
        train(replace(config, resume="must"))
    train(config)
    with pytest.raises(ValueError, match="resume='must', .* another configuration; different: weight_decay"):
        train(replace(config, resume="must", weight_decay=0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---- what goes wrong


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tiny_config, pretrained, tmp_path):
    poisoned = tmp_path / "poisoned"
    Transformer.from_pretrained(latest_checkpoint(pretrained)).save_pretrained(poisoned)
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    place = r"Its batch: row \d+ \(documents [\d, ]+ of shard_00000\), row .* and 5 more of .*train"
    with pytest.raises(RuntimeError, match=rf"loss is nan .* at step 1\. {place}\. Last good checkpoint: none\. Lower learning_rate"):
        train(tiny_config(tmp_path / "run", init_from=str(poisoned)))
    assert not step_folders(tmp_path / "run")


def test_a_learning_rate_far_too_high_names_the_last_good_checkpoint(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", learning_rate=1e38, warmup_steps=0, optimizer="adamw", save_interval=1)
    with pytest.raises(RuntimeError, match=r"at step 2\. .*Last good checkpoint: step_000001\."):
        train(replace(config, log_interval=100))  # also between two lines of the log
    assert [step_of(folder) for folder in step_folders(tmp_path / "run")] == [1]


def test_no_memory_left_says_which_micro_batch_would_fit(tiny_config, tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", batch_size=8), ALONE)

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    trainer.nats = too_large
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trainer.fit()
    assert str(raised.value) == (
        "Out of memory in step 1: 8 rows of 32 tokens per micro-batch do not fit. grad_accumulation_steps=2 makes micro-batches of 4; "
        "the result is the same. Last good checkpoint: none. (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )


def test_no_memory_left_on_a_cpu_later_in_the_run_names_the_checkpoint(tiny_config, tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run", save_interval=1, grad_accumulation_steps=4), ALONE)
    nats, calls = trainer.nats, []

    def too_large_in_step_three(*args, **options):
        calls.append(1)
        if len(calls) > 8:
            torch.empty(2**60, dtype=torch.uint8)  # the CPU's own error
        return nats(*args, **options)

    trainer.nats = too_large_in_step_three
    advice = r"step 3: 2 rows .* grad_accumulation_steps=8 makes micro-batches of 1; .*checkpoint: step_000002"
    with pytest.raises(torch.OutOfMemoryError, match=rf"{advice}.*can't allocate memory"):
        trainer.fit()


def test_another_error_in_a_step_stays_what_it_is(tiny_config, tmp_path):
    trainer = Trainer(tiny_config(tmp_path / "run"), ALONE)
    trainer.nats = lambda *_, **__: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as raised:
        trainer.fit()
    assert not isinstance(raised.value, torch.OutOfMemoryError)


def test_samples_are_written_at_each_evaluation_and_change_nothing(tiny_config, tmp_path):
    options = {"steps": 4, "eval_interval": 2, "save_interval": 2}
    silent, talking = (tiny_config(tmp_path / name, **options) for name in ("silent", "talking"))
    train(silent)
    train(replace(talking, sample_prompts="小猫|白鹅 "))
    rows = [json.loads(line) for line in (tmp_path / "talking" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(2, "小猫"), (2, "白鹅"), (4, "小猫"), (4, "白鹅")]
    assert all(isinstance(row["text"], str) for row in rows)
    assert "sample  小猫 → " in (tmp_path / "talking" / "train.log").read_text("utf-8")
    assert_same_end(tmp_path / "talking", tmp_path / "silent")


def test_a_terminal_that_cannot_show_a_sample_does_not_end_the_run(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", steps=1, sample_prompts="小猫\n白鹅")  # shown with ⏎, which GBK does not have
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="gbk"))
    monkeypatch.setattr(sys, "argv", ["train", *arguments(config)])
    main()
    assert [step_of(folder) for folder in step_folders(tmp_path / "run")] == [1]


def test_a_run_made_before_an_option_existed_goes_on(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", steps=4, save_interval=2)
    train(config)
    saved = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    del saved["tracker"], saved["sample_prompts"], saved["min_lr_share"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved), "utf-8")
    train(replace(config, resume="must"))


def test_batches_are_prepared_in_order_by_several_threads(tiny_config, tmp_path):
    for name, threads in (("one", 1), ("three", 3)):
        train(tiny_config(tmp_path / name, steps=6, num_workers=threads))
    assert_same_end(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_never_waits_for_the_device(tiny_config, tmp_path, optimizer, monkeypatch):
    """On the meta device there are no numbers, so to read one is an error, where on a GPU it would be a wait."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # meta has no autocast and no fused optimiser
    monkeypatch.setattr(torch.optim, "AdamW", lambda params, fused, **options: AdamW(params, **options))
    trainer = Trainer(tiny_config(tmp_path / "run", optimizer=optimizer), ALONE)
    trainer.device = torch.device("meta")
    trainer.model = trainer.model.to("meta")
    trainer.nats, trainer.params = trainer.model.nats, [*trainer.model.parameters()]
    trainer.optimizers = make_optimizers(trainer.model, optimizer, 1e-3, 0.1)
    trainer.first_bad = trainer.first_bad.to("meta")
    trainer._flatten_gradients()
    batches, supervised, _ = trainer.load_step(0)
    for _ in range(2):
        trainer.accumulate_gradients(batches, supervised)
        trainer.update()
    with pytest.raises(RuntimeError, match="meta"):
        trainer._check_finite()  # a line of the log is where the numbers are read


def test_a_batch_for_a_gpu_lies_in_pinned_memory(tiny_config, tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    trainer = Trainer(tiny_config(tmp_path / "run", grad_accumulation_steps=2), ALONE)
    trainer.load_step(0)
    assert not pinned
    trainer.device = torch.device("cuda")
    batches = trainer.load_step(0)[0]
    assert [id(tensor) for tensor in pinned] == [id(tensor) for batch in batches for tensor in batch]


@pytest.mark.parametrize(
    ("wanted", "device", "flops", "pays", "why"),
    [
        ("auto", "cpu", 1e13, False, "only if they are longer"),
        ("auto", "cpu", 1e20, True, "pays back in runs longer"),
        ("auto", "mps", 1e20, False, "this is mps under linux"),
        (True, "cpu", 1e10, True, "asked for"),
        (False, "cuda", 1e20, False, "not asked for"),
        ("auto", "cuda", 1e13, False, "only if they are longer"),
        ("auto", "cuda", 1e20, True, "pays back in runs longer"),
    ],
)
def test_compile_is_used_where_it_pays_back(wanted, device, flops, pays, why, monkeypatch):
    monkeypatch.setattr(devices, "data_sheet_flops", lambda device, dtype: None)
    monkeypatch.setattr(devices, "missing_for_cpu_compile", lambda: "")
    monkeypatch.setattr(devices.sys, "platform", "linux")
    found, reason = devices.compile_pays(wanted, flops, torch.device(device), torch.bfloat16)
    assert found is pays and why in reason


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not used unasked")
def test_a_long_run_on_a_cpu_goes_without_compile_where_it_cannot_work_and_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    found, reason = devices.compile_pays("auto", 1e20, torch.device("cpu"), torch.float32)
    assert not found and "no-compiler, which is not installed" in reason
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(devices.sysconfig, "get_path", lambda name: str(tmp_path))
    found, reason = devices.compile_pays("auto", 1e20, torch.device("cpu"), torch.float32)
    assert not found and "Python.h, which is not installed" in reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, is 0"),
        ({"learning_rate": -1.0, "log_interval": 0}, "learning_rate must be positive, is -1.0; log_interval must be"),
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps must be positive"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, is 'sgd'"),
        ({"dtype": "fp16"}, "dtype must be one of auto, fp32, bf16, is 'fp16'"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, mps"),
        ({"resume": "yes"}, "resume must be one of auto, never, must"),
        ({"compile": "yes"}, "compile must be one of auto, True, False, is 'yes'"),
        ({"tracker": "mlflow"}, "tracker must be one of none, swanlab, tensorboard, wandb, is 'mlflow'"),
        ({"packing": "bestfit"}, "packing must be one of best_fit, stream, none"),
        ({"steps": -5}, "steps must not be negative, is -5"),  # it "finished" and had no checkpoint
        ({"grad_clip": -1.0}, "grad_clip must not be negative"),  # it went uphill
        ({"eval_rows": 0}, "eval_rows must be positive"),  # its validation loss was 0
        ({"learning_rate": math.nan}, "learning_rate must be positive, is nan"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, is '1e-3'"),
        ({"batch_size": 8.5, "out_dir": None}, "out_dir must be of type str, is None; batch_size must be of type int, is 8.5"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=f"TrainConfig: .*{message}"):
        TrainConfig(**changes)


def test_a_path_and_a_whole_number_written_as_a_float_are_taken(tmp_path):
    config = TrainConfig(out_dir=tmp_path, tokens=1e9)
    assert (config.out_dir, config.tokens) == (str(tmp_path), 10**9)
    assert parse_args([f"--{name}={getattr(config, name)}" for name in ("out_dir", "tokens")]) == config


def test_a_tokenizer_that_does_not_fit(tiny_config, pretrained, tmp_path):
    other = train_tokenizer(["小猫和白鹅。"] * 9, tmp_path / "other", vocab_size=280)
    changes = {"tokenizer_path": str(tmp_path / "other")}
    with pytest.raises(ValueError, match="written with another tokenizer"):
        train(tiny_config(tmp_path / "run", **changes))
    write_sft_tokens([], other, tmp_path / "tokens", replay=["小猫" * 40])
    changes |= {"data_path": str(tmp_path / "tokens"), "init_from": str(pretrained)}
    with pytest.raises(ValueError, match="tokenizer has 280 tokens, the model was made for 400.* leave tokenizer_path empty"):
        train(tiny_config(tmp_path / "run", **changes))
    with pytest.raises(ValueError, match="tokenizer_path is empty, and so is init_from"):
        train(tiny_config(tmp_path / "run", tokenizer_path=""))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(tiny_config, tmp_path, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device='{device}': process 0 of this machine finds 0 of them"):
        train(tiny_config(tmp_path / "run", device=device))


def test_a_start_that_is_not_there_or_too_short(tiny_config, pretrained, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train(tiny_config(tmp_path / "run", init_from=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="knows 32 positions, max_seq_len is 64: lower it"):
        train(tiny_config(tmp_path / "run", init_from=str(pretrained), max_seq_len=64))
    with pytest.raises(FileNotFoundError, match="no finished token shards"):
        train(tiny_config(tmp_path / "run", data_path=str(tmp_path)))


# ---- number formats


@pytest.mark.parametrize("amx", [False, True])
def test_on_a_cpu_auto_takes_bf16_only_where_it_is_faster(monkeypatch, amx):
    # AVX-512's bf16 instructions alone: half the speed of fp32 on a Xeon without AMX, seen on 2026-11-25.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if amx else torch.float32)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_on_a_gpu_auto_takes_bf16_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cuda")) == dtype


def test_a_number_format_that_is_asked_for_is_used(tiny_config, tmp_path):
    assert choose_dtype("fp32", torch.device("cuda")) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    run = train(tiny_config(tmp_path / "run", dtype="bf16", steps=2))
    assert json.loads((run / "config.json").read_text("utf-8"))["resolved"]["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert metrics(run)[0]["loss"] == pytest.approx(math.log(400), abs=0.3)


# ---- the command line


def test_help_lists_every_option_with_a_sentence_and_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for option in fields(TrainConfig):
        assert f"--{option.name} " in out
        assert option.metadata["help"] in out
    assert "(default: muon)" in out and "(default: 0.003)" in out


def test_options_come_from_a_file_and_the_command_line_wins(pretrained, tmp_path):
    config = parse_args(["--config", str(pretrained / "config.json"), "--seed", "9", "--compile=true", "--epochs=0.5"])
    saved = json.loads((pretrained / "config.json").read_text("utf-8"))
    assert (config.dim, config.learning_rate, config.out_dir) == (32, 1e-2, saved["out_dir"])
    assert (config.seed, config.compile, config.epochs) == (9, True, 0.5)
    assert parse_args([]) == TrainConfig()


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ('{"seeds": 1, "dim": 8}', ["--config", "FILE"], "no such option: seeds"),
        ("[1]", ["--config", "FILE"], "expected a JSON object of options, found a list"),
        ('{"dim": null}', ["--config", "FILE"], "dim must be of type int, is None"),
        ("{}", ["--dim", "wide"], "--dim: invalid int value: 'wide'"),
        ("{}", ["--dims", "8"], "no such option: --dims (did you mean --dim?)"),
    ],
)
def test_what_the_command_line_refuses(content, args, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        parse_args([str(tmp_path / "config.json") if arg == "FILE" else arg for arg in args])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
