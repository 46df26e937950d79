"""Evaluation: a grader that is not fooled, an exam that is asked as it should be, and bits per byte
by hand.
"""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tinyllm_lib.evaluate import (
    Answer,
    ExamResult,
    bits_per_byte,
    exam_of,
    format_table,
    load_exam,
    run_exam,
    wilson,
)
from tinyllm_lib.evaluate.__main__ import main
from tinyllm_lib.evaluate.exam import kind_of_run
from tinyllm_lib.evaluate.results import text_width
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import ModelConfig, Transformer, score
from tinyllm_lib.tokenizer import encode_text, token_byte_lengths, token_bytes, train_tokenizer

TEXTS = [
    "你好，小苗！今天天气很好。",
    "法国的首都是巴黎。",
    "问：1+1等于多少？\n答：2",
    "日本的首都是东京。",
] * 5
EXAM = [
    {"class": "greeting", "question": "你好", "answer": "你好"},
    {
        "class": "fact",
        "question": "法国的首都是哪里？",
        "answer": "巴黎",
        "completion": "法国的首都是",
    },
    {
        "class": "fact",
        "question": "日本的首都是哪里？",
        "answer": "东京",
        "completion": "日本的首都是",
    },
    {"class": "sum", "question": "1+1等于多少？", "answer": "2"},
    {"class": "sum", "question": "1+2等于多少？", "answer": "3"},
    {
        "class": "sum",
        "question": "再加一呢？",
        "answer": "4",
        "history": [
            {"role": "user", "content": "1+2等于多少？"},
            {"role": "assistant", "content": "3。"},
        ],
    },
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


@pytest.fixture(scope="module")
def generator(tokenizer):
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=len(tokenizer), max_seq_len=160
    )
    return TextGenerator.from_model(Transformer(config), tokenizer)


def write_lines(path, rows):
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


# ---- intervals


def test_wilson_intervals():
    # Values by the closed form, as published tables round them.
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    for total in (1, 6, 7, 11, 120):  # 6 and 11: rounding puts a bound beyond the share
        for right in range(total + 1):
            low, high = wilson(right, total)
            assert 0 <= low <= right / total <= high <= 1


# ---- reading an exam


def test_an_exam_of_ones_own(tmp_path):
    rows = load_exam(
        write_lines(tmp_path / "my.jsonl", [{"question": "一", "answer": "二"}, EXAM[5]])
    )
    assert [row["class"] for row in rows] == ["own", "sum"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a line of JSON"),
        ("[1]", "expected an object {…}, found list"),
        ('{"answer": "x"}', r'no "question" field \(found: answer\)'),
        ("{}", r'no "question" field \(found: nothing\)'),
        ('{"question": "x"}', r'no "answer" field'),
        ('{"question": "x", "answer": 2}', '"answer" is 2, expected some text'),
        ('{"question": " ", "answer": "2"}', '"question" is'),
        ('{"question": "x", "answer": "。"}', "expected a letter or a digit"),
        (
            '{"question": "x", "answer": "y", "history": [{"role": "human", "content": "z"}]}',
            '"history" is not a list',
        ),
        ('{"question": "x", "answer": "y", "history": 5}', '"history" is not a list'),
        ('{"question": "x", "answer": "y", "history": {}}', '"history" is not a list'),
        (
            '{"question": "x", "answer": "y", "history": [{"role": "user", "content": 5}]}',
            '"history" is not a list',
        ),
        ('{"question": "x", "answer": "y", "completion": 5}', '"completion" is 5'),
        ('{"question": "x", "answer": "y", "pair": 5}', '"pair" is 5, expected some text'),
        ('{"question": "x", "answer": "y", "relation": 5}', '"relation" is 5'),
        ('{"question": "x", "answer": "y", "answers": "z"}', '"answers" is not a list of texts'),
        ('{"question": "x", "answer": "y", "answers": ["。"]}', "expected a letter or a digit"),
        ('{"question": "x", "answer": "y", "others": [1]}', '"others" is not a list of texts'),
        ('{"question": "x", "answer": "y", "all_of": {}}', '"all_of" is not a list of texts'),
        ('{"question": "x", "answer": "y", "none_of": [""]}', '"none_of" is not a list of texts'),
        (
            '{"question": "x", "answer": "y", "min_chars": "2"}',
            "\"min_chars\" is '2', expected int",
        ),
        (
            '{"question": "x", "answer": "y", "max_chars": true}',
            '"max_chars" is True, expected int',
        ),
        ('{"question": "x", "answer": "y", "free": 1}', '"free" is 1, expected bool'),
        ('{"objects": ["x"]}', r'no "relation" field \(found: objects\)'),
        ('{"relation": "r", "objects": "x"}', '"objects" is not a list of texts'),
    ],
)
def test_bad_rows_are_told_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps(EXAM[0]) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^exam.jsonl line 3: .*{message}"):
        load_exam(path)


@pytest.mark.parametrize(
    ("exam", "options", "message"),
    [
        ([EXAM[0], {"question": "x"}], {}, 'exam row 2: no "answer" field'),
        ([{"question": "x", "answer": 3}], {}, 'exam row 1: "answer" is 3'),
        (["x"], {}, "exam row 1: expected an object"),
        ([], {}, "the exam holds no question"),
        ([EXAM[0]], {"limit": 0}, "limit is 0, expected 1 or more"),
        ([EXAM[0]], {"limit": -1}, "limit is -1, expected 1 or more"),
        (
            [EXAM[0], {"question": "长" * 500, "answer": "x"}],
            {},
            "prompt 2: the last message does not fit",
        ),
        (
            [EXAM[0], {"question": "长" * 500, "answer": "x"}],
            {"kind": "base"},
            "prompt 2: the prompt has",
        ),
    ],
)
def test_rows_written_in_a_notebook_are_checked_like_those_of_a_file(
    generator, exam, options, message
):
    with pytest.raises(ValueError, match=message):
        run_exam(generator, exam, save=False, **options)


def test_exams_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing: an exam is written"):
        load_exam(tmp_path / "exam.jsonl")
    (tmp_path / "exam.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        load_exam(tmp_path / "exam.jsonl")
    marked = b"\xef\xbb\xbf" + json.dumps(EXAM[0]).encode() + b"\n"  # as some editors leave it
    (tmp_path / "exam.jsonl").write_bytes(marked)
    assert load_exam(tmp_path / "exam.jsonl") == EXAM[:1]
    (tmp_path / "exam.jsonl").write_bytes("你好".encode("gb18030"))
    with pytest.raises(ValueError, match="line 1: not a line of JSON in UTF-8"):
        load_exam(tmp_path / "exam.jsonl")


# ---- taking it


class Scripted(TextGenerator):
    """A generator that notes what it is asked and answers from a list."""

    def __init__(self, replies):
        self.folder, self.scripted, self.asked, self.context = None, replies, [], 1000

    def length(self, text):
        return len(text)

    def replies(self, conversations, **_):
        self.asked += conversations
        return self.scripted

    def completions(self, prompts, *_, **__):
        self.asked += prompts
        return [SimpleNamespace(text=text) for text in self.scripted]


def test_a_chat_model_is_asked_in_dialogues(capsys):
    model = Scripted(["你好！", "是伦敦。", "日本的首都是东京。", "1+1=2。", "4", "3再加1等于4。"])
    result = run_exam(model, EXAM, kind="chat")
    assert model.asked[0] == [{"role": "user", "content": "你好"}]
    assert model.asked[5] == [*EXAM[5]["history"], {"role": "user", "content": "再加一呢？"}]
    assert [(s.class_name, s.right, s.total) for s in result.classes] == [
        ("greeting", 1, 1),
        ("fact", 1, 2),
        ("sum", 2, 3),
    ]
    assert result.shares == {"greeting": 1, "fact": 0.5, "sum": 2 / 3}
    why = "does not give the answer"
    assert result.wrong[0] == Answer("fact", "法国的首都是哪里？", "巴黎", "是伦敦。", False, why)
    printed = capsys.readouterr().out
    assert "greeting" in printed and "50%" in printed and "1/2" in printed


def test_words_repeated_from_the_question_are_no_answer_in_an_exam_either():
    exam = [
        {"question": "西藏的简称是什么？", "answer": "藏"},
        {"question": "科纳克里在哪国？", "answer": "几内亚"},
        {"question": "比绍在哪国？", "answer": "几内亚比绍"},
    ]
    result = run_exam(
        Scripted(["西藏的简称是湘。", "几内亚比绍。", "几内亚比绍。"]),
        exam,
        kind="chat",
        print_table=False,
    )
    assert [a.right for a in result.answers] == [False, False, True]


def test_a_base_model_goes_on_with_texts():
    model = Scripted(["你好", "巴黎，", "在东京", "2", "3", "3+1=4。"])
    result = run_exam(model, EXAM, kind="base", print_table=False)
    assert model.asked[1:3] == ["法国的首都是", "日本的首都是"]
    assert (
        model.asked[3] == "问：1+2等于多少？\n答：3\n问：1+2等于多少？\n答：3。"
        "\n问：再加一呢？\n答：4\n问：1+1等于多少？\n答："
    )
    assert [a.right for a in result.answers] == [True, True, False, True, True, True]


def test_a_base_model_with_a_short_context_is_shown_fewer_answered_questions():
    model = Scripted(["x"] * 6)
    model.context = 60
    run_exam(model, EXAM, kind="base", print_table=False)
    assert all(len(prompt) <= 60 - 24 for prompt in model.asked) and model.asked[3].startswith(
        "问："
    )


def test_a_relation_names_its_objects_once_for_all_its_rows(tmp_path):
    row = {"question": "奥地利的首都是哪里？", "answer": "维也纳", "relation": "capital"}
    own = {**row, "others": ["萨尔茨堡"]}
    objects = {"relation": "capital", "objects": ["也门", "萨那"]}
    lines = [row, objects, own, {"question": "一", "answer": "二"}]
    rows = load_exam(write_lines(tmp_path / "my.jsonl", lines))
    assert [r.get("others") for r in rows] == [["也门", "萨那"], ["萨尔茨堡", "也门", "萨那"], None]
    replies = ["维也纳是也门的首都。", "维也纳。", "二"]
    result = run_exam(Scripted(replies), rows, kind="chat", print_table=False)
    assert [a.right for a in result.answers] == [False, True, True]
    assert result.wrong[0].why == "names 也门, another object of the relation"
    assert "others" not in row and own["others"] == ["萨尔茨堡"], "what was given is left as it was"


PAIRS = [
    {"class": "yes_no", "question": f"{place}吗？", "answer": answer, "pair": place[0]}
    for place, answer in (
        ("甲是城", "是的"),
        ("甲是山", "不是"),
        ("乙是城", "是的"),
        ("乙是山", "不是"),
    )
]


def test_a_pair_is_one_item_and_right_only_as_a_whole(tmp_path):
    def sit(*replies):
        return run_exam(Scripted([*replies, "三"]), [*PAIRS, three], kind="chat", print_table=False)

    three = {"class": "sum", "question": "1+2等于多少？", "answer": "3"}
    half = sit("是的。", "是的。", "是的。", "不是。")
    assert [(s.class_name, s.right, s.total) for s in half.classes] == [
        ("yes_no", 1, 2),
        ("sum", 1, 1),
    ]
    assert "1/2" in half.table() and len(half.wrong) == 1
    half.save(tmp_path / "exam.json")
    assert ExamResult.load(tmp_path).classes == half.classes
    one = run_exam(Scripted(["是的。", "不是。"]), PAIRS, kind="chat", limit=1, print_table=False)
    assert [a.pair for a in one.answers] == ["甲", "甲"], "a pair stays together"


def test_limit_spreads_over_each_class():
    rows = [{"class": "ab"[i % 2], "question": f"{i}?", "answer": str(i)} for i in range(20)]
    model = Scripted(["x"] * 6)
    run_exam(model, rows, kind="chat", limit=3, print_table=False)
    assert [c[-1]["content"] for c in model.asked] == ["0?", "1?", "6?", "7?", "12?", "13?"]


def test_a_real_model_its_file_and_the_command(generator, tmp_path, capsys):
    run, exam = tmp_path / "run", write_lines(tmp_path / "exam.jsonl", EXAM)
    step = run / "checkpoints" / "step_000007"
    generator.model.save_pretrained(step)
    generator.tokenizer.save_pretrained(str(step))
    result = run_exam(step, exam, print_table=False)
    assert (result.kind, result.checkpoint, result.exam, len(result.answers)) == (
        "chat",
        "step_000007",
        "exam.jsonl",
        6,
    )
    saved = json.loads((run / "exam.json").read_text(encoding="utf-8"))
    assert saved.keys() == {
        "kind",
        "checkpoint",
        "exam",
        "seconds",
        "made_from",
        "classes",
        "answers",
    }
    assert saved["classes"][1].keys() == {
        "class_name",
        "right",
        "total",
        "share",
        "low",
        "high",
    }
    assert ExamResult.load(run).answers == exam_of(step, exam).answers == result.answers
    with pytest.raises(
        ValueError,
        match=(
            "run/exam.json is not the exam of these weights, exam .was .*: run_exam takes it again"
        ),
    ):
        exam_of(step, write_lines(tmp_path / "other.jsonl", EXAM[1:]))
    weights = (step / "model.safetensors").read_bytes()
    (step / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match="not the exam of these weights, weights .was "):
        exam_of(step)
    (step / "model.safetensors").write_bytes(weights)
    (run / "exam.json").unlink()
    run_exam(step, exam, limit=1, print_table=False)
    assert not (run / "exam.json").exists(), "a part of an exam is not kept as if it were the whole"

    assert main([str(step), str(exam), "--kind", "base", "--wrong"]) == 0
    printed = capsys.readouterr().out
    assert "base model step_000007" in printed and "法国的首都是哪里？" in printed
    assert not (run / "exam.json").exists(), (
        "an exam of one's own does not replace the result of the course's"
    )
    assert main([str(tmp_path / "nothing"), str(exam)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(ValueError, match="kind is 'both'"):
        run_exam(generator, EXAM, kind="both")


def test_the_exam_beside_a_run_is_the_default(generator, tmp_path, monkeypatch, capsys):
    step = tmp_path / "runs" / "chat" / "checkpoints" / "step_000007"
    generator.model.save_pretrained(step)
    generator.tokenizer.save_pretrained(str(step))
    monkeypatch.chdir(tmp_path / "runs")
    assert main([str(step.relative_to(tmp_path / "runs"))]) == 2
    missing = tmp_path / "raw" / "exam.jsonl"
    assert capsys.readouterr().err.startswith(f"error: {missing} is missing")
    missing.parent.mkdir()
    write_lines(missing, EXAM)
    assert (
        main([str(step.relative_to(tmp_path / "runs"))]) == 0
        and exam_of(step, missing).exam == "exam.jsonl"
    )
    with pytest.raises(ValueError, match="which exam"):
        run_exam(generator)


def test_the_kind_of_a_run_is_read_from_its_token_shards(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "step_000001"
    step.mkdir(parents=True)
    assert kind_of_run(None) == kind_of_run(step) == "chat"
    data = tmp_path / "shards"
    config = tmp_path / "run" / "config.json"
    for kind, expected in (("pretrain", "base"), ("sft", "chat")):
        config.write_text(json.dumps({"data_path": str(tmp_path / "gone" / kind)}))
        assert kind_of_run(step) == expected
        config.write_text(json.dumps({"data_path": str(data)}))
        (data / "train").mkdir(parents=True, exist_ok=True)
        (data / "train" / "manifest.json").write_text(json.dumps({"kind": kind}))
        assert kind_of_run(step) == expected


def test_a_result_that_is_not_there_is_said_to_come_from_run_exam(tmp_path):
    with pytest.raises(FileNotFoundError, match="run_exam writes it"):
        ExamResult.load(tmp_path / "nothing")


def test_tables_stay_aligned_with_chinese_in_them():
    assert [text_width(t) for t in ("ab", "中文", "é", "e\u0301", "，")] == [2, 4, 1, 1, 2]
    lines = format_table([("class", "n"), ("中文", "10"), ("abcdefg", "7")], "<>").splitlines()
    assert lines == ["class     n", "-------  --", "中文     10", "abcdefg   7"]
    assert len({text_width(line) for line in lines}) == 1


# ---- bits per byte


def test_bits_per_byte_by_hand(generator, tokenizer):
    total_bits = total_bytes = 0
    for text in TEXTS[:3]:
        ids = encode_text(tokenizer, text)
        with torch.no_grad():
            logits = generator.model(torch.tensor([ids[:-1]]))
        total_bits += F.cross_entropy(
            logits[0], torch.tensor(ids[1:]), reduction="sum"
        ).item() / math.log(2)
        total_bytes += len(text.encode()) - len(token_bytes(tokenizer, ids[0]))
    for batch_size in (1, 2, 16):
        found = bits_per_byte(generator.model, tokenizer, TEXTS[:3], batch_size=batch_size)
        assert found == pytest.approx(total_bits / total_bytes, rel=1e-4)


def test_bits_per_byte_are_computed_in_fp32_whatever_the_weights_are(generator, tokenizer):
    half = copy.deepcopy(generator.model)
    for p in half.parameters():
        p.data = p.data.bfloat16()
    rounded = copy.deepcopy(half).float()
    expected = bits_per_byte(rounded, tokenizer, TEXTS[:3])
    assert bits_per_byte(half, tokenizer, TEXTS[:3]) == expected
    assert half.lm_head.weight.dtype == torch.bfloat16, "the model stays as it was"


def test_a_text_past_the_context_counts_each_byte_once(generator, tokenizer):
    """A model that knows nothing pays log2(V) for each token, wherever the windows lie."""
    model = Transformer(generator.model.config)
    torch.nn.init.zeros_(model.lm_head.weight)
    for n in (2, 159, 160, 161, 162, 240, 241, 242, 500):
        text = "".join("QXZJK"[i % 5] for i in range(n))  # letters without merges: a token each
        assert len(encode_text(tokenizer, text)) == n
        assert bits_per_byte(model, tokenizer, [text]) == pytest.approx(
            math.log2(len(tokenizer)), rel=1e-4
        )


def test_a_later_window_is_read_with_half_a_context_before_it(generator, tokenizer):
    ids = encode_text(tokenizer, "".join("QXZJK"[i * i % 5] for i in range(400)))
    context, nats, first = generator.context, 0.0, 1
    while first < len(ids):
        start = max(0, first - context // 2) if first > 1 else 0
        window = ids[start : start + context + 1]
        with torch.no_grad():
            logits = generator.model(torch.tensor([window[:-1]]))[0]
        counted = slice(first - start - 1, None)
        nats += F.cross_entropy(
            logits[counted], torch.tensor(window[1:])[counted], reduction="sum"
        ).item()
        first = start + len(window)
    found = bits_per_byte(generator.model, tokenizer, [tokenizer.decode(ids)])
    assert found == pytest.approx(nats / math.log(2) / 399, rel=1e-5)


def test_bits_per_byte_takes_texts_and_says_so(generator, tokenizer, tmp_path):
    for one in (TEXTS[0], tmp_path / "a.jsonl"):
        with pytest.raises(TypeError, match=r"expected texts, found .*: pass \[text\]"):
            bits_per_byte(generator.model, tokenizer, one)
    with pytest.raises(ValueError, match="no text of two tokens"):
        bits_per_byte(generator.model, tokenizer, ["", "a"])


def test_what_has_no_bytes_counts_on_neither_side_of_bits_per_byte(generator, tokenizer):
    ids = torch.tensor(
        [[*encode_text(tokenizer, TEXTS[0]), 4, 3, *encode_text(tokenizer, TEXTS[1]), 4]]
    )
    X, Y, mask = ids[:, :-1], ids[:, 1:], torch.ones_like(ids[:, 1:])
    mask[0, :2] = 0
    with torch.no_grad():
        nats = F.cross_entropy(generator.model(X)[0], Y[0], reduction="none")
    learned = mask[0] == 1
    text = learned & (Y[0] > 4)
    found = score(generator.model, [(X, Y, mask, {})], torch.tensor(token_byte_lengths(tokenizer)))
    size = sum(len(token_bytes(tokenizer, i)) for i in Y[0][text].tolist())
    assert found.nats_per_token == pytest.approx(nats[learned].mean().item(), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(
        nats[text].sum().item() / math.log(2) / size, rel=1e-5
    )
