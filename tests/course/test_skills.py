"""The skills of the sample's dialogues, and that the exam asks for what no dialogue shows."""

import random
import re
from collections import Counter

import pytest

from tinyllm_lib.course.world import CorpusMix, World, facts, talk
from tinyllm_lib.course.world.dialogues import DialogueWriter
from tinyllm_lib.course.world.grammar import bare
from tinyllm_lib.course.world.skills import Skills
from tinyllm_lib.course.world.sums import Sums, held_out_pairs

MIX = CorpusMix()
CLASSES = (
    *("yes_no", "memory", "two_hops", "comparison", "refusal_due", "refusal_undue", "instruction"),
)
SHOWN = ("yes_no", "memory", "two_hops", "comparison", "refusals", "instructions")
FIELDS = {
    *("question", "answer", "answers", "all_of", "none_of", "min_chars", "max_chars", "pair"),
    *("free", "history", "relation"),
}


def sums(rng):
    return Sums(held_out_pairs(MIX.held_out_sums, 0), rng)


@pytest.fixture(scope="module")
def world():
    return World(facts(), named_share=MIX.named_share, unnamed_share=MIX.unnamed_share, seed=0)


@pytest.fixture(scope="module")
def shown(world):
    """1,500 dialogues of each skill, as corpora have them."""
    rng = random.Random(0)
    writer = DialogueWriter(world, sums(rng), rng, CorpusMix(again_share=0))
    return {name: [writer.write(name) for _ in range(1500)] for name in SHOWN}


@pytest.fixture(scope="module")
def rows(world):
    rng = random.Random(1)
    skills = Skills(world, rng, sums(rng))
    return {name: skills.exam_rows(name, random.Random(2)) for name in CLASSES}


def turns(dialogues):
    return [turn for dialogue in dialogues for turn in dialogue]


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_has_its_rows_in_the_fixed_format(rows, name):
    assert len(rows[name]) >= (120 if name == "yes_no" else 60)
    for row in rows[name]:
        assert set(row) <= FIELDS and row["question"] and row["answer"]
        assert all(
            isinstance(row.get(list_), list) for list_ in ("answers", "none_of") if list_ in row
        )


@pytest.mark.parametrize("name", CLASSES)
def test_no_dialogue_asks_what_the_exam_asks(shown, rows, name):
    if name == "memory":  # its questions are everybody's; what was told before them is new
        return
    said = {question for dialogues in shown.values() for question, _ in turns(dialogues)}
    assert not said & {row["question"] for row in rows[name]}


def test_dialogues_and_exam_keep_to_the_hold_out(world, shown, rows):
    for dialogue in (d for dialogues in shown.values() for d in dialogues):
        assert world.allows("\n".join(text for turn in dialogue for text in turn))
    for row in (row for group in rows.values() for row in group):
        assert world.allows(row["question"] + "\n" + row["answer"]), row


def test_the_same_generator_gives_the_same_rows(world, rows):
    again = Skills(world, random.Random(9), sums(random.Random(9)))
    assert again.exam_rows("instruction", random.Random(2)) == rows["instruction"]


# ---- yes or no


def test_claims_are_true_half_of_the_time_in_every_wording(shown):
    verdicts = Counter(reply.split("，")[-1][:2] for _, reply in turns(shown["yes_no"]))
    assert set(verdicts) == {"没错", "是的", "不是", "不在", "不属"}
    denied = sum(count for verdict, count in verdicts.items() if verdict[0] == "不")
    assert abs(denied / sum(verdicts.values()) - 0.5) < 0.03
    for ending in ("吗？", "吧？", "，对吗？", "，是不是？", "，没错吧？"):
        of_this = [reply for asked, reply in turns(shown["yes_no"]) if asked.endswith(ending)]
        share = sum("，不" in reply for reply in of_this) / len(of_this)
        assert 0.35 < share < 0.65, ending


def test_a_verdict_follows_the_fact_and_denies_what_was_claimed(world, shown):
    capitals = {f.subject: f.object for f in world.by_relation["country.capital"]}
    seen = 0
    for asked, reply in turns(shown["yes_no"]):
        if match := re.fullmatch("(.*)的首都是(.*)，不是(.*)。", reply):
            country, capital, claimed = match.groups()
            assert capitals[country] == capital and country in asked and claimed in asked
            assert capital not in asked.replace(country, "")
            seen += 1
    assert seen > 10


def test_each_pair_claims_of_one_subject_the_truth_and_something_else(rows):
    pairs = {}
    for row in rows["yes_no"]:
        pairs.setdefault(row["pair"], []).append(row["answer"])
    assert len(pairs) >= 60 and all(sorted(pair) == ["不是", "是的"] for pair in pairs.values())


# ---- memory


def test_what_was_told_is_said_back(shown):
    told = asked = 0
    for dialogue in shown["memory"]:
        text = "\n".join(says for says, _ in dialogue[:-1])
        reply = dialogue[-1][1]
        told += reply.startswith("你还没有")
        if match := re.match("你(?:叫|的名字是)(.*)。", reply):
            assert match[1] in text
            asked += 1
    assert 150 < told < 400 and asked > 40


def test_the_exam_tells_values_that_no_dialogue_tells(shown, rows):
    said = "\n".join(text for turn in turns(shown["memory"]) for text in turn)
    untold = [row for row in rows["memory"] if row["answer"] == "还没有告诉我"]
    assert 10 <= len(untold) <= 15
    for row in rows["memory"]:
        assert [m["role"] for m in row["history"]][::2] == ["user"] * (len(row["history"]) // 2)
        if row in untold:
            continue
        assert any(row["answer"] in message["content"] for message in row["history"])
        if row["question"].endswith(("叫什么？", "名字？", "是谁？")) and len(row["answer"]) > 2:
            assert row["answer"] not in said


# ---- two hops, order


def test_a_reply_of_two_hops_says_what_joins_them(world, shown):
    for asked, reply in turns(shown["two_hops"]):
        assert "，" in reply, (asked, reply)
    assert any("，安徽的简称是皖。" in reply for _, reply in turns(shown["two_hops"]))


def test_both_parts_of_a_chain_are_facts_that_dialogues_may_ask(world, rows):
    askable = {(q.fact.subject, q.fact.object) for q in world.askable()}
    capitals = [row for row in rows["two_hops"] if "省的省会" in row["question"]]
    for row in capitals:
        assert any(answer == row["answer"] for _, answer in askable)


def test_numbers_are_compared_by_their_digits(shown):
    checked = 0
    for asked, reply in turns(shown["comparison"]):
        numbers = [int(n) for n in re.findall(r"\d+", asked)]
        if match := re.search("更([大小])的是(\\d+)。", reply):
            assert int(match[2]) == (max if match[1] == "大" else min)(numbers)
            checked += 1
        if match := re.search(r"(\d+)比(\d+)([大小])", reply):
            assert (int(match[1]) > int(match[2])) == (match[3] == "大")
    assert checked > 200


def test_chance_alone_wins_few_pairs(rows):
    paired = [row for row in rows["comparison"] if "pair" in row]
    for first, second in zip(paired[::2], paired[1::2], strict=True):
        assert first["pair"] == second["pair"] and first["answer"] != second["answer"]


# ---- refusals


def test_invented_names_are_many_and_hold_no_real_one(world, shown):
    names = [
        match[1].strip("《》")
        for _, reply in turns(shown["refusals"])
        if (match := re.search("没有听说过(?:叫)?(.*?)(?:的[^，。]*)?[，。]", reply))
    ]
    assert len(names) > 400 and len(set(names)) > 0.9 * len(names)
    real = {name for f in world.facts for name in (f.subject, f.object) if len(name) > 1}
    for name in names:
        assert name not in real and not [part for part in real if part in name], name


def test_real_names_are_asked_beside_invented_ones(shown):
    replies = [reply for _, reply in turns(shown["refusals"])]
    refused = sum("没有听说过" in reply for reply in replies)
    answered = sum("抱歉" not in reply for reply in replies)
    assert 0.8 < refused / answered < 1.25


def test_a_false_refusal_is_wrong(rows):
    for row in rows["refusal_undue"]:
        assert {"没有听说过", "不知道", "抱歉"} <= set(row["none_of"])
    kinds = Counter(row["relation"].split(".")[0] for row in rows["refusal_undue"])
    assert len(kinds) >= 8


def test_invented_and_rare_real_names_are_asked_about_in_the_same_ways(rows):
    """Else a model could tell them apart by the words around them."""
    dressed = [
        sum(row["question"] != bare(row["question"]) + "？" for row in rows[name]) / len(rows[name])
        for name in ("refusal_due", "refusal_undue")
    ]
    assert abs(dressed[0] - dressed[1]) < 0.25, dressed


def test_without_invented_names_nothing_is_unheard_of(world):
    rng = random.Random(0)
    skills = Skills(world, rng, sums(rng), invented_share=0)
    said = "".join(reply for _ in range(300) for _, reply in skills.turns("refusals"))
    assert "听说过" not in said and "抱歉" in said


# ---- instructions


def test_instructions_are_followed(shown):
    checked = Counter()
    for asked, reply in turns(shown["instructions"]):
        said = reply.rstrip("。？")
        if match := re.search("“(.*)”(?:倒过来|反过来)", asked):
            assert said == match[1][::-1]
            checked["reverse"] += 1
        elif "造" in asked and (match := re.search("“(.*)”", asked)):
            assert all(part in reply for part in match[1].split("……"))
            checked["sentence"] += 1
        elif match := re.search(r"“(.*)”.*几个字", asked):
            assert reply.endswith(f"一共{len(match[1])}个字。")
            checked["length"] += 1
        elif match := re.search("从(小|大)到", asked):
            numbers = re.findall(r"\d", asked)
            assert said == "、".join(sorted(numbers, reverse=match[1] == "大"))
            checked["sort"] += 1
    assert len(checked) == 4 and min(checked.values()) > 30, checked


def test_words_of_the_exam_are_translated_the_other_way_only(shown, rows):
    said = "\n".join(reply for _, reply in turns(shown["instructions"]))
    asked = [row for row in rows["instruction"] if re.fullmatch("[A-Za-z]+", row["answer"])]
    assert len(asked) >= 5
    for row in asked:
        assert f"的英语是{row['answer']}。" not in said


# ---- talk


def test_greetings_keep_their_held_out_wordings_and_their_key():
    rng = random.Random(0)
    for table, draw in ((talk.GREETINGS, talk.greeting), (talk.IDENTITY, talk.identity)):
        wordings = [text for says, _, _ in table for text in says]
        kept = [text for text in wordings if talk.held_out_wording(text)]
        assert 0.15 < len(kept) / len(wordings) < 0.45 and len(set(wordings)) == len(wordings)
        said = {draw(rng)[0] for _ in range(5000)}
        assert said == set(wordings) - set(kept)


def test_small_talk_has_up_to_three_turns():
    rng = random.Random(0)
    talks = [talk.everyday(rng) for _ in range(2000)]
    assert not [says for turns in talks for says, _ in turns if talk.held_out_wording(says)]
    lengths = Counter(map(len, talks))
    assert set(lengths) == {1, 2} and lengths[2] > 50


def test_a_dialogue_may_ask_to_hear_it_again(world):
    rng = random.Random(0)
    writer = DialogueWriter(world, sums(rng), rng, CorpusMix(again_share=1))
    dialogues = [writer.write("yes_no") for _ in range(50)]
    again = [d for d in dialogues if len(d) > 1 and d[-1][1] == d[-2][1]]
    assert len(again) > 30


def test_a_blank_has_one_right_end(world):
    """{s}在{o}。 is said of cities, sights and countries: 杭州在____。 has many right ends."""
    rng = random.Random(0)
    writer = DialogueWriter(world, sums(rng), rng, CorpusMix(blank_share=1))
    blanks = [asked for _ in range(1500) for asked, _ in writer.write("facts") if "____" in asked]
    assert len(blanks) > 800
    subjects = {fact.subject for fact in world.facts}
    for text in blanks:
        match = re.search("[：“](.*)(?:在|是|属于|位于)____", text)
        assert not match or match[1] not in subjects, text
