"""What notebooks hand each other: loaded where it is there, made small where it is not, and said
so.
"""

import json
import os
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny import ROOT

from tinyllm_lib.course import Workspace, get_profile, get_workspace, prepare
from tinyllm_lib.course.made import file_fingerprint
from tinyllm_lib.course.profiles import PROFILES
from tinyllm_lib.course.world import write_sample_corpus
from tinyllm_lib.data import read_texts, write_json
from tinyllm_lib.dataset import read_manifest, write_pretrain_tokens
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.model import latest_checkpoint
from tinyllm_lib.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from tinyllm_lib.train import train

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

    def launch(config, nproc_per_node="auto", show=True):
        launched.append(config)
        return train(config)

    monkeypatch.setattr("tinyllm_lib.launch.launch", launch)
    return launched


@pytest.fixture
def ws(tmp_path):
    return Workspace(tmp_path / "ci")


def test_a_chat_run_out_of_nothing_and_then_out_of_the_workspace(
    ws, profile, in_this_process, capsys
):
    chat = prepare.chat_run(ws, profile)
    assert chat == ws.run("chat_quick"), "a stand-in must not be taken for the real run"
    out = capsys.readouterr().out
    assert "No corpus yet: writing the sample corpus (400 documents, 250 dialogues)." in out
    assert "No tokenizer yet: training one with 400 entries." in out
    assert "No pretrain token shards of this corpus and tokenizer yet" in out
    for name, steps, notebook in (("pretrain", 4, "05_pretrain"), ("chat", 3, "06_sft")):
        assert f"No {name} run yet: training a very small stand-in ({steps} steps)" in out
        assert f"run notebook {notebook} first" in out
    assert [config.out_dir for config in in_this_process] == [
        str(ws.run("pretrain_quick")),
        str(chat),
    ]
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
    assert "tokenizer (was " in prepare.why_not_ready(ws, quick.name, profile)
    capsys.readouterr()
    assert prepare.pretrained_run(ws, profile) == quick
    assert "No pretrain token shards of this corpus and tokenizer yet" in capsys.readouterr().out
    assert read_manifest(ws.tokens("pretrain", "train"))["tokenizer"] == new != old
    assert tokenizer_hash(load_tokenizer(latest_checkpoint(quick))) == new


def test_token_shards_of_dialogues(ws, profile, capsys):
    folder = prepare.token_shards(ws, "sft", profile)
    train_set, val = read_manifest(folder / "train"), read_manifest(folder / "val")
    assert train_set["counts"]["replayed_documents"] == int(
        profile.replay_share * profile.dialogues
    )
    assert train_set["supervised_tokens"] < train_set["tokens"]
    assert val["counts"]["replayed_documents"] == 0
    no_mask = prepare.token_shards(ws, "sft", profile, learn_all=True)
    assert no_mask.name == "sft_no_mask"
    everything = read_manifest(no_mask / "train")
    assert everything["supervised_tokens"] == everything["tokens"] == train_set["tokens"]
    assert read_manifest(no_mask / "val") == {
        **val,
        "source": read_manifest(no_mask / "val")["source"],
    }

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
    corpus = ws.raw / "pretrain.jsonl"  # the texts that are replayed
    content = bytearray(corpus.read_bytes())
    content[len(content) // 2] ^= 1  # of the same size
    corpus.write_bytes(content)
    capsys.readouterr()
    prepare.token_shards(ws, "sft", profile)
    assert capsys.readouterr().out.endswith(
        "No sft token shards of this corpus and tokenizer yet: writing them.\n"
    )
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
    with pytest.raises(
        ValueError, match=r"holds token shards made otherwise: tokenizer \(was .*, now "
    ):
        prepare.token_shards(ws, kind, real, remake=True)
    assert times(folder) == written


def test_a_fingerprint_changes_with_any_part_of_a_small_file_and_with_the_ends_of_a_large_one(
    tmp_path,
):
    def of(content):
        (tmp_path / "file").write_bytes(content)
        return file_fingerprint(tmp_path / "file")

    for size in (0, 1, 5_000_000):
        assert of(b"a" * size) == of(b"a" * size) != of(b"a" * (size + 1))
    assert of(b"a" * 5_000_000) != of(b"a" * 3_456_789 + b"b" + b"a" * 1_543_210)
    large = bytes(70 * 2**20)
    assert len({of(large), of(b"b" + large[1:]), of(large[1:] + b"b")}) == 3


# ---- what a learner brings


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


OWN = {
    "pretrain": [{"text": f"我家的第{n}只猫爱吃鱼。"} for n in range(40)],
    "sft": [
        {
            "conversations": [
                {"from": "human", "value": f"{n}只猫？"},
                {"from": "assistant", "value": "爱吃鱼。"},
            ]
        }
        for n in range(40)
    ],
    "exam": [{"question": "猫爱吃什么？", "answer": "鱼"}],
}


def own_files(ws, *names):
    return {
        path: path.read_bytes()
        for path in (write_lines(ws.raw / f"{name}.jsonl", OWN[name]) for name in names)
    }


def unchanged(files):
    return all(path.read_bytes() == content for path, content in files.items())


def test_ones_own_documents_alone_are_kept_and_the_rest_is_made(ws, profile, capsys):
    own = own_files(ws, "pretrain")
    prepare.tokenizer(ws, profile)
    out = capsys.readouterr().out
    assert unchanged(own)
    assert (
        "No sft.jsonl, exam.jsonl yet: writing the sample corpus" in out
        and "left as it is: pretrain.jsonl" in out
    )
    assert "exam.jsonl asks about the sample corpus's world" in out
    assert sorted(path.name for path in ws.raw.iterdir()) == [
        "exam.jsonl",
        "made_from.json",
        "pretrain.jsonl",
        "sft.jsonl",
    ]
    prepare.corpus_files(ws, replace(profile, documents=500))
    out = capsys.readouterr().out
    assert (
        unchanged(own)
        and "The sample corpus was made otherwise, documents (was 400, now 500): writing" in out
    )


def test_all_three_ones_own_are_used_without_a_word(ws, profile, capsys):
    own = own_files(ws, *OWN)
    assert prepare.corpus_files(ws, profile) == {path.stem: path for path in own}
    assert (
        unchanged(own)
        and capsys.readouterr().out == ""
        and not (ws.raw / "made_from.json").exists()
    )


def test_notebook_01_keeps_ones_own_files(workspace_root, profile, capsys):
    own = own_files(get_workspace("ci"), *OWN)
    cells = json.loads((ROOT / "notebooks" / "01_data.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["id"] in ("c01-02", "c01-04"):
            exec("".join(cell["source"]), names)
    out = capsys.readouterr().out
    assert unchanged(own) and "left as it is: pretrain.jsonl, sft.jsonl, exam.jsonl." in out


def test_an_edited_sample_file_is_the_learners_own_from_then_on(ws, profile, capsys):
    path = prepare.corpus_files(ws, profile)["sft"]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(OWN["sft"][0], ensure_ascii=False) + "\n")
    edited = path.read_bytes()
    prepare.corpus_files(ws, replace(profile, dialogues=300))
    assert path.read_bytes() == edited and "left as it is: sft.jsonl" in capsys.readouterr().out


def test_what_we_made_is_made_again_when_the_sizes_change_and_only_then(ws, profile, capsys):
    files = prepare.corpus_files(ws, profile)
    first = times(ws.raw)
    capsys.readouterr()
    assert (
        prepare.corpus_files(ws, profile) == files
        and times(ws.raw) == first
        and capsys.readouterr().out == ""
    )
    prepare.corpus_files(ws, replace(profile, documents=450))
    assert len(files["pretrain"].read_text(encoding="utf-8").splitlines()) == 450


def test_the_same_files_without_a_record_are_known_again(ws, profile, capsys):
    """A workspace of version 0.1."""
    write_sample_corpus(ws.raw, documents=profile.documents, dialogues=profile.dialogues)
    (ws.raw / "made_from.json").unlink()
    prepare.corpus_files(ws, replace(profile, documents=450))
    assert unchanged(own_files(ws)) and not (ws.raw / "made_from.json").exists(), (
        "nothing missing, so nothing was done"
    )
    write_sample_corpus(ws.raw, documents=profile.documents, dialogues=profile.dialogues)
    assert "left as it is" not in capsys.readouterr().out
    prepare.corpus_files(ws, replace(profile, documents=450))
    assert len((ws.raw / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()) == 450


def test_ones_own_tokenizer_is_never_trained_over(ws, profile, capsys):
    train_tokenizer(["小猫和白鹅是好朋友。"] * 30, ws.tokenizer, vocab_size=300)
    own = {path: path.read_bytes() for path in ws.tokenizer.iterdir()}
    own_files(ws, "pretrain")
    assert len(prepare.tokenizer(ws, profile)) == len(prepare.tokenizer(ws, profile, remake=True))
    assert unchanged(own) and "it stays as it is" in capsys.readouterr().out

    # Put over one that was made here: the record beside it is not of this one.
    other = Workspace(ws.root.with_name("other"))
    prepare.tokenizer(other, profile)
    for path, content in own.items():
        (other.tokenizer / path.name).write_bytes(content)
    prepare.corpus_files(other, replace(profile, documents=500))
    prepare.tokenizer(other, replace(profile, documents=500), remake=True)
    assert all(
        (other.tokenizer / path.name).read_bytes() == content for path, content in own.items()
    )


def test_notebook_02_keeps_ones_own_tokenizer(workspace_root, profile, capsys):
    ws = get_workspace("ci")
    train_tokenizer(["小猫和白鹅是好朋友。"] * 30, ws.tokenizer, vocab_size=300)
    own = {path: path.read_bytes() for path in ws.tokenizer.iterdir()}
    cells = json.loads((ROOT / "notebooks" / "02_tokenizer.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    names = {}
    for cell in cells:
        if cell["id"] in ("c02-02", "c02-16"):
            exec("".join(cell["source"]), names)
    assert unchanged(own)


def test_ones_own_shards_are_not_written_over(ws, profile, capsys):
    tok = prepare.tokenizer(ws, profile)
    write_pretrain_tokens(
        [row["text"] for row in OWN["pretrain"]],
        tok,
        ws.tokens("pretrain", "train"),
        source="my cats",
    )
    written = times(ws.root / "tokens")
    for remake in (False, True):
        prepare.token_shards(ws, "pretrain", profile, remake=remake)
        assert (
            "pretrain/train were not made from the corpus here: they stay as they are"
            in capsys.readouterr().out
        )
    assert times(ws.root / "tokens") == written


def test_shards_of_a_closed_folder_are_not_written_anew(ws, profile, monkeypatch):
    folder = prepare.token_shards(ws, "pretrain", profile)
    monkeypatch.setattr(os, "access", lambda path, mode: folder not in Path(path).parents)
    with pytest.raises(
        PermissionError, match="train cannot be written: the folder .* is closed to this user"
    ):
        prepare.token_shards(ws, "pretrain", profile, remake=True)
    assert read_manifest(folder / "train") and read_manifest(folder / "val")


def test_notebook_08_keeps_what_was_put_into_share(workspace_root, profile, in_this_process):
    note = get_workspace("ci").root / "share" / "notes.md"
    note.parent.mkdir(parents=True)
    note.write_text("mine", encoding="utf-8")
    cells = json.loads((ROOT / "notebooks" / "08_share.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["id"] in ("c08-01", "c08-03"):
            exec("".join(cell["source"]), names)
    assert note.read_text(encoding="utf-8") == "mine"


# ---- nothing stale, nothing half-made


def test_a_tokenizer_of_another_corpus_is_trained_again(ws, profile, capsys):
    before = tokenizer_hash(prepare.tokenizer(ws, profile))
    own_files(ws, "pretrain")
    capsys.readouterr()
    assert tokenizer_hash(prepare.tokenizer(ws, profile)) != before
    assert "The tokenizer was trained on something else, corpus (was " in capsys.readouterr().out
    prepare.tokenizer(ws, profile)
    assert capsys.readouterr().out == ""


def test_where_the_shards_of_the_real_corpora_hang_on_a_tokenizer_it_is_not_replaced(ws, real):
    prepare.tokenizer(ws, real)
    written = times(ws.tokenizer)
    with pytest.raises(
        ValueError, match="vocab_size .was 400, now 420.*Bring that corpus back; or remove"
    ):
        prepare.tokenizer(ws, replace(real, vocab_size=420))
    assert times(ws.tokenizer) == written


def test_a_part_of_the_real_corpus_is_read_whole_by_the_tokenizer(ws, real, tmp_path):
    ours = tokenizer_hash(prepare.tokenizer(ws, real))
    texts = read_texts(ws.raw / "pretrain.jsonl")
    assert ours == tokenizer_hash(train_tokenizer(texts, tmp_path / "all", vocab_size=400))


@pytest.mark.parametrize("lost", ["tokenizer_config.json", "tokenizer.json"])
def test_half_a_tokenizer_folder_is_refused_and_kept(ws, profile, lost):
    prepare.tokenizer(ws, profile)
    (ws.tokenizer / lost).unlink()
    (ws.tokenizer / "tokenizer.model").write_bytes(b"mine")
    with pytest.raises(
        ValueError, match=f"no whole tokenizer: it holds .*tokenizer.model.*, and no {lost}"
    ):
        prepare.tokenizer(ws, profile)
    assert (ws.tokenizer / "tokenizer.model").read_bytes() == b"mine"


@pytest.fixture
def stopped(ws, profile, in_this_process):
    """The base of notebook 05, stopped at step 2 of 4."""
    prepare.token_shards(ws, "pretrain", profile)
    run = train(prepare.train_config("pretrain", ws, profile, steps=2))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    write_json(run / "config.json", {**config, "steps": 4})
    return run


def test_a_base_that_was_stopped_is_not_used_without_a_word(ws, profile, stopped, capsys):
    config = prepare.train_config("sft", ws, profile)
    out = capsys.readouterr().out
    assert config.init_from == str(ws.run("pretrain_quick"))
    assert (
        "The run pretrain is not used: it has come to step 2 of 4." in out
        and '"go_on"' in out
        and '"use"' in out
    )
    assert "training a very small stand-in (4 steps)" in out
    prepare.pretrained_run(ws, profile)
    assert "The stand-in pretrain_quick is used instead." in capsys.readouterr().out

    config = prepare.train_config("sft", ws, profile, if_not_ready="use")
    assert config.init_from == str(stopped)
    assert (
        capsys.readouterr().out
        == "The run pretrain is used as it is: it has come to step 2 of 4.\n"
    )
    with pytest.raises(
        ValueError, match="if_not_ready is 'skip', expected one of stand_in, go_on, use"
    ):
        prepare.pretrained_run(ws, profile, if_not_ready="skip")


def test_a_base_that_was_stopped_goes_on_to_its_end(ws, profile, stopped, in_this_process):
    assert prepare.pretrained_run(ws, profile, if_not_ready="go_on") == stopped
    assert [(config.out_dir, config.steps) for config in in_this_process] == [(str(stopped), 4)]
    assert latest_checkpoint(stopped).name == "step_000004"
    assert prepare.why_not_ready(ws, "pretrain", profile) == "" and not list(
        stopped.parent.glob("*.old*")
    )
    assert [row["step"] for row in read_metrics(stopped)] == [1, 2, 3, 4]


def test_a_copied_workspace_goes_on_with_its_own_data(
    ws, profile, stopped, in_this_process, tmp_path
):
    copy = Workspace(shutil.copytree(ws.root, tmp_path / "copy" / "ci"))
    run = prepare.pretrained_run(copy, profile, if_not_ready="go_on")
    (config,) = in_this_process
    assert {config.data_path, config.tokenizer_path} == {
        str(copy.root / "tokens" / "pretrain"),
        str(copy.tokenizer),
    }
    assert (
        latest_checkpoint(run).name == "step_000004"
        and latest_checkpoint(stopped).name == "step_000002"
    )


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_record_is_told(ws, profile, stopped, content, capsys):
    manifest = ws.tokens("pretrain", "train") / "manifest.json"
    good = manifest.read_text(encoding="utf-8")
    manifest.write_text(content, encoding="utf-8")
    with pytest.raises(
        ValueError, match=re.escape(str(manifest)) + ".*bring back the file as it was, or remove it"
    ):
        prepare.pretrained_run(ws, profile)
    manifest.write_text(good, encoding="utf-8")

    (stopped / "config.json").write_text(content, encoding="utf-8")
    assert prepare.pretrained_run(ws, profile) == ws.run("pretrain_quick")
    assert (
        "The run pretrain is not used: it was not made from what lies here now: there is no record"
        in capsys.readouterr().out
    )


def test_a_run_of_damaged_checkpoints_is_not_used_and_going_on_trains_it_anew(
    ws, profile, stopped, in_this_process, capsys
):
    (latest_checkpoint(stopped) / "model.safetensors").write_bytes(b"half")
    assert prepare.pretrained_run(ws, profile, if_not_ready="use") == ws.run("pretrain_quick"), (
        "there is nothing to use"
    )
    out = capsys.readouterr().out
    assert (
        "The run pretrain is not used: all its checkpoints are damaged." in out
        and "before it" not in out
    )
    assert prepare.pretrained_run(ws, profile, if_not_ready="go_on") == stopped
    assert (
        prepare.why_not_ready(ws, "pretrain", profile) == ""
        and stopped.with_name("pretrain.old1").is_dir()
    )


def test_a_chat_run_of_another_base_is_not_used_without_a_word(
    ws, profile, in_this_process, capsys
):
    prepare.token_shards(ws, "pretrain", profile)
    prepare.token_shards(ws, "sft", profile)
    train(prepare.train_config("pretrain", ws, profile, seed=0))
    chat = train(prepare.train_config("sft", ws, profile))
    assert prepare.chat_run(ws, profile) == chat
    train(prepare.train_config("pretrain", ws, profile, seed=1))
    capsys.readouterr()
    assert prepare.chat_run(ws, profile) == ws.run("chat_quick")
    assert (
        "The run chat is not used: it was not made from what lies here now: init_from (was "
        in capsys.readouterr().out
    )
    assert prepare.chat_run(ws, profile, if_not_ready="use") == chat


def test_a_base_of_other_shards_or_of_a_changed_corpus_is_not_used_without_a_word(
    ws, profile, in_this_process
):
    prepare.token_shards(ws, "pretrain", profile)
    run = train(prepare.train_config("pretrain", ws, profile))
    assert prepare.why_not_ready(ws, "pretrain", profile) == ""
    (ws.tokenizer / "made_from.json").unlink()  # so the tokenizer is the learner's own, and stays
    own_files(ws, "pretrain")
    assert "corpus (was " in prepare.why_not_ready(ws, "pretrain", profile)
    prepare.token_shards(ws, "pretrain", profile)
    assert "shards (was " in prepare.why_not_ready(ws, "pretrain", profile)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    write_json(run / "config.json", {k: v for k, v in config.items() if k != "made_from"})
    assert "there is no record" in prepare.why_not_ready(ws, "pretrain", profile)


def test_a_finished_base_is_known_again_when_its_corpus_comes_back(ws, profile, in_this_process):
    prepare.token_shards(ws, "pretrain", profile)
    run = train(prepare.train_config("pretrain", ws, profile, seed=1))  # not the profile's number
    corpus = ws.raw / "pretrain.jsonl"
    content = corpus.read_bytes()
    own_files(ws, "pretrain")
    prepare.token_shards(ws, "pretrain", profile)
    corpus.write_bytes(content)
    assert prepare.pretrained_run(ws, profile, if_not_ready="go_on") == run
    assert [config.seed for config in in_this_process] == [1]
    assert not list(run.parent.glob("*.old*"))


@pytest.mark.parametrize("name", ["mine_quick", "12:30"])
def test_a_base_with_a_name_of_ones_own_is_compared_by_its_own_weights(
    ws, profile, name, one_thread
):
    base, other = ws.root / "runs" / name, ws.run("mine")
    prepare.token_shards(ws, "pretrain", profile)
    prepare.token_shards(ws, "sft", profile)
    for seed, folder in enumerate((base, other)):
        train(prepare.train_config("pretrain", ws, profile, steps=1, seed=seed, out_dir=folder))
    train(prepare.train_config("sft", ws, profile, init_from=base))
    assert prepare.why_not_ready(ws, "chat", profile) == ""


# ---- small is enough


@pytest.mark.parametrize("lines", [1, 2, 20, 40])
def test_a_corpus_of_a_few_lines_makes_shards(ws, profile, capsys, lines):
    own_files(ws, *OWN)
    for kind in ("pretrain", "sft"):
        write_lines(ws.raw / f"{kind}.jsonl", OWN[kind][:lines])
        folder = prepare.token_shards(ws, kind, replace(profile, replay_share=0.0))
        trained = read_manifest(folder / "train")["documents"]
        if lines == 1:
            assert (
                trained == 1
                and not (folder / "val").exists()
                and "there is no validation" in capsys.readouterr().out
            )
        else:
            assert read_manifest(folder / "val")["documents"] == lines - trained > 0


def test_a_corpus_that_shrank_to_one_line_leaves_no_old_validation(ws, profile):
    own_files(ws, *OWN)
    folder = prepare.token_shards(ws, "pretrain", profile)
    assert (folder / "val" / "manifest.json").is_file()
    write_lines(ws.raw / "pretrain.jsonl", OWN["pretrain"][:1])
    prepare.token_shards(ws, "pretrain", profile)
    assert not (folder / "val").exists()


def test_train_config_takes_the_numbers_of_the_profile_and_changes_win(ws):
    config = prepare.train_config(
        "pretrain", ws, get_profile("laptop"), name="try", seed=3, steps=9
    )
    numbers = get_profile("laptop").pretrain
    assert (config.dim, config.batch_size, config.max_seq_len) == (
        numbers["dim"],
        numbers["batch_size"],
        128,
    )
    assert (config.seed, config.steps, config.out_dir) == (3, 9, str(ws.run("try")))
    assert config.tokenizer_path == str(ws.tokenizer)
    sft = prepare.train_config("sft", ws, get_profile("laptop"), init_from=ws.run("mine"))
    assert (sft.init_from, sft.out_dir) == (str(ws.run("mine")), str(ws.run("chat")))
    assert sft.data_path == str(ws.tokens("sft", "train").parent)


def test_real_corpora_that_are_not_there_yet_are_named(ws):
    profile = replace(get_profile("full"), documents=20, dialogues=10)
    with pytest.raises(
        FileNotFoundError, match="mobvoi_seq_monkey.*download_pretrain.*notebook 01"
    ):
        prepare.corpus_files(ws, profile)


def test_a_run_without_a_checkpoint_is_not_ready(ws, profile):
    assert "does not exist" in prepare.why_not_ready(ws, "pretrain", profile)
