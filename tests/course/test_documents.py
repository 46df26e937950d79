"""The documents of the sample corpus: what each kind promises, and how varied they are together."""

import json
import random
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tinyllm_lib.course.world import CorpusMix, World, facts, reading, write_sample_corpus
from tinyllm_lib.course.world.documents import FactWriter
from tinyllm_lib.course.world.grammar import read_lines

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import corpus_table


@pytest.fixture(scope="module")
def world():
    mix = CorpusMix()
    return World(facts(), named_share=mix.named_share, unnamed_share=mix.unnamed_share, seed=0)


@pytest.fixture
def teller(world):
    return FactWriter(world, random.Random(0), CorpusMix())


def objects(world, relation):
    return {fact.subject: fact.object for fact in world.by_relation[relation]}


def test_a_question_about_a_text_is_answered_from_it():
    rng = random.Random(0)
    for kind in (reading.everyday, reading.paper, reading.story):
        asked = 0
        for _ in range(300):
            text = kind(rng)
            assert not re.search(r"[\[\]{}|<>=_]", text), text
            asked += bool(re.search("\n(问|提问|问题|甲)：", text))
        assert 100 < asked < 290, kind


def test_what_is_said_of_a_slot_is_the_same_in_text_and_answer():
    rng = random.Random(1)
    found = 0
    for _ in range(2000):
        text = reading.everyday(rng)
        if match := re.search(
            r"家养了一只(.+?)，名叫(.+?)，[\s\S]*叫什么？\n?(?:答|回答|乙)：叫(.+)。", text
        ):
            found += 1
            assert match[2] == match[3], text
    assert found


@pytest.mark.parametrize("name", ["readings", "papers", "quests", "reasons", "conditions"])
def test_every_slot_has_words(name):
    draws = reading.Draws(random.Random(0))
    for line in read_lines(name):
        for slot in re.findall(r"\{(\w+)\}", line):
            assert draws[slot], slot
    with pytest.raises(KeyError, match="nothing"):
        draws["nothing"]


def test_two_draws_of_a_list_differ():
    draws = reading.Draws(random.Random(0))
    assert len({draws[f"spot{number}"] for number in ("", "2", "3", "4")}) == 4
    assert draws["goods"] == draws["goods"] != draws["goods_1"]


def test_lines_of_poems_stand_in_their_order():
    rows = reading._rows("poems")
    assert len(rows) > 70
    following = {}
    for row in rows:
        lines = row["lines"].split()
        assert len(lines) % 2 == 0 and all(re.fullmatch("[一-鿿，]+", line) for line in lines)
        following |= dict(pairwise(lines))
    rng = random.Random(0)
    checked = 0
    for _ in range(500):
        if match := re.search("“(.+?)”.*下一句是“(.+?)”。", reading.poem(rng)):
            assert following[match[1]] == match[2]
            checked += 1
    assert checked


def test_authors_of_poems_are_those_of_the_works(world):
    authors = objects(world, "work.author")
    for row in reading._rows("poems"):
        assert authors.get(row["title"], row["author"]) == row["author"]


def test_no_question_about_a_fact_that_is_told_in_statements_alone(world, teller):
    asking = "\n".join(
        write() for write in (teller.notes, teller.scene, teller.yes_no) for _ in range(3000)
    )
    held_out = [fact for fact in (*world.named, *world.unnamed) if world.told_only(fact)]
    assert len(held_out) > 40
    for fact in held_out:
        for question in world.questions(fact):
            asked = [fact.fill(text) for text in question.phrasings]
            assert not [text for text in asked if text in asking], fact


def test_yes_is_true_and_no_is_false(world, teller):
    capitals = objects(world, "country.capital")
    said = {"yes": 0, "no": 0, "instead": 0}
    for _ in range(4000):
        text = teller.yes_no()
        for line in re.findall(
            r"(\S+?)的首都是(\S+?)(?:吗|，对吗|，对不对|，是这样吗)？\S+?：(\S+?)的首都是(\S+?)，(不|没错)",
            text,
        ):
            country, claimed, again, city, word = line
            assert re.split("：", country)[-1] == again and capitals[again] == city, text
            said["no" if word == "不" else "yes"] += 1
            assert (city == claimed) == (word != "不"), text
        for country, wrong, right in re.findall(
            r"(\S+?)的首都不是(\S+?)，(?:是|而是)(\S+?)。", text
        ):
            said["instead"] += 1
            assert capitals[country] == right != wrong, text
    assert min(said.values()) > 5, said


def test_what_follows_from_two_facts_is_true(world, teller):
    province, short = objects(world, "city.province"), objects(world, "province.abbreviation")
    author, dynasty = objects(world, "work.author"), objects(world, "person.dynasty")
    seen = 0
    for _ in range(4000):
        text = teller.hops()
        for city, letter in re.findall("所以([^。，；]+)所在的地方简称(.)。", text):
            if city in province:
                assert short[province[city]] == letter, text
                seen += 1
        for work, age in re.findall("所以《([^》]+)》是(..)的作品。", text):
            assert dynasty[author[work]] == age, text
            seen += 1
    assert seen > 50


def test_numbers_and_rows_are_put_in_order(world, teller):
    position = objects(world, "solar_term.position")
    for _ in range(2000):
        text = teller.order()
        for listed in re.findall("从小到大排，是([0-9、]+)。", text):
            assert sorted(map(int, listed.split("、"))) == list(map(int, listed.split("、")))
        for first, last in re.findall("，([^，。]{2})在前，([^，。]{2})在后。", text):
            if first in position:
                assert int(position[first]) < int(position[last]), text


def test_sorted_things_stand_under_what_they_share(world, teller):
    continent = objects(world, "country.continent")
    seen = 0
    for _ in range(1000):
        for name, listed in re.findall(
            "([亚欧非]洲|[北南]美洲|大洋洲)[：有]([^；，。\n：]+)[；，。\n]", teller.groups()
        ):
            seen += 1
            assert {continent[country] for country in listed.split("、")} == {name}
    assert seen


def test_a_card_says_several_things_in_one_sentence(world, teller):
    texts = [teller.card() for _ in range(3000)]
    capitals = objects(world, "country.capital")
    joined = re.compile(
        "(?:^|[：。？\n])([^：。？，\n]+?)(?:位于|在|是一个)[^，。]+，首都[是叫]([^，。]+)"
    )
    found = [match for text in texts for match in joined.findall(text)]
    assert found and all(capitals[country] == city for country, city in found)
    assert not [text for text in texts if "它第纳尔" in text]


def test_every_kind_is_of_about_the_length_of_a_document():
    """A row of the laptop profile has 128 tokens."""
    rng = random.Random(0)
    for kind in (reading.everyday, reading.paper, reading.story, reading.reasons, reading.poem):
        lengths = [len(kind(rng)) for _ in range(300)]
        assert 25 < sum(lengths) / len(lengths) < 120 and max(lengths) < 300, kind


def test_the_corpus_is_varied(tmp_path):
    """The measures of ``tools/corpus_table.py`` on a fifth of the laptop's corpus."""
    counts = write_sample_corpus(tmp_path, documents=10_000, dialogues=10)
    measures = corpus_table.measure(corpus_table.read_texts(tmp_path / "pretrain.jsonl"))
    assert 62 < counts["characters"] / counts["documents"] < 72
    assert int(measures["distinct sentences"].removesuffix("%")) >= 80
    assert int(measures["covered by 1,000 skeletons"].removesuffix("%")) <= 38
    assert float(measures["xz on 600,000 characters"].removesuffix("×")) <= 5.3


def test_the_table_of_a_small_corpus(tmp_path):
    documents, own = tmp_path / "pretrain.jsonl", tmp_path / "own.txt"
    rows = ["小明有3个苹果。小红有12个苹果。", "因为下雨，所以地湿了。小明有3个苹果。"]
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in rows)
    documents.write_text("\n".join(lines), encoding="utf-8")
    own.write_text("春天来了。\n花开了。", encoding="utf-8")
    texts = corpus_table.read_texts(documents)
    assert texts == rows
    measures = corpus_table.measure(texts)
    assert measures["sentences"] == "4" and measures["distinct sentences"] == "75%"
    assert measures["with 因为 or 所以"] == "25.0%"
    assert corpus_table.skeletons(["小明有3个苹果。", "小红有12个苹果。"]) == ["○有#个○。"] * 2
    table = corpus_table.table({"a": measures, "b": corpus_table.measure([own.read_text("utf-8")])})
    assert table.splitlines()[0] == "| | a | b |" and "| distinct sentences | 75% | 100% |" in table
    documents.write_text('{"other": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: neither text nor conversations"):
        corpus_table.read_texts(documents)
