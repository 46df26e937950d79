"""Token shards: what is in them, and that a run after a stopped one writes the same bytes."""

import hashlib
import json
import signal
from itertools import pairwise

import numpy as np
import pytest
from helpers import write_tokens
from helpers.tiny import DIALOGUES, SYSTEM, TEXTS, dialogue, start_python, wait_until

from tinyllm_lib.dataset import (
    PackedDataset,
    read_manifest,
    tokens,
    write_pretrain_tokens,
    write_sft_tokens,
)
from tinyllm_lib.model import Transformer, latest_checkpoint
from tinyllm_lib.tokenizer import (
    encode_chat,
    encode_documents,
    encode_text,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from tinyllm_lib.train import TrainConfig, train
from tools.bench.harness import peak_memory_mb

pytest_plugins = ["helpers.tiny_fixtures"]


def documents_on_disk(folder):
    """The ids and masks of each document, read as the module's docstring describes the files."""
    ids, masks = [], []
    for shard in read_manifest(folder)["shards"]:
        tape = np.fromfile(folder / f"{shard['name']}.bin", np.uint16).tolist()
        mask_file = folder / f"{shard['name']}.mask"
        mask = np.fromfile(mask_file, np.uint8).tolist() if mask_file.is_file() else [1] * len(tape)
        offsets = np.fromfile(folder / f"{shard['name']}.offsets", np.uint64).tolist()
        assert (offsets[0], offsets[-1]) == (0, len(tape)) and len(mask) == len(tape)
        ids += [tape[a:b] for a, b in pairwise(offsets)]
        masks += [mask[a:b] for a, b in pairwise(offsets)]
    return ids, masks


def contents(folder):
    """All that lies in a folder: name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def small_batches(monkeypatch, size=10):
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", size)


# ---- pretraining


def test_every_document_is_there_and_ends_with_eos(tokenizer, tmp_path):
    texts = [*TEXTS[:20], "", "文里有<|im_end|>。", "\n"]
    write_pretrain_tokens(texts, tokenizer, tmp_path)
    ids, _ = documents_on_disk(tmp_path)
    assert ids == [[*encode_text(tokenizer, text), 4] for text in texts]
    assert not list(tmp_path.glob("*.mask"))


def test_the_manifest_describes_the_shards(tokenizer, tmp_path, monkeypatch):
    small_batches(monkeypatch)
    manifest = write_pretrain_tokens(
        iter(TEXTS), tokenizer, tmp_path, source="corpus of the tests", shard_tokens=1000
    )
    assert (
        manifest
        == read_manifest(tmp_path)
        == json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    )
    assert manifest["tokenizer"] == tokenizer_hash(tokenizer)
    assert (manifest["kind"], manifest["dtype"], manifest["vocab_size"]) == (
        "pretrain",
        "uint16",
        400,
    )
    assert manifest["source"] == "corpus of the tests"
    assert len(manifest["shards"]) > 3
    for key in ("documents", "tokens", "supervised_tokens"):
        assert manifest[key] == sum(shard[key] for shard in manifest["shards"])
    assert manifest["documents"] == len(TEXTS)
    assert (
        manifest["tokens"]
        == manifest["supervised_tokens"]
        == sum(len(encode_text(tokenizer, t)) + 1 for t in TEXTS)
    )
    files = {}
    for shard in manifest["shards"]:
        assert (tmp_path / f"{shard['name']}.bin").stat().st_size == 2 * shard["tokens"]
        files |= shard["sha256"]
    assert files == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.glob("shard_*")
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", *sorted(files)]


def test_all_shards_but_the_last_are_full(tokenizer, tmp_path, monkeypatch):
    small_batches(monkeypatch)
    *full, _ = write_pretrain_tokens(TEXTS, tokenizer, tmp_path, shard_tokens=1000)["shards"]
    assert all(1000 <= shard["tokens"] < 2000 for shard in full)


# ---- dialogues


def test_dialogues_carry_the_masks_of_encode_chat(tokenizer, tmp_path):
    manifest = write_sft_tokens(DIALOGUES, tokenizer, tmp_path, max_length=60)
    chats = [encode_chat(tokenizer, messages, max_length=60) for messages in DIALOGUES]
    assert documents_on_disk(tmp_path) == ([c.ids for c in chats], [c.loss_mask for c in chats])
    assert manifest["supervised_tokens"] == sum(sum(c.loss_mask) for c in chats)
    assert manifest["counts"] == {
        "dialogues": len(DIALOGUES),
        "shortened_dialogues": sum(bool(c.dropped_turns or c.cut_tokens) for c in chats),
        "dropped_messages": sum(c.dropped_turns for c in chats),
        "cut_tokens": sum(c.cut_tokens for c in chats),
        "cut_supervised_tokens": sum(c.cut_supervised for c in chats),
        "without_supervised_token": 0,
        "replayed_documents": 0,
        "shortened_documents": 0,
    }
    assert 0 < manifest["counts"]["shortened_dialogues"] < len(DIALOGUES)


def test_dialogues_may_be_tuples_of_messages(tokenizer, tmp_path):
    lists = write_sft_tokens(DIALOGUES, tokenizer, tmp_path / "lists")
    tuples = write_sft_tokens(map(tuple, DIALOGUES), tokenizer, tmp_path / "tuples")
    assert tuples == lists


def test_a_dialogue_with_nothing_to_learn_is_left_out_and_counted(tokenizer, tmp_path):
    no_room = dialogue("为" * 100, "好。")
    given = [
        dialogue("你好"),
        dialogue("你好", "好。"),
        no_room,
        dialogue("你好", "好。", "还有呢？"),
    ]
    manifest = write_sft_tokens(given, tokenizer, tmp_path, max_length=50)
    assert (manifest["documents"], manifest["counts"]["dialogues"]) == (2, 4)
    assert manifest["counts"]["without_supervised_token"] == 2
    assert manifest["counts"]["cut_supervised_tokens"] == sum(
        encode_chat(tokenizer, no_room).loss_mask
    )


def test_replayed_texts_follow_the_dialogues_and_are_learned_whole(tokenizer, tmp_path):
    manifest = write_sft_tokens(
        DIALOGUES[:3], tokenizer, tmp_path, replay=iter(TEXTS[:5]), max_length=64
    )
    ids, masks = documents_on_disk(tmp_path)
    assert ids[3:] == [[*encode_text(tokenizer, text), 4][:64] for text in TEXTS[:5]]
    assert all(all(mask) for mask in masks[3:])
    counts = manifest["counts"]
    assert (counts["dialogues"], counts["replayed_documents"]) == (3, 5)


def test_what_is_cut_from_replayed_texts_is_counted_too(tokenizer, tmp_path):
    lengths = [len(encode_text(tokenizer, text)) + 1 for text in TEXTS[:20]]
    counts = write_sft_tokens([], tokenizer, tmp_path, replay=TEXTS[:20], max_length=30)["counts"]
    cut = sum(max(0, length - 30) for length in lengths)
    assert counts["cut_tokens"] == counts["cut_supervised_tokens"] == cut > 0
    assert counts["shortened_documents"] == sum(length > 30 for length in lengths)


def test_ids_past_65535_are_written_as_uint32(tokenizer_folder, tmp_path):
    large = load_tokenizer(tokenizer_folder)
    large.add_tokens([f"【{n}】" for n in range(2**16)])
    manifest = write_pretrain_tokens(["你好【65535】"], large, tmp_path)
    assert (manifest["dtype"], manifest["vocab_size"]) == ("uint32", 400 + 2**16)
    ids = np.fromfile(tmp_path / "shard_00000.bin", np.uint32).tolist()
    assert ids == [*encode_text(large, "你好"), 400 + 65535, 4]


def test_long_documents_make_smaller_batches_and_the_same_shards(tokenizer, tmp_path, monkeypatch):
    write_pretrain_tokens(TEXTS, tokenizer, tmp_path / "large")
    monkeypatch.setattr(tokens, "BATCH_CHARS", 100)
    seen = []

    def counting(tokenizer, texts, **options):
        seen.append(len(texts))
        return encode_documents(tokenizer, texts, **options)

    monkeypatch.setattr(tokens, "encode_documents", counting)
    write_pretrain_tokens(TEXTS, tokenizer, tmp_path / "small")
    assert sum(seen) == len(TEXTS) and len(seen) > len(TEXTS) / 10
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_learn_all_learns_the_questions_too(tokenizer, tmp_path):
    manifest = write_sft_tokens(DIALOGUES[:3], tokenizer, tmp_path, learn_all=True)
    assert manifest["supervised_tokens"] == manifest["tokens"]


# ---- stopped and started again


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_run_killed_at_any_moment_leaves_no_manifest_and_the_next_ends_with_the_same_bytes(
    kind, tokenizer, tokenizer_folder, tmp_path, monkeypatch
):
    folder = tmp_path / "killed"
    killed = start_python(write_tokens.__file__, kind, tokenizer_folder, folder)
    shard = folder / "shard_00001.bin"
    wait_until(lambda: shard.is_file() or killed.poll() is not None, "a second shard")
    killed.send_signal(signal.SIGKILL)
    assert killed.communicate()[0] == ""
    with pytest.raises(FileNotFoundError, match="no finished token shards"):
        read_manifest(folder)
    # What a kill in the middle of a write leaves, without the luck of hitting that moment:
    (folder / ".tmp-0123abcd").mkdir(exist_ok=True)
    (folder / ".tmp-0123abcd" / "shard_00002.bin").write_bytes(b"half a shard")

    small_batches(monkeypatch, write_tokens.BATCH)
    write_tokens.write(kind, tokenizer, folder)
    write_tokens.write(kind, tokenizer, tmp_path / "undisturbed")
    assert contents(folder) == contents(tmp_path / "undisturbed")


def test_a_file_that_an_earlier_version_left_half_written_is_no_obstacle(tokenizer, tmp_path):
    (tmp_path / ".tmp-0123abcd-shard_00002.bin").write_bytes(b"half a shard")
    assert write_pretrain_tokens(TEXTS, tokenizer, tmp_path) == read_manifest(tmp_path)


class Stopped(Exception):
    pass


def stop_after(items, number):
    yield from items[:number]
    raise Stopped


def test_an_error_in_the_source_leaves_whole_shards_and_nothing_half_written(
    tokenizer, tmp_path, monkeypatch
):
    small_batches(monkeypatch)
    with pytest.raises(Stopped):
        write_pretrain_tokens(stop_after(TEXTS, 100), tokenizer, tmp_path, shard_tokens=1000)
    assert {path.name for path in tmp_path.iterdir()} >= {"shard_00000.bin", "shard_00001.bin"}
    assert not list(tmp_path.glob(".tmp-*")) and not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("changed", ["source", "shard_tokens", "tokenizer"])
def test_a_restart_with_something_changed_is_refused_by_name_or_starts_anew(
    changed, tokenizer, tmp_path, monkeypatch
):
    small_batches(monkeypatch)
    settings = {"tokenizer": tokenizer, "source": "corpus", "shard_tokens": 1000}
    other = {"source": "a newer corpus", "shard_tokens": 900, "tokenizer": None}[changed]
    other = other or train_tokenizer(TEXTS[:30], tmp_path / "tokenizer", vocab_size=300)
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    write_pretrain_tokens(TEXTS, out_dir=run, **settings)
    before, settings = contents(run), {**settings, changed: other}

    with pytest.raises(
        ValueError,
        match=(rf"run holds token shards made otherwise: .*{changed} \(was .*, now .*replace=True"),
    ):
        write_pretrain_tokens(TEXTS[::-1], out_dir=run, **settings)
    assert contents(run) == before
    write_pretrain_tokens(TEXTS[::-1], out_dir=run, replace=True, **settings)
    write_pretrain_tokens(TEXTS[::-1], out_dir=fresh, **settings)
    assert contents(run) == contents(fresh)


def test_other_settings_are_another_work(tokenizer, tmp_path):
    write_sft_tokens(DIALOGUES, tokenizer, tmp_path, max_length=60)
    with pytest.raises(
        ValueError, match=r"settings \(was {'max_length': 60, .*, now {'max_length': 70"
    ):
        write_sft_tokens(DIALOGUES, tokenizer, tmp_path, max_length=70)


def test_a_finished_folder_is_left_alone_if_its_source_has_a_name(tokenizer, tmp_path):
    def unread():
        raise AssertionError("a finished corpus must not be read again")
        yield

    manifest = write_pretrain_tokens(TEXTS, tokenizer, tmp_path, source="corpus")
    assert write_pretrain_tokens(unread(), tokenizer, tmp_path, source="corpus") == manifest


def test_a_finished_folder_without_a_name_is_written_again(tokenizer, tmp_path):
    write_pretrain_tokens(TEXTS, tokenizer, tmp_path)
    write_pretrain_tokens(TEXTS[:4], tokenizer, tmp_path)
    ids, _ = documents_on_disk(tmp_path)
    assert ids == [[*encode_text(tokenizer, text), 4] for text in TEXTS[:4]]


def test_a_run_that_was_stopped_begins_anew(tokenizer, tmp_path, monkeypatch):
    small_batches(monkeypatch)
    with pytest.raises(Stopped):
        write_pretrain_tokens(stop_after(TEXTS, 100), tokenizer, tmp_path, shard_tokens=1000)
    write_pretrain_tokens(TEXTS[::-1], tokenizer, tmp_path, shard_tokens=1000)
    ids, _ = documents_on_disk(tmp_path)
    assert ids == [[*encode_text(tokenizer, text), 4] for text in TEXTS[::-1]]


# ---- small is enough


def test_twenty_documents_go_the_whole_way_to_a_checkpoint(tmp_path, one_thread):
    with pytest.warns(UserWarning, match="This text gives"):
        train_tokenizer(TEXTS[:20], tmp_path / "tokenizer")
    small = load_tokenizer(tmp_path / "tokenizer")
    for split, texts in (("train", TEXTS[:19]), ("val", TEXTS[19:20])):
        assert write_pretrain_tokens(texts, small, tmp_path / "tokens" / split)["documents"] == len(
            texts
        )
    shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 64}
    paths = {
        "data_path": str(tmp_path / "tokens"),
        "tokenizer_path": str(tmp_path / "tokenizer"),
        "out_dir": str(tmp_path / "run"),
    }
    train(
        TrainConfig(
            **paths, **shape, batch_size=2, steps=2, warmup_steps=1, device="cpu", dtype="fp32"
        )
    )
    assert (
        Transformer.from_pretrained(latest_checkpoint(tmp_path / "run")).config.vocab_size
        == len(small)
        < 6144
    )


def test_one_document_and_one_dialogue_are_a_corpus(tokenizer, tmp_path):
    write_pretrain_tokens(["好。"], tokenizer, tmp_path / "text")
    write_sft_tokens([dialogue("你好", "好。")], tokenizer, tmp_path / "chat")
    for packing in ("best_fit", "stream", "none"):
        row = PackedDataset(tmp_path / "text", 64, packing=packing, tokenizer=tokenizer)[0]
        ids = [*encode_text(tokenizer, "好。"), 4]
        assert row.Y[: len(ids) - 1].tolist() == ids[1:] and row.loss_mask.sum() == len(ids) - 1
        chat, packed = (
            encode_chat(tokenizer, dialogue("你好", "好。")),
            PackedDataset(tmp_path / "chat", 64, packing=packing),
        )
        assert len(packed) == 1 and packed[0].loss_mask.sum() == sum(chat.loss_mask)


@pytest.mark.slow
@pytest.mark.skipif(peak_memory_mb() is None, reason="peak memory is not known on this system")
def test_memory_grows_neither_with_the_corpus_nor_with_the_shard(tokenizer_folder, tmp_path):
    def peak(documents):
        process = start_python(
            write_tokens.__file__, "peak", tokenizer_folder, tmp_path / str(documents), documents
        )
        return int(process.communicate()[0])

    assert peak(80_000) < 1.1 * peak(8000)


# ---- bad input


def test_an_empty_source_is_an_error_and_leaves_no_manifest(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="the source gave no document"):
        write_pretrain_tokens([], tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"no dialogue with a token to learn \(1 read\)"):
        write_sft_tokens([dialogue("你好")], tokenizer, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no finished token shards .*notebook 03"):
        read_manifest(tmp_path)


def test_a_text_that_cannot_be_encoded_is_named(tokenizer, tmp_path, monkeypatch):
    small_batches(monkeypatch)
    with pytest.raises(
        ValueError, match=r"text 14: character 3 is '\\ud83d', half of a surrogate pair"
    ):
        write_pretrain_tokens([*TEXTS[:13], "半个\ud83d", *TEXTS], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="text 12: expected text, found NoneType"):
        write_pretrain_tokens([*TEXTS[:11], None], tokenizer, tmp_path)
    with pytest.raises(
        ValueError, match="dialogue 12, message 3: character 1 is .* half of a surrogate pair"
    ):
        write_sft_tokens([*DIALOGUES[:11], dialogue("你好", "\ud83d")], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="dialogue 1, message 2: expected a role"):
        write_sft_tokens([[SYSTEM, {"role": "human", "content": 3}]], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="dialogue 2, message 1: expected .* found '用'"):
        write_sft_tokens([DIALOGUES[0], "用户：你好"], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="dialogue 2, message 1: expected .* found 'id'"):
        write_sft_tokens([DIALOGUES[0], {"id": 1, "conversations": []}], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="text 2: character 1"):
        write_sft_tokens(DIALOGUES[:1], tokenizer, tmp_path, replay=["\ud83d"])
    assert not list(tmp_path.iterdir())
