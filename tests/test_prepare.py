"""What notebooks hand each other: loaded where it is there, made small where it is not, and said so."""

import tarfile
from dataclasses import replace

import pytest

from tinyllm_lib import prepare
from tinyllm_lib.checkpoint import latest_checkpoint, step_folders
from tinyllm_lib.corpus import write_sample_corpus
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.profiles import PROFILES, get_profile
from tinyllm_lib.provenance import file_fingerprint
from tinyllm_lib.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from tinyllm_lib.tokens import read_manifest
from tinyllm_lib.train import train
from tinyllm_lib.workspace import Workspace

pytest_plugins = ["helpers.tiny_fixtures"]

SMALL = {"dim": 32, "n_layers": 1, "batch_size": 4, "log_interval": 1, "save_interval": 0}


@pytest.fixture
def profile(monkeypatch):
    """ci, made still smaller."""
    ci = get_profile("ci")
    small = replace(
        ci,
        **{"documents": 400, "dialogues": 250, "vocab_size": 400, "max_length": 64},
        pretrain={**ci.pretrain, **SMALL, "steps": 4},
        sft={**ci.sft, "batch_size": 4, "steps": 3, "log_interval": 1},
    )
    monkeypatch.setitem(PROFILES, "ci", small)
    return small


@pytest.fixture
def in_this_process(monkeypatch, one_thread):
    """Trains here and not in a subprocess, which is quicker; the configs launched."""
    launched = []

    def launch(config, nproc_per_node, show):
        launched.append(config)
        return train(config)

    monkeypatch.setattr("tinyllm_lib.launch.launch", launch)
    return launched


@pytest.fixture
def ws(tmp_path):
    return Workspace(tmp_path / "ci")


def test_a_chat_run_out_of_nothing_and_then_out_of_the_workspace(ws, profile, in_this_process, capsys):
    chat = prepare.chat_run(ws, profile)
    assert chat == ws.run("chat_quick"), "a stand-in must not be taken for the real run"
    out = capsys.readouterr().out
    assert "No corpus yet: writing the sample corpus (400 documents, 250 dialogues)." in out
    assert "No tokenizer yet: training one with 400 entries." in out
    assert "No pretrain/train token shards of this corpus and tokenizer yet" in out
    for name, steps, notebook in (("pretrain", 4, "05_pretrain"), ("chat", 3, "06_sft")):
        assert f"No {name} run yet: training a very small stand-in ({steps} steps)" in out
        assert f"run notebook {notebook} first" in out
    assert [config.out_dir for config in in_this_process] == [str(ws.run("pretrain_quick")), str(chat)]
    assert in_this_process[1].init_from == str(ws.run("pretrain_quick"))
    assert [row["step"] for row in read_metrics(chat)] == [1, 2, 3]

    assert prepare.pretrained_run(ws, profile) == ws.run("pretrain_quick")
    assert prepare.chat_run(ws, profile) == chat
    assert capsys.readouterr().out == ""
    assert len(in_this_process) == 2


def test_the_run_of_the_notebook_wins_over_the_stand_in(ws, profile, in_this_process):
    quick = prepare.pretrained_run(ws, profile)
    prepare.token_shards(ws, "pretrain", profile)
    real = train(prepare.train_config("pretrain", ws, profile, steps=1))
    assert prepare.pretrained_run(ws, profile) == real == ws.run("pretrain") != quick


def test_what_was_made_with_another_tokenizer_is_made_again(ws, profile, in_this_process, capsys):
    quick = prepare.pretrained_run(ws, profile)
    old = tokenizer_hash(prepare.tokenizer(ws, profile))
    train_tokenizer(["小猫和白鹅是好朋友。"] * 30, ws.tokenizer, vocab_size=300)
    new = tokenizer_hash(prepare.tokenizer(ws, profile))
    assert not prepare.is_finished(quick, prepare.tokenizer(ws, profile))
    capsys.readouterr()
    assert prepare.pretrained_run(ws, profile) == quick
    assert "No pretrain/train token shards of this corpus and tokenizer yet" in capsys.readouterr().out
    assert read_manifest(ws.tokens("pretrain", "train"))["tokenizer"] == new != old
    assert tokenizer_hash(load_tokenizer(latest_checkpoint(quick))) == new


def test_token_shards_of_dialogues(ws, profile, capsys):
    folder = prepare.token_shards(ws, "sft", profile)
    train_set, val = read_manifest(folder / "train"), read_manifest(folder / "val")
    assert train_set["counts"]["replayed_documents"] == int(profile.replay_share * profile.dialogues)
    assert train_set["supervised_tokens"] < train_set["tokens"]
    assert val["counts"]["replayed_documents"] == 0
    no_mask = prepare.token_shards(ws, "sft", profile, learn_all=True)
    assert no_mask.name == "sft_no_mask"
    everything = read_manifest(no_mask / "train")
    assert everything["supervised_tokens"] == everything["tokens"] == train_set["tokens"]
    assert read_manifest(no_mask / "val") == {**val, "source": read_manifest(no_mask / "val")["source"]}

    capsys.readouterr()
    written = (folder / "train" / "manifest.json").stat().st_mtime_ns
    assert prepare.token_shards(ws, "sft", profile) == folder
    assert (folder / "train" / "manifest.json").stat().st_mtime_ns == written
    prepare.token_shards(ws, "sft", profile, remake=True)
    assert (folder / "train" / "manifest.json").stat().st_mtime_ns > written
    assert capsys.readouterr().out == ""


def test_shards_of_a_changed_corpus_are_made_again(ws, profile, capsys):
    folder = prepare.token_shards(ws, "sft", profile)
    before = read_manifest(folder / "train")
    corpus = ws.raw / "pretrain.jsonl"          # the texts that are replayed
    content = bytearray(corpus.read_bytes())
    content[len(content) // 2] ^= 1             # of the same size
    corpus.write_bytes(content)
    capsys.readouterr()
    prepare.token_shards(ws, "sft", profile)
    assert capsys.readouterr().out == "No sft/train token shards of this corpus and tokenizer yet: writing them.\n"
    assert read_manifest(folder / "train")["source"] != before["source"]


@pytest.fixture
def real(ws, profile):
    """A profile that wants the real corpora, which are small here, in their formats."""
    write_sample_corpus(ws.raw, documents=400, dialogues=300)
    (ws.raw / "sft.jsonl").rename(ws.raw / prepare.REAL_CORPORA["sft"].name)
    with tarfile.open(ws.raw / prepare.REAL_CORPORA["pretrain"].name, "w:bz2") as tar:
        tar.add(ws.raw / "pretrain.jsonl", "corpus.jsonl")
    return replace(profile, real_corpora=True, replay_share=0.0)


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_shards_of_the_real_corpora_are_written_once(kind, ws, real):
    folder = prepare.token_shards(ws, kind, real)
    written = times(folder)
    assert len(written) > 4
    prepare.token_shards(ws, kind, real, remake=True)
    assert times(folder) == written
    train_tokenizer(["小猫和白鹅是好朋友。"] * 30, ws.tokenizer, vocab_size=300)
    with pytest.raises(ValueError, match="holds token shards made with tokenizer '.*; now it is tokenizer '"):
        prepare.token_shards(ws, kind, real, remake=True)
    assert times(folder) == written


def test_a_fingerprint_changes_with_any_part_of_a_small_file_and_with_the_ends_of_a_large_one(tmp_path):
    def of(content):
        (tmp_path / "file").write_bytes(content)
        return file_fingerprint(tmp_path / "file")

    for size in (0, 1, 5_000_000):
        assert of(b"a" * size) == of(b"a" * size) != of(b"a" * (size + 1))
    assert of(b"a" * 5_000_000) != of(b"a" * 3_456_789 + b"b" + b"a" * 1_543_210)
    large = bytes(70 * 2**20)
    assert len({of(large), of(b"b" + large[1:]), of(large[1:] + b"b")}) == 3


def test_train_config_takes_the_numbers_of_the_profile_and_changes_win(ws):
    config = prepare.train_config("pretrain", ws, get_profile("laptop"), name="try", seed=3, steps=9)
    numbers = get_profile("laptop").pretrain
    assert (config.dim, config.batch_size, config.max_seq_len) == (numbers["dim"], numbers["batch_size"], 128)
    assert (config.seed, config.steps, config.out_dir) == (3, 9, str(ws.run("try")))
    assert config.tokenizer_path == str(ws.tokenizer)
    sft = prepare.train_config("sft", ws, get_profile("laptop"), init_from=ws.run("mine"))
    assert (sft.init_from, sft.out_dir) == (str(ws.run("mine")), str(ws.run("chat")))
    assert sft.data_path == str(ws.tokens("sft", "train").parent)


def test_real_corpora_that_are_not_there_yet_are_named(ws):
    profile = replace(get_profile("full"), documents=20, dialogues=10)
    with pytest.raises(FileNotFoundError, match="mobvoi_seq_monkey.*download_pretrain.*notebook 01"):
        prepare.corpus_files(ws, profile)


def test_a_run_without_a_checkpoint_is_not_finished(ws, profile):
    assert not step_folders(ws.run("pretrain"))
    assert not prepare.is_finished(ws.run("pretrain"), prepare.tokenizer(ws, profile))
