"""Datasets: X, Y and loss_mask fit together, and packing loses, doubles and mixes nothing."""

import random
from itertools import groupby, pairwise

import numpy as np
import pytest
import torch
from helpers.tiny import DIALOGUES, ROOT, TEXTS, dialogue
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_lib.data import read_dialogues
from tinyllm_lib.dataset import (
    PackedDataset,
    PretrainDataset,
    SFTDataset,
    packed,
    write_pretrain_tokens,
    write_sft_tokens,
)
from tinyllm_lib.tokenizer import encode_chat, encode_text, tokenizer_hash, train_tokenizer

pytest_plugins = ["helpers.tiny_fixtures"]

IM_END = 4


# ---- the padded view


@pytest.mark.parametrize("length", [16, 64, 512])
def test_samples_are_int64_and_one_shorter_than_max_length(tokenizer, length):
    for dataset in (
        PretrainDataset(TEXTS[:3], tokenizer, length),
        SFTDataset(DIALOGUES[:3], tokenizer, length),
    ):
        assert len(dataset) == 3
        for sample in dataset:
            assert [(part.shape, part.dtype) for part in sample] == [
                ((length - 1,), torch.int64)
            ] * 3


def test_a_text_is_learned_up_to_its_eos_and_padding_is_not(tokenizer):
    ids = [*encode_text(tokenizer, TEXTS[0]), IM_END]
    X, Y, loss_mask = PretrainDataset(TEXTS, tokenizer, 80)[0]
    n = len(ids)
    assert X[: n - 1].tolist() == ids[:-1]
    assert Y[: n - 1].tolist() == ids[1:]
    assert Y[n - 2] == IM_END and loss_mask[n - 2] == 1, "the model learns to stop"
    assert loss_mask.tolist() == [1] * (n - 1) + [0] * (80 - n)


@given(index=st.integers(0, len(DIALOGUES) - 1), max_length=st.integers(8, 90))
def test_only_replies_of_a_dialogue_are_learned_with_their_end(tokenizer, index, max_length):
    chat = encode_chat(tokenizer, DIALOGUES[index], max_length=max_length)
    X, Y, loss_mask = SFTDataset([DIALOGUES[index]], tokenizer, max_length)[0]
    n = len(chat) - 1
    assert X[:n].tolist() == chat.ids[:-1]
    assert Y[:n].tolist() == chat.ids[1:]
    assert loss_mask.tolist() == chat.loss_mask[1:] + [0] * (max_length - 1 - n)


def test_every_reply_ends_with_a_learned_end_token(tokenizer):
    _, Y, loss_mask = SFTDataset([dialogue("你好", "好。", "再见", "")], tokenizer, 128)[0]
    assert ((Y == IM_END) & (loss_mask == 1)).sum() == 2
    assert ((Y == IM_END) & (loss_mask == 0)).sum() == 3  # those of system and user


def test_what_does_not_fit_is_counted(tokenizer):
    lengths = [len(encode_text(tokenizer, text)) + 1 for text in TEXTS]
    dataset = PretrainDataset(TEXTS, tokenizer, 32)
    assert dataset.cut_tokens == sum(max(0, n - 32) for n in lengths) > 0
    assert PretrainDataset(TEXTS, tokenizer, max(lengths)).cut_tokens == 0
    chat = encode_chat(tokenizer, dialogue("你好", "好。" * 60), max_length=64)
    assert (
        SFTDataset([dialogue("你好", "好。" * 60)], tokenizer, 64).cut_tokens == chat.cut_tokens > 0
    )


# ---- packed rows


def runs(row):
    """The documents (or pieces of documents) in a packed row: lists of (X, Y, mask, position)."""
    columns = zip(*(part.tolist() for part in row), strict=True)
    return [
        [column[:4] for column in run]
        for document, run in groupby(columns, key=lambda column: column[4])
        if document >= 0
    ]


def pairs_learned(dataset):
    """Every (id, next id) that a packed dataset trains on, sorted."""
    return sorted((x, y) for row in dataset for run in runs(row) for x, y, mask, _ in run if mask)


@pytest.fixture(scope="module", params=["best_fit", "stream"])
def packing(request):
    return request.param


@pytest.fixture(scope="module")
def unlike_texts():
    """Texts of very different lengths, each with a name of its own in it."""
    draw = random.Random(7)
    return [f"{n:03d}" + "小猫和白鹅。" * draw.choice([0, 1, 2, 3, 9]) for n in range(120)]


@pytest.fixture(scope="module")
def packed_texts(tmp_path_factory, tokenizer, unlike_texts):
    folder = tmp_path_factory.mktemp("packed")
    write_pretrain_tokens(unlike_texts, tokenizer, folder)
    return folder


def test_packed_rows_have_five_int64_parts_of_the_context(packed_texts, packing):
    dataset = PackedDataset(packed_texts, 32, packing=packing)
    for row in dataset:
        assert [(part.shape, part.dtype) for part in row] == [((32,), torch.int64)] * 5
    assert dataset[0]._fields == ("X", "Y", "loss_mask", "position_ids", "document_ids")


def test_best_fit_learns_every_document_once_and_whole(packed_texts, tokenizer, unlike_texts):
    context = 128  # more than the longest document
    dataset = PackedDataset(packed_texts, context)
    found = sorted([*(x for x, *_ in run), run[-1][1]] for row in dataset for run in runs(row))
    assert found == sorted([*encode_text(tokenizer, text), IM_END] for text in unlike_texts)


def test_no_target_lies_in_another_document_and_positions_restart(packed_texts, packing):
    for row in PackedDataset(packed_texts, 32, packing=packing):
        for run in runs(row):
            assert [position for *_, position in run] == list(range(len(run)))
            assert [x for x, *_ in run[1:]] == [y for _, y, *_ in run[:-1]]
            assert IM_END not in [x for x, *_ in run], (
                "nothing is predicted from the end of a document"
            )


def test_every_pair_of_neighbours_is_learned_exactly_once(packed_texts, tokenizer, unlike_texts):
    pairs = []
    for text in unlike_texts:
        ids = [*encode_text(tokenizer, text), IM_END]
        pairs += pairwise(ids)
    for context in (5, 32, 64):  # with 5, nearly every document is split
        assert pairs_learned(PackedDataset(packed_texts, context)) == sorted(pairs)


def test_a_stream_covers_the_tape_in_order_but_for_the_last_unfinished_row(
    packed_texts, tokenizer, unlike_texts
):
    tape = []
    for text in unlike_texts:
        ids = [*encode_text(tokenizer, text), IM_END]
        tape += pairwise(ids)
    dataset = PackedDataset(packed_texts, 32, packing="stream")
    assert len(dataset) == len(tape) // 32
    found = [pair for row in dataset for pair in zip(row.X.tolist(), row.Y.tolist(), strict=True)]
    assert found == tape[: 32 * len(dataset)]
    assert all(row.loss_mask.all() for row in dataset)
    assert dataset.waste == 0


def test_padding_of_a_packed_row_is_marked_and_not_learned(packed_texts):
    dataset = PackedDataset(packed_texts, 50)
    padding = sum(int((row.document_ids < 0).sum()) for row in dataset)
    assert all(not row.loss_mask[row.document_ids < 0].any() for row in dataset)
    assert dataset.waste == pytest.approx(padding / (50 * len(dataset)))


def test_without_packing_each_document_has_a_row_of_its_own(packed_texts, unlike_texts):
    rows = PackedDataset(packed_texts, 32, packing="none")
    assert all(set(row.document_ids.tolist()) <= {0, -1} for row in rows)
    assert rows.waste > PackedDataset(packed_texts, 32).waste and len(rows) >= len(unlike_texts)


def test_best_fit_wastes_little(packed_texts, tokenizer, unlike_texts):
    padded = PretrainDataset(unlike_texts, tokenizer, 51)
    padded_waste = 1 - sum(int(mask.sum()) for *_, mask in padded) / (50 * len(padded))
    assert PackedDataset(packed_texts, 50).waste < 0.05 < padded_waste


@pytest.mark.slow
@pytest.mark.parametrize("context", [256, 512])
def test_best_fit_wastes_at_most_three_percent_on_real_dialogues(tmp_path, context):
    source = ROOT.parent / "shared" / "data" / "dialogues.json"
    if not source.is_file():
        pytest.skip(
            f"needs {source.name} in ../shared/data: real dialogues, not part of the repository"
        )
    dialogues = list(read_dialogues(source))
    texts = (message["content"] for messages in dialogues[:3000] for message in messages)
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer", vocab_size=6144)
    manifest = write_sft_tokens(dialogues, tokenizer, tmp_path / "tokens", max_length=context + 1)
    packed = PackedDataset(tmp_path / "tokens", context)
    assert len(dialogues) > 17_000 and manifest["documents"] > 17_000
    assert packed.waste <= 0.03 < PackedDataset(tmp_path / "tokens", context, packing="none").waste


def test_packed_dialogues_learn_what_the_padded_view_learns(tokenizer, tmp_path, packing):
    write_sft_tokens(DIALOGUES, tokenizer, tmp_path, max_length=128)
    padded = sorted(
        pair
        for X, Y, mask in SFTDataset(DIALOGUES, tokenizer, 128)
        for pair, learned in zip(
            zip(X.tolist(), Y.tolist(), strict=True), mask.tolist(), strict=True
        )
        if learned
    )
    packed = pairs_learned(PackedDataset(tmp_path, 128, packing=packing))
    if packing != "stream":
        assert packed == padded
    else:
        assert 0 < len(packed) <= len(padded)


def test_rows_run_over_all_shards(tokenizer, tmp_path, packing, monkeypatch):
    monkeypatch.setattr("tinyllm_lib.dataset.tokens.BATCH_DOCUMENTS", 10)
    one = write_pretrain_tokens(TEXTS, tokenizer, tmp_path / "one")
    many = write_pretrain_tokens(TEXTS, tokenizer, tmp_path / "many", shard_tokens=1000)
    assert len(one["shards"]) == 1 < len(many["shards"])
    rows = [
        list(map(runs, PackedDataset(tmp_path / n, 32, packing=packing))) for n in ("one", "many")
    ]
    assert rows[0] == rows[1]


def test_a_stream_shorter_than_one_row_is_still_one_row(tokenizer, tmp_path):
    write_pretrain_tokens(["好。"], tokenizer, tmp_path)
    dataset = PackedDataset(tmp_path, 32, packing="stream")
    assert len(dataset) == 1
    learned = int(dataset[0].loss_mask.sum())
    assert learned == len(encode_text(tokenizer, "好。"))
    assert dataset.waste == pytest.approx(1 - learned / 32)


def one_by_one(lengths, context):
    """`best_fit` as its docstring has it, a piece at a time: the numbers of the pieces by row."""
    rows, rooms = [], []  # rooms: (room, row), the last to come at the end
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = min((room for room, _ in rooms if room >= lengths[piece]), default=None)
        if least is None:
            rows.append([])
            least, row = context, len(rows) - 1
        else:
            row = [row for room, row in rooms if room == least][-1]
            rooms.remove((least, row))
        rows[row].append(piece)
        rooms.append((least - lengths[piece], row))
    return rows


@given(data=st.data(), context=st.integers(1, 24))
def test_best_fit_places_pieces_as_if_one_by_one(data, context):
    """Runs that are resumed need the same rows, in the same order, from every version."""
    lengths = data.draw(st.lists(st.integers(1, context), max_size=60))
    row = packed.best_fit(np.array(lengths, np.int64), context)
    order = np.lexsort((-np.array(lengths, np.int64), row))
    found = [order[row[order] == i].tolist() for i in range(len(set(row.tolist())))]
    assert found == one_by_one(lengths, context)


# ---- the packed rows of large shards, kept beside them


@pytest.fixture
def large(tokenizer, tmp_path, monkeypatch):
    """A folder of shards whose rows are kept, and a function that says how often they were made."""
    monkeypatch.setattr(packed, "KEPT_PIECES", 1)
    write_sft_tokens(long_questions(6), tokenizer, tmp_path, max_length=2048)
    made, pack = [], PackedDataset._pack
    monkeypatch.setattr(PackedDataset, "_pack", lambda self: made.append(1) or pack(self))
    return tmp_path, lambda: len(made)


def same_rows(a, b):
    return [*a.rows] == [*b.rows] and (a.left_out, a.positions, a.waste) == (
        b.left_out,
        b.positions,
        b.waste,
    )


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_rows_are_packed_once_and_read_from_beside_the_shards_by_all_others(large, packing):
    folder, made = large
    first, second = (PackedDataset(folder, 32, packing=packing) for _ in range(2))
    assert made() == 1 and first.left_out > 0 and same_rows(first, second)
    (kept,) = folder.glob("packed_*")
    assert kept.name.startswith(f"packed_{packing}_32_")
    assert kept.stat().st_mode == (folder / "manifest.json").stat().st_mode, "for others, too"


def test_rows_that_were_changed_and_kept_their_size_are_never_trained_on(large):
    folder, _ = large
    PackedDataset(folder, 32)
    (kept,) = folder.glob("packed_*")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(ValueError, match=r"packed_….safetensors is damaged: delete it"):
        PackedDataset(folder, 32).check_content()
    kept.unlink()
    PackedDataset(folder, 32).check_content()


def test_a_stream_has_no_file_and_needs_none(large):
    folder, made = large
    first, second = (PackedDataset(folder, 32, packing="stream") for _ in range(2))
    assert made() == 2 and first.left_out > 0 and same_rows(first, second)
    assert not [*folder.glob("packed_*")]


def test_few_rows_leave_no_file(packed_texts):
    PackedDataset(packed_texts, 32)
    assert not [*packed_texts.glob("packed_*")]


def test_rows_of_another_context_packing_or_version_are_others(large, monkeypatch):
    folder, made = large
    for context, packing in ((32, "best_fit"), (48, "best_fit"), (32, "none")):
        PackedDataset(folder, context, packing=packing)
    monkeypatch.setattr(packed, "PACKING_VERSION", 99)
    PackedDataset(folder, 32)
    assert made() == len([*folder.glob("packed_*")]) == 4


@pytest.mark.parametrize("damage", [lambda raw: raw[:-8], lambda raw: raw + b"8", lambda raw: b""])
def test_a_damaged_file_of_rows_is_made_again(large, damage):
    folder, made = large
    whole = PackedDataset(folder, 32)
    (kept,) = folder.glob("packed_*")
    before = kept.read_bytes()
    kept.unlink()  # `whole` has it mapped
    kept.write_bytes(damage(before))
    assert same_rows(PackedDataset(folder, 32), whole) and made() == 2
    assert kept.read_bytes() == before


def test_rows_go_when_their_shards_are_replaced(large, tokenizer):
    folder, made = large
    before = PackedDataset(folder, 32)
    write_sft_tokens(long_questions(3), tokenizer, folder, max_length=2048)
    assert not [*folder.glob("packed_*")]
    assert len(PackedDataset(folder, 32)) < len(before) and made() == 2


def test_where_the_folder_cannot_be_written_rows_are_packed_in_memory(large, monkeypatch):
    folder, made = large
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert same_rows(PackedDataset(folder, 32), PackedDataset(folder, 32)) and made() == 2
    assert not [*folder.glob("packed_*")]


# ---- bad input


def test_shards_of_another_tokenizer_are_refused_by_name(packed_texts, tokenizer, tmp_path):
    other = train_tokenizer(TEXTS[:20], tmp_path, vocab_size=300)
    with pytest.raises(ValueError, match="another tokenizer") as error:
        PackedDataset(packed_texts, 32, tokenizer=other)
    assert tokenizer_hash(tokenizer)[:12] in str(error.value)
    assert tokenizer_hash(other)[:12] in str(error.value)
    PackedDataset(packed_texts, 32, tokenizer=tokenizer)


@pytest.mark.parametrize("ending", [".bin", ".mask", ".offsets"])
def test_a_shortened_or_missing_file_is_refused(tokenizer, tmp_path, ending):
    write_sft_tokens(DIALOGUES, tokenizer, tmp_path)
    path = tmp_path / f"shard_00000{ending}"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        ValueError,
        match=f"shard_00000{ending}: the manifest promises {size} bytes, found {size - 3}",
    ):
        PackedDataset(tmp_path, 32)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"shard_00000{ending}"):
        PackedDataset(tmp_path, 32)


def test_unfinished_shards_and_unknown_packing_are_refused(packed_texts, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished token shards"):
        PackedDataset(tmp_path, 32)
    with pytest.raises(ValueError, match="packing='tight': expected one of best_fit, stream, none"):
        PackedDataset(packed_texts, 32, packing="tight")


def long_questions(n):
    """Dialogues whose question fills several rows of 32 and whose reply is in the last of them."""
    return [dialogue("小猫在河边走了很久，遇见一只白鹅。" * 12 + str(i), "好。") for i in range(n)]


@pytest.mark.parametrize("packing", ["best_fit", "stream", "none"])
def test_rows_without_a_token_to_learn_are_left_out_and_counted(tokenizer, tmp_path, packing):
    write_sft_tokens(long_questions(6), tokenizer, tmp_path, max_length=2048)
    data = PackedDataset(tmp_path, 32, packing=packing)
    assert data.left_out > len(data) > 0
    assert all(row.loss_mask.any() for row in data)
    assert sum(int(row.loss_mask.sum()) for row in data) == data.manifest["supervised_tokens"]
    assert data.positions == sum(int((row.document_ids >= 0).sum()) for row in data)


@pytest.mark.parametrize("packing", ["best_fit", "stream", "none"])
def test_where_every_row_has_something_to_learn_none_is_left_out_and_the_order_is_as_it_was(
    tokenizer, tmp_path, packing, monkeypatch
):
    write_sft_tokens(DIALOGUES, tokenizer, tmp_path, max_length=128)
    data = PackedDataset(tmp_path, 128, packing=packing)
    monkeypatch.setattr(PackedDataset, "_has_target", lambda self, row: True)
    as_it_was = PackedDataset(tmp_path, 128, packing=packing)
    assert (
        data.left_out == 0
        and [*data.rows] == [*as_it_was.rows]
        and data.positions == as_it_was.positions
    )


def test_shards_of_single_tokens_have_no_rows(tokenizer, tmp_path):
    write_sft_tokens([], tokenizer, tmp_path, replay=["猫" * 9] * 3, max_length=1)
    assert [
        len(PackedDataset(tmp_path, 32, packing=packing))
        for packing in ("best_fit", "stream", "none")
    ] == [0, 0, 0]
