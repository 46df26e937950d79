"""A model beside its control: what was gained, what was lost, and how often chance does as much."""

import pytest
import torch
from helpers.small_model import make_model
from helpers.tiny import DIALOGUES

from tinyllm_lib.course import compare_exams, comparison, mcnemar
from tinyllm_lib.evaluate import Answer, ExamResult
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.tokenizer import encode_chat, encode_text

pytest_plugins = ["helpers.tiny_fixtures"]


def test_comparing_two_exams(tmp_path, capsys):
    def result(*right):
        rows = zip(("一", "二", "三"), right, strict=False)
        return ExamResult(
            "chat", "step_1", "exam.jsonl", 0.0, [Answer("数", q, "x", "y", r) for q, r in rows]
        )

    result(True, False, False).save(tmp_path / "exam.json")
    saved = ExamResult.load(tmp_path / "exam.json")
    comparison = compare_exams(saved, result(False, True, False))
    assert [x.question for x, _ in comparison.gained] == ["二"]
    assert [x.question for x, _ in comparison.lost] == ["一"]
    assert "33% (1/3)" in capsys.readouterr().out
    shorter = compare_exams(result(False, True), result(True), print_table=False)
    assert [x.question for x, _ in shorter.gained] == ["一"] and not shorter.lost
    assert "\n1 questions stand in only one of the two exams" in shorter.table
    assert "only one" not in comparison.table


def test_questions_that_stand_in_an_exam_twice_are_compared_one_by_one():
    def result(*right):  # 那加蓬呢？ after other turns
        answers = [Answer("follow_up", "那加蓬呢？", "非洲", "x", r) for r in right]
        return ExamResult("chat", "step_1", "exam.jsonl", 0.0, answers)

    comparison = compare_exams(result(True, False), result(False, True), print_table=False)
    assert len(comparison.gained) == len(comparison.lost) == 1
    fewer = compare_exams(result(True, False), result(True), print_table=False)
    assert "\n1 questions stand in only one of the two exams" in fewer.table


def test_what_the_table_counts_are_items_so_that_the_scores_differ_by_them():
    def result(*right):
        answers = [
            Answer("yes_no", str(i), "是的", "x", r, pair=str(i // 2)) for i, r in enumerate(right)
        ]
        return ExamResult("chat", "step_1", "exam.jsonl", 0.0, answers)

    before = result(True, False, True, True, False, False)  # the second claim is judged, as a pair
    after = result(True, True, False, True, True, False)  # the first
    compared = compare_exams(before, after, print_table=False)
    assert len(compared.gained) == 2 and len(compared.lost) == 1  # answers
    last = compared.table.splitlines()[-1].split()
    assert last == ["yes_no", "33%", "(1/3)", "33%", "(1/3)", "1", "1", "1.000"]
    assert (compared.items, compared.p_values) == ({"yes_no": (1, 1)}, {"yes_no": 1.0})


def test_a_class_of_one_exam_alone_has_no_p_value():
    one = ExamResult("chat", "", "exam.jsonl", 0.0, [Answer("a", "?", "x", "x", True)])
    two = ExamResult("chat", "", "exam.jsonl", 0.0, [Answer("b", "?", "x", "x", True)])
    compared = compare_exams(one, two, print_table=False)
    assert compared.items == {}
    assert compared.table.splitlines()[2].split()[-1] == "-"


# ---- McNemar's test


def test_mcnemar_is_a_fair_coin_thrown_once_for_each_change():
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(3, 3) == 1
    assert mcnemar(0, 2) == 2 / 4
    assert mcnemar(0, 6) == mcnemar(6, 0) == 2 / 2**6
    assert mcnemar(1, 5) == 2 * (1 + 6) / 2**6
    assert mcnemar(5, 18) == pytest.approx(0.0106, abs=1e-4)


def test_mcnemar_is_the_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for gained in range(13):
        for lost in range(13 if gained else 0):
            expected = stats.binomtest(gained, gained + lost).pvalue
            assert mcnemar(gained, lost) == pytest.approx(expected)


def test_a_small_p_value_is_no_zero():
    assert [comparison.p_value(p) for p in (1, 0.0106, 0.0004)] == ["1.000", "0.011", "<0.001"]


# ---- loss


def test_the_loss_of_a_dialogue_is_that_of_its_first_question_and_of_its_reply(tokenizer):
    model = make_model(len(tokenizer), context=96)
    messages = DIALOGUES[1]
    found = comparison.loss_by_part(TextGenerator.from_model(model, tokenizer), [messages])
    before = [*encode_chat(tokenizer, messages[:1]).ids, tokenizer.bos_token_id]
    before += encode_text(tokenizer, "user\n")
    question = [*encode_text(tokenizer, messages[1]["content"]), tokenizer.eos_token_id]
    chat = encode_chat(tokenizer, messages[:3])
    assert chat.ids[: len(before) + len(question)] == before + question
    ids = torch.tensor([chat.ids])
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(
            model(ids[:, :-1])[0], ids[0, 1:], reduction="none"
        )
    learned = torch.tensor(chat.loss_mask[1:]).bool()
    first = len(before) - 1  # the loss at a position is that of the next token
    expected = {"question": nats[first : first + len(question)], "reply": nats[learned]}
    assert found == pytest.approx({part: of.mean().item() for part, of in expected.items()})
