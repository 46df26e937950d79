"""The world of facts: as many as promised, true where we look, and said in sentences that hold
together.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from tinyllm_lib.course.world import facts
from tinyllm_lib.course.world.facts import Relation, read_table, relations

BY_NAME = {relation.name: relation for relation in relations()}
TRUTH = {(fact.relation.name, fact.subject): fact.object for fact in facts()}


def subjects(kind: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(fact.subject for fact in facts(kind)))


def objects(name: str) -> list[str]:
    return [fact.object for fact in facts() if fact.relation.name == name]


def templates(relation: Relation) -> list[str]:
    return [
        *relation.statements,
        *relation.questions,
        *relation.unseen_questions,
        *relation.answers,
        *relation.reverse_questions,
        *relation.reverse_unseen_questions,
        *relation.reverse_answers,
        relation.completion,
        relation.follow_up,
    ]


each_relation = pytest.mark.parametrize("relation", relations(), ids=lambda relation: relation.name)


# ---- how much there is


def test_every_country_province_and_element_is_there():
    # 193 members of the United Nations, the Vatican and Palestine
    assert len(subjects("country")) == 195
    assert len(subjects("province")) == 34
    assert len(subjects("element")) == 118


def test_the_small_cycles_are_whole():
    assert len(subjects("solar_term")) == 24
    assert len(subjects("zodiac")) == 12
    assert len(subjects("month")) == 12
    assert len(subjects("weekday")) == 7
    assert len(subjects("season")) == 4


@pytest.mark.parametrize("kind", ["solar_term", "zodiac", "month", "weekday", "season"])
def test_following_next_visits_every_member_once(kind):
    names = subjects(kind)
    walk = [names[0]]
    for _ in names:
        walk.append(TRUTH[f"{kind}.next", walk[-1]])
    assert walk == [*names, names[0]]


def test_enough_of_everything_to_make_a_world():
    assert len(facts()) >= 2500
    assert len(relations()) >= 45
    assert len(subjects("word")) >= 100
    assert len(objects("thing.measure")) >= 100
    assert len(subjects("animal")) >= 60


def test_continents_have_their_number_of_countries():
    assert Counter(objects("country.continent")) == {
        "亚洲": 48,
        "欧洲": 44,
        "非洲": 54,
        "北美洲": 23,
        "南美洲": 12,
        "大洋洲": 14,
    }


def test_provincial_divisions_by_type():
    assert Counter(objects("province.type")) == {
        "省": 23,
        "自治区": 5,
        "直辖市": 4,
        "特别行政区": 2,
    }


def test_elements_are_numbered_without_a_gap():
    assert [int(number) for number in objects("element.number")] == list(range(1, 119))
    assert len(set(objects("element.symbol"))) == 118


# ---- whether it is true


@pytest.mark.parametrize(
    ("relation", "subject", "expected"),
    [
        ("country.capital", "法国", "巴黎"),
        ("country.capital", "澳大利亚", "堪培拉"),
        ("country.capital", "巴西", "巴西利亚"),
        ("country.capital", "哈萨克斯坦", "阿斯塔纳"),
        ("country.continent", "埃及", "非洲"),
        ("country.currency", "日本", "日元"),
        ("country.language", "巴西", "葡萄牙语"),
        ("province.capital", "山东", "济南"),
        ("province.seat", "新疆", "乌鲁木齐"),
        ("province.abbreviation", "上海", "沪"),
        ("province.region", "陕西", "西北"),
        ("element.symbol", "铁", "Fe"),
        ("element.number", "金", "79"),
        ("element.state", "汞", "液体"),
        ("solar_term.next", "大寒", "立春"),
        ("zodiac.position", "龙", "5"),
        ("animal.class", "海豚", "哺乳动物"),
        ("word.antonym", "大", "小"),
        ("thing.measure", "马", "匹"),
        ("amount.equals", "1公里", "1000米"),
        ("festival.date", "中秋节", "农历八月十五"),
        ("work.author", "红楼梦", "曹雪芹"),
        ("dynasty.founder", "唐朝", "李渊"),
        ("city.province", "青岛", "山东"),
        ("planet.type", "土星", "气态巨行星"),
    ],
)
def test_known_truths(relation, subject, expected):
    assert TRUTH[relation, subject] == expected


def test_a_cell_without_one_right_answer_makes_no_fact():
    assert "南非" in subjects("country")
    assert ("country.capital", "南非") not in TRUTH


def test_one_answer_to_each_question():
    assert len(TRUTH) == len(facts())


def test_tables_agree_where_they_meet():
    """What one table calls a city, a province or a country is called the same in the others."""
    for fact in facts("province"):
        if fact.relation.object_kind == "city":
            assert TRUTH["city.province", fact.object] == fact.subject
    assert set(objects("city.province")) | set(objects("landmark.province")) <= set(
        subjects("province")
    )
    assert set(objects("landmark.country")) <= set(subjects("country"))
    assert set(objects("river.continent")) <= set(objects("country.continent"))


def test_a_word_has_one_antonym_whichever_side_it_stands_on():
    words = [word for fact in facts("word") for word in (fact.subject, fact.object)]
    assert len(words) == len(set(words))


# ---- whether the sentences hold together


@each_relation
def test_statements_run_in_both_directions(relation):
    assert len(relation.statements) >= 8
    order = {template.index("{s}") < template.index("{o}") for template in relation.statements}
    assert order == {True, False}


@each_relation
def test_questions_name_their_subject_and_keep_the_answer_back(relation):
    assert len(relation.questions) >= 6 and len(relation.unseen_questions) >= 3
    for question in (*relation.questions, *relation.unseen_questions):
        assert "{s}" in question and "{o}" not in question
    for question in (*relation.reverse_questions, *relation.reverse_unseen_questions):
        assert "{o}" in question and "{s}" not in question


@each_relation
def test_answers_end_with_what_was_asked(relation):
    assert 2 <= len(relation.answers) <= 4
    assert all(answer.endswith("{o}。") for answer in relation.answers)
    assert all(answer.endswith("{s}。") for answer in relation.reverse_answers)


@each_relation
def test_the_completion_cue_begins_a_statement(relation):
    assert any(
        statement.startswith(relation.completion + "{o}") for statement in relation.statements
    )


@each_relation
def test_only_full_width_punctuation(relation):
    for template in templates(relation):
        text = template.replace("{s}", "").replace("{o}", "")
        assert re.fullmatch(r"[\u4e00-\u9fff，。？！：；、《》“”—…]+", text), template


def test_no_unseen_question_is_a_seen_one():
    """Not only within a relation: once filled, no exam wording occurs anywhere among the seen
    questions.
    """
    seen, unseen = set(), set()
    for fact in facts():
        r = fact.relation
        seen |= {fact.fill(t) for t in (*r.questions, *r.reverse_questions)}
        unseen |= {fact.fill(t) for t in (*r.unseen_questions, *r.reverse_unseen_questions)}
    assert not seen & unseen


def test_the_same_question_never_has_two_answers():
    answer_to: dict[str, str] = {}
    for fact in facts():
        r = fact.relation
        asked = [(t, fact.object) for t in (*r.questions, *r.unseen_questions)]
        asked += [(t, fact.subject) for t in (*r.reverse_questions, *r.reverse_unseen_questions)]
        for template, answer in asked:
            question = fact.fill(template)
            assert answer_to.setdefault(question, answer) == answer, question


def test_facts_come_in_the_same_order_each_time():
    kinds = dict.fromkeys(relation.subject_kind for relation in relations())
    assert facts() == tuple(fact for kind in kinds for fact in facts(kind))


# ---- what a mistake in a table says


EIGHT_STATEMENTS = ", ".join(f'"{{s}}{i}{{o}}。"' for i in range(8))
PHRASINGS = """
kind = "country"
[capital]
object_kind = "city"
completion = "{s}的首都是"
statements = [EIGHT]
questions = ["{s}一？", "{s}二？", "{s}三？", "{s}四？", "{s}五？", "{s}六？"]
unseen_questions = ["{s}七？", "{s}八？", "{s}九？"]
answers = ["{s}是{o}。", "是{o}。"]
""".replace("EIGHT", EIGHT_STATEMENTS)
REVERSE = """
reverse_questions = ["{o}一？", "{o}二？", "{o}三？", "{o}四？", "{o}五？", "{o}六？"]
reverse_unseen_questions = ["{o}七？", "{o}八？", "{o}九？"]
reverse_answers = ["{o}是{s}。", "是{s}。"]
"""
ROWS = "name\tcapital\n法国\t巴黎\n德国\t柏林\n"


def read(tmp_path: Path, rows: str = ROWS, phrasings: str = PHRASINGS):
    (tmp_path / "world.tsv").write_text(rows, encoding="utf-8")
    (tmp_path / "world.toml").write_text(phrasings, encoding="utf-8")
    return read_table(tmp_path / "world.tsv", tmp_path / "world.toml")


def test_a_table_is_read(tmp_path):
    table = read(tmp_path, ROWS + "南非\t\n")
    assert table.rows == {"法国": {"capital": "巴黎"}, "德国": {"capital": "柏林"}, "南非": {}}
    assert table.relations["capital"].name == "country.capital"
    assert table.relations["capital"].follow_up == "那{s}呢？"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS + "日本\t东京\t亚洲\n", "world.tsv line 4: 3 cells, but the header names 2"),
        (ROWS + "法国\t里昂\n", "world.tsv line 4: 法国 is already in line 2"),
        (ROWS + "日本\t东京 \n", "world.tsv line 4: white space around '东京 '"),
        (ROWS + "\t东京\n", "world.tsv line 4: the first cell, the subject, is empty"),
        (ROWS.replace("capital", "currency"), "world.toml: its sections are"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, rows)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "country"', "", "world.toml: no kind"),
        ('"{s}六？"', '"六？"', "world.toml [capital] questions: '六？' has no {s}"),
        (', "{s}六？"', "", "world.toml [capital]: 5 questions, but at least 6"),
        ('"{s}九？"', '"{s}一？"', "is in questions and in unseen_questions"),
        ('"是{o}。"', '"{o}是。"', "must end with '{o}。'"),
        ('"{s}六？"', '"{s}{x}？"', "other than {s} and {o}"),
        ("completion", "completon", "world.toml [capital]: unknown completon"),
    ],
)
def test_a_bad_template_names_file_and_section(tmp_path, old, new, message):
    assert old in PHRASINGS
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, phrasings=PHRASINGS.replace(old, new))


def test_a_reverse_question_needs_one_subject_for_each_object(tmp_path):
    read(tmp_path, phrasings=PHRASINGS + REVERSE)
    with pytest.raises(
        ValueError, match="world.tsv line 4: capital 巴黎 of 高卢 is also that of 法国"
    ):
        read(tmp_path, ROWS + "高卢\t巴黎\n", PHRASINGS + REVERSE)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="no facts about 'contry'.*country"):
        facts("contry")
