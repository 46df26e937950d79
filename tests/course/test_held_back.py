"""Facts that no dialogue tells: which they are, and what became of them."""

import json

import pytest

from tinyllm_lib.course import get_profile, get_workspace, held_back, prepare
from tinyllm_lib.data import read_dialogues, read_texts
from tinyllm_lib.evaluate import Answer, load_exam

CAPITAL = {
    "class": "fact_named",
    "question": "卡塔尔的首都叫什么？",
    "answer": "多哈",
    "completion": "卡塔尔的首都是",
    "relation": "country.capital",
}


def answers(*right, name="fact_named"):
    return [Answer(name, str(i), "x", "y", r) for i, r in enumerate(right)]


@pytest.fixture(scope="module")
def files():
    return prepare.corpus_files(get_workspace(), get_profile())


def test_the_rows_are_those_with_a_sentence_to_complete():
    without = {name: value for name, value in CAPITAL.items() if name != "completion"}
    seen = {**CAPITAL, "class": "fact_seen"}
    assert held_back.rows_of([CAPITAL, without, seen]) == [CAPITAL]


def test_a_fact_is_found_from_either_side():
    asked_backwards = {**CAPITAL, "question": "多哈是哪国的首都？", "answer": "卡塔尔"}
    for row in (CAPITAL, asked_backwards):
        fact = held_back.fact_of(row)
        assert (fact.subject, fact.object) == ("卡塔尔", "多哈")
    assert held_back.pairs_of([CAPITAL, asked_backwards]) == {("卡塔尔", "多哈")}
    assert held_back.fact_of({**CAPITAL, "answer": "没有这样的城市"}) is None


def test_a_text_tells_a_fact_where_both_names_stand():
    pairs = {("卡塔尔", "多哈")}
    assert held_back.tells_one_of("多哈到了，这里是卡塔尔的首都。", pairs)
    assert not held_back.tells_one_of("卡塔尔在亚洲。", pairs)
    assert not held_back.tells_one_of("多哈是一座城市。", pairs)


def test_no_dialogue_tells_one_and_documents_do(files):
    pairs = held_back.pairs_of(held_back.rows_of(load_exam(files["exam"])))
    assert len(pairs) > 50
    for messages in read_dialogues(files["sft"]):
        assert not held_back.tells_one_of("\n".join(m["content"] for m in messages), pairs)
    assert any(held_back.tells_one_of(text, pairs) for text in read_texts(files["pretrain"]))


def test_what_is_not_said_is_forgotten_or_not_reached_and_only_what_was_known_counts():
    base = answers(True, True, True, True, False)
    chat = answers(True, True, False, False, False)
    told = answers(True, False, True, False, True)
    assert held_back.fates(base, chat, told) == {
        "fact_named": {"said": 2, "not reached": 1, "forgotten": 1}
    }
    other = answers(False, name="fact_unnamed")
    assert held_back.fates(other, other, other) == {
        "fact_unnamed": {"said": 0, "not reached": 0, "forgotten": 0}
    }


def test_another_name_of_the_relation_is_told_from_none():
    assert held_back.names_another(CAPITAL, "卡塔尔的首都是巴黎。")
    assert not held_back.names_another(CAPITAL, "卡塔尔的首都是多哈。")
    assert not held_back.names_another(CAPITAL, "是卡塔尔。")
    symbol = {**CAPITAL, "relation": "element.symbol", "question": "哪个符号？", "answer": "Fl"}
    assert held_back.names_another(symbol, "写作I。")
    assert not held_back.names_another(symbol, "我是AI助手。")


def test_a_claim_is_answered_with_the_fact_before_the_verdict():
    row = {"relation": "country.capital", "question": "悉尼是澳大利亚的首都吗？"}
    assert held_back.states_fact(row, "澳大利亚的首都是堪培拉，不是悉尼。")
    assert not held_back.states_fact(row, "澳大利亚的首都是悉尼，不是堪培拉。")
    assert held_back.states_fact(row, "是堪培拉。")


# ---- the saved search

RUN = {
    "bits_per_byte": 0.4,
    "minutes": 5.5,
    "classes": {"fact_seen": [9, 10], "sum_unseen": [8, 9]},
}
SEARCH = {
    "base": {"completes": "11110"},
    "recipes": {"default": {}, "no replay": {}},
    "runs": [
        {**RUN, "recipe": "no replay", "seed": 0, "says": "10000", "completes": "11000"},
        {**RUN, "recipe": "default", "seed": 0, "says": "11100", "completes": "00111"},
        {**RUN, "recipe": "default", "seed": 1, "says": "10000", "completes": "00000"},
    ],
}


def test_a_saved_run_has_the_fates_of_its_marks():
    first = held_back.fates_of_run(SEARCH, SEARCH["runs"][0])
    assert first == {"said": 1, "not reached": 1, "forgotten": 2}
    assert held_back.medians(SEARCH) == {
        "default, 2 runs": {"said": 1, "not reached": 0, "forgotten": 3},
        "no replay, 1 run": first,
    }


def test_the_table_sets_each_run_against_the_control_of_the_same_seed():
    lines = held_back.search_table(SEARCH).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["default", "default", "no"]
    assert lines[2].split() == ["default", "0", "3", "1", "0", "-", "9", "8", "0.400", "5.5"]
    assert lines[4].split()[2:7] == ["0", "1", "1", "2", "0.500"]
    assert held_back.paired_p("11100", "10000") == 0.5


def test_without_the_file_there_are_no_runs_and_a_line_says_so(tmp_path, capsys):
    missing = held_back.read_search(tmp_path / "forgetting.json")
    assert missing["runs"] == [] and "tools/forgetting.py makes it" in capsys.readouterr().out
    assert len(held_back.search_table(missing).splitlines()) == 2
    (tmp_path / "forgetting.json").write_text(json.dumps(SEARCH), encoding="utf-8")
    assert held_back.read_search(tmp_path / "forgetting.json") == SEARCH


def test_the_stored_search_is_whole():
    search = held_back.read_search()
    size = len(search["base"].get("completes", ""))
    for run in search["runs"]:
        assert len(run["says"]) == len(run["completes"]) == size
        assert run["recipe"] in search["recipes"]
