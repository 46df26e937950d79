"""Grading: what a fair reader would call right, and the reason given where a reply is not."""

from pathlib import Path

import pytest

from tinyllm_lib.evaluate import grade, is_right
from tinyllm_lib.evaluate.grading import goes_on_with
from tinyllm_lib.evaluate.plain import plain

FIELDS = ("question", "answer", "answers", "others", "none_of")


def hard_replies():
    """For each question its row, and of each reply (text, right, needs the row's other fields)."""
    rows = []
    text = Path(__file__).with_name("hard_replies.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line[:1] in ("+", "-"):
            mark, _, reply = line.partition(" ")
            rows[-1][1].append((reply.replace("\\n", "\n"), mark[0] == "+", "*" in mark))
        elif line and line[0] != "#":
            cells = [cell.strip() for cell in line.split("|")]
            row = dict(zip(FIELDS, cells, strict=False))
            row |= {name: row[name].split() for name in FIELDS[2:] if name in row}
            rows.append((row, []))
    return rows


@pytest.mark.parametrize(("row", "replies"), hard_replies())
def test_hard_replies(row, replies):
    question, answer = row["question"], row["answer"]
    for reply, right, needs_row in replies:
        verdict = grade(reply, row)
        assert verdict.right == right, (reply, verdict.why)
        assert needs_row or is_right(reply, answer, question) == right, (reply, "alone")


def test_a_reason_for_each_verdict():
    capital = {"question": "法国的首都是哪里？", "answer": "巴黎", "others": ["里昂"]}
    sum_of_two = {"question": "1+1等于多少？", "answer": "2"}
    for row, reply, why in [
        (capital, "是巴黎。", "gives the answer"),
        (capital, "", "says nothing"),
        (capital, "马赛。", "does not give the answer"),
        (capital, "巴黎圣母院。", "gives the answer only within other words"),
        (capital, "巴黎，里昂。", "names 里昂, another object of the relation"),
        (capital, "不是巴黎。", "denies the answer"),
        (capital, "巴黎不是法国的首都。", "denies the answer"),
        (capital, "巴黎或马赛。", "names an alternative"),
        (capital, "巴黎？", "asks instead of answering"),
        (capital, "我不知道。", "says that it does not know"),
        (sum_of_two, "很多。", "no number"),
        (sum_of_two, "2，不，3。", "says 3 at its end"),
    ]:
        assert grade(reply, row).why == why, reply


@pytest.mark.parametrize(
    ("constraints", "good", "bad", "why"),
    [
        ({"all_of": ["春天"]}, "春天来了。", "冬天来了。", "lacks 春天"),
        ({"none_of": ["造句"]}, "春天来了。", "用春天造句。", "holds 造句"),
        ({"none_of": ["“"]}, "春天来了。", "“春天”来了。", "holds “"),
        ({"min_chars": 4}, "春天来了。", "春天！！！", "has 2 characters"),
        ({"max_chars": 4}, "春天，来了！", "春天已经来了。", "has 6 characters"),
    ],
)
def test_a_free_row_is_decided_by_its_constraints(constraints, good, bad, why):
    row = {"question": "写一句春天的话。", "answer": "春天真美。", "free": True, **constraints}
    assert grade(good, row).right and grade(bad, row) == (False, why)


def test_constraints_hold_beside_an_answer_too():
    row = {"question": "你好", "answer": "你好", "none_of": ["烦"]}
    assert grade("你好！", row).right and not grade("你好！真烦。", row).right


def test_an_answer_of_punctuation_cannot_be_graded():
    with pytest.raises(ValueError, match="neither a letter nor a digit"):
        is_right("x", "。")


def test_what_a_caller_gives_to_is_right():
    assert is_right("黔", "贵", answers=["黔"]) and not is_right("黔", "贵")
    assert not is_right("巴黎，里昂", "巴黎", others=["里昂"]) and is_right("巴黎，里昂", "巴黎")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("《Ａ b》！", "A b"),
        ("八十二", "82"),
        ("负二", "-2"),
        ("一千二百零三万", "12030000"),
        ("两千米", "2000米"),
        ("1,000千克", "1000千克"),
        ("第十九", "第19"),
        ("二〇二六年", "2026年"),
        ("6月1号", "6月1日"),
        ("三四个", "三四个"),
        ("好…好；是", "好,好,是"),
        ("……", ""),
    ],
)
def test_plain_text(text, same):
    assert plain(text) == same


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("巴黎。它是", "巴黎", True),
        (" 巴黎", "巴黎", True),
        ("巴黎的", "巴黎", True),
        ("是巴黎", "巴黎", False),
        ("巴黎圣母院", "巴黎", False),
        ("巴黎或里昂", "巴黎", False),
        ("几内亚比绍", "几内亚", False),
        ("科威特城", "科威特", False),
        ("黔。", "贵", True),
        ("In。", "I", False),
        ("I。", "I", True),
        ("i。", "I", False),
        ("12。", "12", True),
        ("十二。", "12", True),
        ("123", "12", False),
        ("等于12", "12", False),
        ("六月一日", "6月1日", True),
        ("6月1日", "6月11日", False),
    ],
)
def test_going_on(text, answer, right):
    row = {"answer": answer, "answers": ["黔"], "others": ["几内亚比绍", "科威特城"]}
    assert goes_on_with(text, row).right == right
