"""The sample corpus: formats, determinism, and that what is held out is really held out."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from tinyllm_lib.course.made import made_by_us
from tinyllm_lib.course.world import CorpusMix, World, facts, stories, talk, write_sample_corpus
from tinyllm_lib.course.world.exam import EXAM_CLASSES, distance, is_far
from tinyllm_lib.course.world.facts import relations
from tinyllm_lib.course.world.grammar import expand, reword
from tinyllm_lib.course.world.sample import GENERATOR, SAMPLE_FILES
from tinyllm_lib.course.world.sums import Sums, held_out_pairs, number_in_words
from tinyllm_lib.course.world.world import Deck, Question, Rotation
from tinyllm_lib.evaluate import grade, load_exam

DOCUMENTS, DIALOGUES = 6000, 4000
CHAT_KINDS = [f"chat_{kind}" for kind in CorpusMix().shares("chat_")]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Corpus:
    def __init__(self, folder, **sizes):
        self.folder = folder
        self.counts = write_sample_corpus(folder, **sizes)
        self.texts = [row["text"] for row in read(folder / "pretrain.jsonl")]
        self.dialogues = read(folder / "sft.jsonl")
        lines = read(folder / "exam.jsonl")
        self.exam = [row for row in lines if "question" in row]
        self.relations = [row for row in lines if "question" not in row]
        self.spoken = [
            "\n".join(turn["value"] for turn in row["conversations"]) for row in self.dialogues
        ]

    def of_class(self, name):
        return [row for row in self.exam if row["class"] == name]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("raw"), documents=DOCUMENTS, dialogues=DIALOGUES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The sizes of the ci profile."""
    return Corpus(tmp_path_factory.mktemp("raw"), documents=300, dialogues=100)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """The documents of the laptop profile."""
    return Corpus(tmp_path_factory.mktemp("raw"), documents=50_000, dialogues=100)


@pytest.fixture(scope="module")
def world():
    mix = CorpusMix()
    return World(facts(), named_share=mix.named_share, unnamed_share=mix.unnamed_share, seed=0)


def test_files_have_the_formats_of_the_real_corpora(corpus):
    assert len(corpus.texts) == corpus.counts["documents"] == DOCUMENTS
    assert len(corpus.dialogues) == corpus.counts["dialogues"] == DIALOGUES
    assert len(corpus.exam) == corpus.counts["exam"]
    assert all(text.strip() == text and text for text in corpus.texts)
    assert len({row["id"] for row in corpus.dialogues}) == DIALOGUES
    for row in corpus.dialogues:
        assert set(row) == {"id", "conversations"}
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "assistant"] * (len(speakers) // 2) and speakers
        assert all(turn["value"].strip() == turn["value"] != "" for turn in row["conversations"])


ROW_FIELDS = {
    *("class", "question", "answer", "answers", "history", "completion", "relation"),
    *("all_of", "none_of", "min_chars", "max_chars", "pair", "free"),
}


def test_exam_rows(corpus):
    assert corpus.counts["exam"] == len(corpus.exam) < 1200
    for row in corpus.exam:
        assert set(row) <= ROW_FIELDS
        assert row["question"] and row["answer"] and isinstance(row["answer"], str)
        for message, role in zip(row.get("history", []), ["user", "assistant"] * 9, strict=False):
            assert message["role"] == role and message["content"]
        if row["class"].startswith("fact"):
            assert row["completion"] and row["answer"] not in row["completion"]
    assert list(dict.fromkeys(row["class"] for row in corpus.exam)) == list(EXAM_CLASSES)
    sizes = Counter(row["class"] for row in corpus.exam)
    assert all(sizes[name] >= 60 for name in EXAM_CLASSES if name != "greeting")
    assert sizes["greeting"] >= 40


def test_the_exam_can_be_read_and_names_what_each_relation_joins(corpus, world):
    rows = load_exam(corpus.folder / "exam.jsonl")
    assert len(rows) == len(corpus.exam)
    named = {line["relation"]: line["objects"] for line in corpus.relations}
    assert set(named) == {row["relation"] for row in corpus.exam if "relation" in row}
    for name, objects in named.items():
        assert len(objects) == len(set(objects))
        assert {f.object for f in world.by_relation[name]} <= set(objects)


def test_a_question_is_not_answered_before_it_is_asked(corpus):
    for row in corpus.exam:
        if row["class"].startswith("fact") or (row["class"] == "follow_up" and "relation" in row):
            before = row["question"] + "".join(m["content"] for m in row.get("history", []))
            assert row["answer"] not in before, row


def test_held_out_facts_are_halves_of_those_that_documents_ask_for_and_only_state(world):
    for group in (world.named, world.unnamed):
        only = Counter(f.relation.name for f in group if world.told_only(f))
        both = Counter(f.relation.name for f in group)
        assert all(abs(2 * only[name] - both[name]) <= 2 for name in both)
    assert not [fact for fact in world.facts if world.told_only(fact) and not world.held_out(fact)]


def test_facts_that_are_only_told_are_asked_for_nowhere(corpus, world):
    """Neither in documents nor in dialogues: no sentence that asks holds one of their sides and a
    word of the relation's questions.
    """
    sides = {}
    for fact in filter(world.told_only, world.facts):
        for question in world.questions(fact):
            cores = {text for text in (*question.phrasings, *question.asked_statements)}
            sides.setdefault(question.given, []).append((question, cores))
    told = Counter()
    for text in corpus.texts + corpus.spoken:
        for given, questions in sides.items():
            if given not in text:
                continue
            for question, cores in questions:
                told[given] += question.answer in text
                asked = [core for core in cores if question.fact.fill(core) in text]
                assert not asked, text
    assert min(told[given] for given in sides) >= 2


def test_greetings_come_partly_in_words_never_shown(corpus):
    said = {turn["value"] for row in corpus.dialogues for turn in row["conversations"][::2]}
    asked = [row["question"] for row in corpus.of_class("greeting")]
    assert len(list(filter(talk.held_out_wording, asked))) >= 15
    assert not list(filter(talk.held_out_wording, said))
    assert "你好" in said and not talk.held_out_wording("你好")


def test_no_exam_question_has_two_answers(corpus):
    answers = {}
    for row in corpus.exam:
        key = json.dumps([row.get("history"), row["question"]], ensure_ascii=False)
        assert answers.setdefault(key, row["answer"]) == row["answer"], key


def test_same_seed_same_bytes_whatever_the_hash_seed(tmp_path):
    code = (
        "import sys; from tinyllm_lib.course.world import write_sample_corpus as write;"
        "write(sys.argv[1], documents=300, dialogues=200)"
    )
    for name, hash_seed in (("a", "1"), ("b", "2")):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, env=env)
    write_sample_corpus(tmp_path / "c", seed=1, documents=300, dialogues=200)
    for name in ("pretrain.jsonl", "sft.jsonl", "exam.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "exam.jsonl", "made_from.json", "pretrain.jsonl", "sft.jsonl",
    ]  # fmt: skip


def test_no_dialogue_contains_an_unnamed_entity_or_its_object(corpus, world):
    assert len(world.unnamed) > 40
    everything = "\n".join(corpus.spoken)
    for fact in world.unnamed:
        assert fact.subject not in everything and fact.object not in everything, fact


def test_named_entities_are_named_but_their_held_out_fact_is_never_told(corpus, world):
    assert len(world.named) > 50
    everything = "\n".join(corpus.spoken)
    for fact in world.named:
        assert fact.subject in everything, fact
    for spoken in corpus.spoken:
        for fact in world.named:
            assert fact.subject not in spoken or fact.object not in spoken, (fact, spoken)


def test_held_out_questions_are_in_no_dialogue(corpus):
    said = {turn["value"] for row in corpus.dialogues for turn in row["conversations"]}
    for name in ("fact_named", "fact_unnamed", "fact_told_only", "fact_rephrased"):
        assert not said & {row["question"] for row in corpus.of_class(name)}
    seen = {row["question"] for row in corpus.of_class("fact_seen")}
    assert seen <= said


def test_rephrased_questions_are_other_questions(corpus):
    """Five edits, or a third of the length, from every question of dialogues and documents."""
    asked = {turn["value"] for row in corpus.dialogues for turn in row["conversations"][::2]}
    everything = "\n".join(corpus.texts)
    asked |= set(re.findall(r"[^。！？：“”\n]*？", everything))
    for row in corpus.of_class("fact_rephrased"):
        words = row["question"]
        assert words not in everything
        near = [text for text in asked if abs(len(text) - len(words)) < 3]
        assert not [text for text in near if distance(text, words) < 2], words


@pytest.mark.parametrize(
    ("text", "far"),
    [
        ("请问{s}的首都是哪里呢？", False),
        ("我想知道，{s}的首都是哪座城？", False),
        ("{s}这个国家的首都是哪儿？", False),
        ("{s}政府设在哪座城市办公？", True),
    ],
)
def test_what_stands_around_a_question_makes_no_other_question(world, text, far):
    capital = next(f for f in world.facts if f.relation.name == "country.capital")
    assert is_far(text, Question(capital)) == far


def test_pretraining_knows_what_dialogues_leave_out(corpus, world):
    everything = "\n".join(corpus.texts)
    for fact in (*world.named, *world.unnamed):
        told = sum(fact.subject in text and fact.object in text for text in corpus.texts)
        assert told >= 2, fact
    questions = [question for fact in world.unnamed for question in world.questions(fact)]
    asked = [question.fact.fill(text) for question in questions for text in question.phrasings]
    assert sum(question in everything for question in asked) > 25


def test_famous_entities_are_asked(corpus, world):
    assert any("中国的首都是哪里？" in spoken for spoken in corpus.spoken)
    for name in ("中国", "法国", "日本", "美国"):
        assert world.role["country", name] == "asked"


def test_names_within_names_are_never_held_out(world):
    names = {fact.subject for fact in world.facts} | {fact.object for fact in world.facts}
    for fact in (*world.named, *world.unnamed):
        for mine in (fact.subject, fact.object):
            own = {mine} | {
                f.object for f in world.by_subject[fact.relation.subject_kind, fact.subject]
            }
            assert not [name for name in names - own if mine in name], mine


def test_held_out_sums_appear_nowhere(corpus):
    held = held_out_pairs(CorpusMix().held_out_sums, 0)
    assert len(held) == 404 and all(max(pair) >= 10 for pair in held)
    shown, words = set(), {number_in_words(n): n for n in range(200)}
    numeral = "[零一二三四五六七八九十百]+"
    for text in corpus.texts + corpus.spoken:
        for a, b in re.findall(r"(\d+)(?:\+|加上?)(\d+)", text):
            shown.add((int(a), int(b)))
        for c, a in re.findall(r"(\d+)(?:-|减去?)(\d+)", text):
            shown.add((int(a), int(c) - int(a)))
        for a, b in re.findall(f"({numeral})加({numeral})", text):
            shown.add((words[a], words[b]))
    assert len(shown) > 1300 and (1, 1) in shown
    assert not {(min(pair), max(pair)) for pair in shown} & held
    for row in corpus.of_class("sum_unseen"):
        a, b = map(int, re.findall(r"\d+", row["question"]))
        assert (min(a, b), max(a, b)) in held and row["answer"] == str(a + b)


def test_all_arithmetic_is_right(corpus):
    checked = 0
    for text in corpus.texts + corpus.spoken:
        for left, result in re.findall(r"(\d+(?:[+-]\d+)+)=(\d+)", text):  # 3+4+1=8 too
            assert int(result) == sum(int(number) for number in re.findall(r"-?\d+", left)), text
            checked += 1
        for a, sign, b, c in re.findall(r"(\d+)([加减])(\d+)等于(\d+)", text):
            assert int(c) == (int(a) + int(b) if sign == "加" else int(a) - int(b)), text
    assert checked > 1500
    assert any("1+1等于多少？" in spoken for spoken in corpus.spoken)


def test_every_fact_is_told_often_and_evenly(laptop):
    assert laptop.counts["facts"] == len(facts())
    assert laptop.counts["least_told"] >= 9
    assert laptop.counts["median_told"] <= 4 * laptop.counts["least_told"]


def test_facts_are_told_in_both_directions(laptop):
    everything = "\n".join(laptop.texts)
    for fact in facts("country"):
        if fact.relation.name == "country.capital" and fact.subject != fact.object:
            forward = [
                text for text in fact.relation.statements if text.index("{s}") < text.index("{o}")
            ]
            backward = set(fact.relation.statements) - set(forward)
            for direction in (forward, backward):
                told = [fact.fill(template).removesuffix("。") for template in direction]
                assert sum(text in everything for text in told) >= 2, fact


def test_full_width_punctuation_and_no_leftover_slots(corpus):
    for text in corpus.texts + corpus.spoken:
        assert not re.search(r"[,.;:?!()\"'\[\]{}|<>]", text), text
        assert not re.search(r"[。！？，；：][。，；：]", text), text
        assert re.search(r"[。！？”]$|\d$", text) or text in corpus.spoken, text
        for opening, closing in ("“”", "‘’", "（）"):
            assert text.count(opening) == text.count(closing), text


def test_texts_vary(corpus):
    assert len(set(corpus.texts)) > 0.97 * DOCUMENTS
    assert len({spoken for spoken in corpus.spoken}) > 0.6 * DIALOGUES


def test_small_sizes_still_give_every_class(small):
    assert {row["class"] for row in small.exam} == set(EXAM_CLASSES)
    assert len(small.texts) == 300 and len(small.dialogues) == 100
    assert all(len(small.of_class(name)) >= 5 for name in EXAM_CLASSES)


def test_every_reply_that_dialogues_give_to_a_greeting_is_graded_right(corpus):
    rng = random.Random(0)
    for row in corpus.of_class("greeting"):
        tables = (*talk.GREETINGS, *talk.IDENTITY)
        replies = next(replies for says, replies, _ in tables if row["question"] in says)
        for reply in {expand(reply, {}, rng) for reply in replies * 40}:
            assert grade(reply, row).right, (row["question"], reply, grade(reply, row).why)


@pytest.mark.parametrize("table", [stories.SCENES, stories.STORIES, stories.DESCRIPTIONS])
def test_every_template_expands(table):
    rng = random.Random(0)
    slots = {
        name: name
        for name in [
            "a",
            "b",
            "b2",
            "x",
            "y",
            "z",
            "t",
            "e",
            "f",
            "f2",
            "f3",
            "q1",
            "a1",
            "q2",
            "a2",
        ]
    }
    for template in table:
        assert template.count("[") == template.count("]") and template.count("{") == template.count(
            "}"
        )
        for _ in range(20):
            assert not re.search(r"[\[\]{}|]", expand(template, slots, rng))


def test_a_share_of_zero_switches_a_kind_off(tmp_path):
    mix = CorpusMix(doc_sums=0, chat_sums=0, chat_naming=0, invented_share=0)
    Corpus(tmp_path, documents=200, dialogues=200, mix=mix)
    assert "+" not in (tmp_path / "pretrain.jsonl").read_text(encoding="utf-8")
    spoken = (tmp_path / "sft.jsonl").read_text(encoding="utf-8")
    assert "听说过" not in spoken


def test_changing_dialogues_leaves_documents_alone(tmp_path):
    write_sample_corpus(tmp_path / "a", documents=100, dialogues=50)
    write_sample_corpus(tmp_path / "b", documents=100, dialogues=80, mix=CorpusMix(chat_naming=0.3))
    assert (tmp_path / "a/pretrain.jsonl").read_bytes() == (
        tmp_path / "b/pretrain.jsonl"
    ).read_bytes()


def test_whoever_changes_the_text_raises_the_generators_number(corpus):
    """Else workspaces with the older text would take theirs for the newer one. (Raise GENERATOR,
    then write the hash here.)
    """
    digest = hashlib.sha256(
        b"".join((corpus.folder / name).read_bytes() for name in SAMPLE_FILES)
    ).hexdigest()
    assert (GENERATOR, digest[:16]) == (3, "01e05cc2029bcb69")


def test_files_that_are_not_ours_are_never_replaced(tmp_path, capsys):
    write_sample_corpus(tmp_path, documents=100, dialogues=50)
    with (tmp_path / "sft.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    (tmp_path / "pretrain.jsonl").unlink()
    (tmp_path / "pretrain.jsonl").symlink_to(tmp_path / "a disk that is not there")
    edited = (tmp_path / "sft.jsonl").read_bytes()
    capsys.readouterr()
    write_sample_corpus(tmp_path, documents=110, dialogues=60)
    assert (tmp_path / "sft.jsonl").read_bytes() == edited and (
        tmp_path / "pretrain.jsonl"
    ).is_symlink()
    out = capsys.readouterr().out
    assert (
        "left as it is: pretrain.jsonl, sft.jsonl." in out
        and "exam.jsonl asks about the sample corpus's world" in out
    )
    assert made_by_us(tmp_path / "exam.jsonl")["documents"] == 110


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": 0}, "documents is 0"),
        ({"mix": CorpusMix(**dict.fromkeys(CHAT_KINDS, 0))}, "switch at least one on"),
    ],
)
def test_sizes_and_mixes_that_cannot_be(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_sample_corpus(tmp_path, **{"documents": 10, "dialogues": 10, **arguments})


def test_a_negative_share_is_refused():
    with pytest.raises(ValueError, match="doc_cards is -1"):
        CorpusMix(doc_cards=-1)


def test_deck_deals_evenly():
    deck = Deck("abcde", random.Random(0))
    assert set(Counter(deck.deal() for _ in range(50)).values()) == {10}
    assert len(set(deck.deal_different(5))) == 5 and len(deck.deal_different(9)) == 5


def test_rotation_uses_every_phrasing():
    rotation = Rotation(random.Random(0))
    assert {rotation.pick("key", ("a", "b", "c")) for _ in range(3)} == {"a", "b", "c"}


def test_numbers_in_words():
    cases = {
        0: "零",
        7: "七",
        10: "十",
        15: "十五",
        20: "二十",
        42: "四十二",
        100: "一百",
        105: "一百零五",
    }
    cases |= {110: "一百一十", 115: "一百一十五", 198: "一百九十八"}
    for number, words in cases.items():
        assert number_in_words(number) == words
    with pytest.raises(ValueError, match="0 to 199"):
        number_in_words(200)


def test_a_reworded_question_keeps_its_slots_and_asks_the_same():
    rng = random.Random(0)
    assert reword("{s}的首都在哪里？", rng) in ("{s}的首都在哪儿？", "{s}的首都在哪里呢？")
    assert reword("你知道{s}的首都吗？", rng) == "你知不知道{s}的首都？"
    assert reword("{s}多大？", rng) == "{s}多大？"
    for relation in relations():
        for template in (*relation.questions, *relation.reverse_questions):
            assert re.findall(r"{\w}", reword(template, rng)) == re.findall(r"{\w}", template)


def test_statements_are_asked_only_where_one_relation_makes_them(world):
    by_name = {
        fact.relation.name: Question(fact) for fact in world.facts if fact.subject in ("法国", "狗")
    }
    assert "{s}把首都定在哪里？" in by_name["country.capital"].asked_statements
    # 狗是什么？ has many answers
    assert "{s}是什么？" not in by_name["animal.class"].asked_statements


def test_wordings_that_only_the_exam_uses_are_never_made_by_variation(world):
    rng = random.Random(0)
    question = Question(
        next(f for f in world.facts if f.relation.name == "province.capital"), reverse=True
    )
    unseen = [question.fact.fill(text) for text in question.unseen_phrasings]
    varied = {question.in_other_words(text, rng) for text in question.phrasings for _ in range(300)}
    assert len(varied) > 100
    assert any("这座城市" in text for text in varied)
    assert not [text for text in varied if any(exam in text for exam in unseen)]


def test_lists_of_what_follows_keep_the_order(laptop):
    months = [
        "一月",
        "二月",
        "三月",
        "四月",
        "五月",
        "六月",
        "七月",
        "八月",
        "九月",
        "十月",
        "十一月",
        "十二月",
    ]
    runs = [
        text
        for text in laptop.texts
        if re.match("(从|按顺序|顺着数)", text) and re.search("月[、，]..?月[、，]", text)
    ]
    assert runs
    for text in runs:
        told = re.findall("(?:十[一二]?|[一二三四五六七八九])月", re.split("依次是|：", text)[-1])
        assert all(months[(months.index(a) + 1) % 12] == b for a, b in pairwise(told)), text


def test_sums_may_be_small_or_large():
    sums = Sums(held_out_pairs(0.08, 0), random.Random(0))
    pairs = [sums.pair() for _ in range(500)]
    assert 120 < sum((a < 10) != (b < 10) for a, b in pairs) < 260  # the kind most often got wrong
    assert 60 < sum(a < 10 and b < 10 for a, b in pairs) < 160
