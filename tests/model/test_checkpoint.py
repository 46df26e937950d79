"""Checkpoints: a folder that any program reads, whole or refused, and never a surprise when
unpickled.
"""

import errno
import json
import os
import pickle

import pytest
import torch
from helpers.tiny import TEXTS, foreign, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinyllm_lib.model import (
    ModelConfig,
    Transformer,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    snapshot,
    step_folders,
    step_of,
)
from tinyllm_lib.model.checkpoint import find_damage
from tinyllm_lib.tokenizer import load_tokenizer, tokenizer_hash

pytest_plugins = ["helpers.tiny_fixtures"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=32)
    )


@pytest.fixture
def save(model, tokenizer, tmp_path):
    def save(step, **options):
        return save_checkpoint(tmp_path / "run", step, model, tokenizer, {"step": step}, **options)

    return save


def steps(run):
    return [step_of(folder) for folder in step_folders(run)]


def test_transformers_loads_a_checkpoint_as_it_is(save, model, tokenizer):
    folder = save(7)
    assert folder.name == "step_000007"
    auto, auto_tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = auto_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"][:, :32]
    with torch.no_grad():
        torch.testing.assert_close(auto(ids).logits, model(ids), rtol=1e-5, atol=1e-5)
    assert tokenizer_hash(load_tokenizer(folder)) == tokenizer_hash(tokenizer)
    assert auto.generation_config.eos_token_id == [4, 2]
    assert auto_tokenizer.chat_template == tokenizer.chat_template
    reply = auto.generate(ids[:, :8], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert reply.shape == (1, 11)


@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])
def test_a_reply_ends_in_transformers_where_the_tokenizer_from_elsewhere_says(
    eos, tokenizer_folder, tmp_path
):
    """<|im_end|> is 60 there; the model writes it, made likely, and nothing behind it."""
    theirs = load_tokenizer(
        foreign(tokenizer_folder, tmp_path / "theirs", eos_token=eos, pad_token="<unk>")
    )
    model = random_model(
        ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=64)
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = (
            3 * model.model.embed_tokens.weight.abs().amax() * torch.ones(32).sign()
        )
    folder = save_checkpoint(tmp_path / "run", 1, model, theirs, {})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (
        None,
        theirs.eos_token_id,
        56,
    )
    auto = AutoModelForCausalLM.from_pretrained(folder)
    assert (
        auto.generation_config.eos_token_id == [60, 58]
        and auto.generation_config.pad_token_id == 56
    )
    starts = torch.arange(100, 130)[:, None]
    rows = auto.generate(starts, max_new_tokens=20, do_sample=False, temperature=None, top_k=None)[
        :, 1:
    ].tolist()
    ended = [row for row in rows if 60 in row]
    assert ended and all({*row[row.index(60) + 1 :]} <= {56} for row in ended)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_is_written_has_the_mode_of_other_files(umask, save):
    before = os.umask(umask)
    try:
        folder = save(1)
    finally:
        os.umask(before)
    assert {
        path.name: path.stat().st_mode & 0o777
        for path in folder.iterdir()
        if path.stat().st_mode & 0o777 != 0o666 & ~umask
    } == {}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_checkpoint_holds_the_weights_bit_for_bit(save, model):
    loaded = Transformer.from_pretrained(save(1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_later_steps_do_not_change_a_snapshot(model):
    state = {"moments": [(torch.ones(2), 3)], "step": 1}
    trained = random_model(model.config)
    ids = torch.arange(8)[None]
    trained.weighted_nll(ids, ids, torch.ones(1, 8)).backward()
    for block in trained.model.layers:
        block.compile(backend="eager")
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    copied, copied_state = snapshot(trained), snapshot(state)
    with torch.no_grad():
        for p in trained.parameters():
            p.zero_()
    state["moments"][0][0].zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in copied.state_dict().items())
    assert all(p.grad is None for p in copied.parameters())
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert copied_state["step"] == 1 and isinstance(copied_state["moments"][0], tuple)
    assert copied_state["moments"][0][0].tolist() == [1, 1]


def test_checksums_cover_every_file(save):
    folder = save(1)
    listed = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    assert listed["step"] == 1
    assert {*listed["sha256"], "checkpoint.json"} == {path.name for path in folder.iterdir()}
    assert find_damage(folder) is None


def test_the_newest_are_kept_and_those_at_multiples(save, tmp_path):
    for step in range(1, 11):
        save(step, keep_last=2, keep_every=4)
    assert steps(tmp_path / "run") == [4, 8, 9, 10]
    save(11, keep_last=0)  # the newest is never removed
    assert steps(tmp_path / "run") == [11]


def test_steps_are_ordered_as_numbers(save, tmp_path):
    for step in (900_000, 1_000_000, 20):
        save(step, keep_last=9)
    assert steps(tmp_path / "run") == [20, 900_000, 1_000_000]


def test_a_copy_under_another_name_has_the_step_of_its_original(save):
    """The model card asks for the step of whatever checkpoint it is given."""
    folder = save(500)
    assert step_of(folder.rename(folder.with_name("best_step_000500"))) == 500


def truncated(path):
    path.write_bytes(path.read_bytes()[:-9])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", truncated, "model.safetensors does not match its checksum"),
        ("model.safetensors", flipped, "model.safetensors does not match its checksum"),
        ("trainer_state.pt", flipped, "trainer_state.pt does not match its checksum"),
        ("tokenizer.json", lambda path: path.unlink(), "No such file or directory"),
        ("checkpoint.json", truncated, "checkpoint.json is damaged"),
        ("checkpoint.json", lambda path: path.write_text("[]", "utf-8"), "checkpoint.json is dam"),
        (
            "checkpoint.json",
            lambda path: path.write_text('{"sha256": []}', "utf-8"),
            "no attribute",
        ),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over_and_that_is_said(
    save, tmp_path, capsys, name, damage, said
):
    good, newest = save(5), save(10)
    assert latest_checkpoint(tmp_path / "run") == newest
    assert capsys.readouterr().out == ""
    damage(newest / name)
    assert latest_checkpoint(tmp_path / "run") == good
    printed = capsys.readouterr().out
    assert printed.startswith("step_000010 is damaged (") and said in printed
    assert name in printed or said == "no attribute"


def test_a_damaged_one_never_pushes_out_what_was_written_after_it(save, tmp_path):
    save(5), truncated(save(10) / "trainer_state.pt")
    save(7, keep_last=1)  # the run went on from step 5
    assert (
        steps(tmp_path / "run") == [7, 10]
        and latest_checkpoint(tmp_path / "run").name == "step_000007"
    )
    save(10, keep_last=1)
    assert (
        steps(tmp_path / "run") == [10] and find_damage(latest_checkpoint(tmp_path / "run")) is None
    )


def test_a_run_with_nothing_but_damage_says_so(save, tmp_path):
    truncated(save(5) / "model.safetensors")
    with pytest.raises(
        FileNotFoundError,
        match=r"The run .* has no finished checkpoint, or only damaged ones: .*resume='never'",
    ):
        latest_checkpoint(tmp_path / "run")


def test_an_unfinished_checkpoint_is_none(save, tmp_path):
    good = save(5)
    (good.parent / ".tmp-0123abcd-step_000006").mkdir()
    (good.parent / "step_000007").mkdir()  # a copy that was broken off: no checkpoint.json
    assert step_folders(tmp_path / "run") == [good]
    save(6)  # over what lay there
    assert steps(tmp_path / "run") == [5, 6]
    assert not list(good.parent.glob(".*"))


def test_a_run_without_a_checkpoint(save, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist, .*: train it"):
        latest_checkpoint(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="has no finished checkpoint"):
        latest_checkpoint(tmp_path / "run")


class Surprise:
    def __reduce__(self):
        return print, ("code from a checkpoint was run",)


def test_a_state_file_never_runs_code(save, capsys):
    folder = save(3)
    assert load_state(folder) == {"step": 3}
    torch.save({"step": Surprise()}, folder / "trainer_state.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_state(folder)
    assert capsys.readouterr().out == ""


def test_a_full_disk_leaves_the_older_checkpoint_the_newest(save, tmp_path, monkeypatch):
    save(1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError,
        match="step_000002 cannot be written: .*No space left.* Is the disk full",
    ):
        save(2)
    assert (
        steps(tmp_path / "run") == [1] and latest_checkpoint(tmp_path / "run").name == "step_000001"
    )
    monkeypatch.undo()
    save(2)
    assert steps(tmp_path / "run") == [1, 2] and not list(
        (tmp_path / "run" / "checkpoints").glob(".tmp-*")
    )


def test_a_limit_on_the_size_of_files_is_no_torn_checkpoint(save, tmp_path):
    resource = pytest.importorskip("resource")
    save(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # real writes fail in the middle
    try:
        with pytest.raises(OSError, match="step_000002 cannot be written"):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        steps(tmp_path / "run") == [1] and find_damage(latest_checkpoint(tmp_path / "run")) is None
    )
