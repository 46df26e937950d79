"""The world of facts: as many as promised, true where we look, and said in sentences that hold
together.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from tinyllm_lib.course.world.exam import distance
from tinyllm_lib.course.world.facts import (
    Relation,
    aliases,
    facts,
    read_aliases,
    read_table,
    relations,
)
from tinyllm_lib.course.world.grammar import bare
from tinyllm_lib.course.world.world import Question

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
        "亚洲": 43,  # without five that lie in two continents, as Russia does
        "欧洲": 43,
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
        ("country.spoken", "日本", "日语"),
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


@pytest.mark.parametrize(
    ("relation", "names"),
    [
        ("country.capital", "南非 玻利维亚 斯里兰卡 斯威士兰 以色列 巴勒斯坦"),
        ("country.capital", "新加坡 摩纳哥 梵蒂冈 圣马力诺"),  # the name would be the answer
        ("country.continent", "俄罗斯 土耳其 塞浦路斯 格鲁吉亚 亚美尼亚 阿塞拜疆"),
        ("country.currency", "巴拿马 津巴布韦 巴勒斯坦"),
        ("country.language", "瑞士 比利时 加拿大 南非 新西兰 印度"),
        ("country.spoken", "瑞士 比利时 加拿大 南非 尼日利亚 印度"),
        ("dynasty.founder", "清朝"),
        ("dynasty.capital", "明朝 金朝"),
        ("month.days", "二月"),
        ("person.dynasty", "曹操"),
        ("person.courtesy", "陶渊明 孟浩然"),
    ],
)
def test_a_cell_without_one_right_answer_is_empty(relation, names):
    assert not [name for name in names.split() if (relation, name) in TRUTH]


def test_no_official_language_is_told_of_a_country_that_has_none_by_law():
    names = "日本 英国 美国 澳大利亚 墨西哥 智利 阿根廷 乌拉圭 丹麦 厄立特里亚"
    for country in names.split():
        assert country in subjects("country")
        assert ("country.language", country) not in TRUTH


def test_the_official_language_is_the_spoken_one_where_both_are_told():
    spoken = {
        fact.subject: fact.object for fact in facts() if fact.relation.name == "country.spoken"
    }
    both = [name for name in spoken if ("country.language", name) in TRUTH]
    assert len(both) >= 40
    assert all(TRUTH["country.language", name] == spoken[name] for name in both)


def test_the_two_ways_to_part_the_year_say_which_they_are():
    """August is a summer month, and 立秋, the start of autumn, lies in it."""
    apart = [
        term
        for term in subjects("solar_term")
        if TRUTH["month.season", TRUTH["solar_term.month", term]]
        != TRUTH["solar_term.season", term]
    ]
    assert apart == ["立春", "雨水", "立夏", "小满", "立秋", "处暑", "立冬", "小雪"]
    for name, reckoning in (("month.season", "月份|气象"), ("solar_term.season", "节气")):
        relation = BY_NAME[name]
        said = (*relation.statements, *relation.questions, *relation.unseen_questions)
        assert [text for text in said if not re.search(reckoning, text)] == []


def test_a_kin_word_is_told_of_elder_and_younger():
    """姑姑 is not only the elder sister of one's father, as a definition would have it."""
    word = {fact.subject: fact.object for fact in facts("kin")}
    other = {"哥哥": "弟弟", "姐姐": "妹妹"}
    for subject in word:
        elder = re.search("的(哥哥|姐姐)$|^(哥哥|姐姐)的[儿女]", subject)
        if elder and subject != "爸爸的哥哥":  # 伯伯 is older, 叔叔 is younger
            sibling = elder[1] or elder[2]
            assert word[subject] == word[subject.replace(sibling, other[sibling])]
    assert not [text for text in BY_NAME["kin.called"].statements if re.search("就是|指的是", text)]


def test_an_object_contains_its_subject_only_where_names_are_made_so():
    """Currencies and languages are (越南盾, 蒙古语), and few cities: 新加坡 itself is left out."""
    found = [
        fact.object
        for fact in facts()
        if fact.subject in fact.object and fact.relation.object_kind not in ("currency", "language")
    ]
    cities = "科威特城 安道尔城 卢森堡市 突尼斯市 吉布提市 墨西哥城 危地马拉城 圣萨尔瓦多 巴拿马城"
    assert set(found) == {*cities.split(), "巴西利亚"}


@each_relation
def test_a_reverse_question_has_one_subject(relation):
    if relation.reverse_questions:
        assert not [name for name, count in Counter(objects(relation.name)).items() if count > 1]


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


# ---- other right forms of an answer


@pytest.mark.parametrize(
    ("relation", "answer", "alias"),
    [
        ("province.abbreviation", "贵", "黔"),
        ("country.capital", "华盛顿", "华盛顿特区"),
        ("country.capital", "肯尼亚", "肯尼亚共和国"),  # an answer to a reverse question
        ("landmark.country", "法国", "法兰西共和国"),
        ("country.currency", "人民币", "元"),
        ("country.spoken", "汉语", "中文"),
        ("dynasty.founder", "唐朝", "唐代"),
        ("person.dynasty", "北宋", "宋朝"),
        ("person.dynasty", "三国", "蜀汉"),
        ("festival.date", "农历十二月初八", "腊月初八"),
        ("amount.equals", "1000克", "2斤"),
        ("amount.equals", "1公里", "1千米"),
        ("amount.equals", "100厘米", "10分米"),
        ("kin.called", "外婆", "姥姥"),
        ("word.antonym", "愚蠢", "愚笨"),
        ("animal.class", "哺乳动物", "哺乳类"),
        ("science.discoverer", "居里夫妇", "居里夫人"),
        ("weekday.next", "星期日", "星期天"),
        ("month.season", "秋季", "秋天"),
        ("element.symbol", "汞", "水银"),
    ],
)
def test_known_aliases(relation, answer, alias):
    assert alias in aliases(relation, answer)


def test_what_has_no_other_form_has_no_aliases():
    assert aliases("country.capital", "巴黎") == ()
    assert aliases("country.anthem", "马赛曲") == ()


def test_no_alias_is_another_answer_or_stands_in_the_question():
    for fact in facts():
        name = fact.relation.name
        for answer, given in ((fact.object, fact.subject), (fact.subject, fact.object)):
            forms = aliases(name, answer)
            assert given not in forms and answer not in forms
            assert len(set(forms)) == len(forms)
        assert not set(aliases(name, fact.object)) & set(objects(name)), fact


ALIASES = "relation\tanswer\taliases\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("country.capital\t巴黎市\t花都\n", "line 2: no fact of country.capital names 巴黎市"),
        ("country.capitol\t巴黎\t花都\n", "line 2: no fact of country.capitol names 巴黎"),
        (
            "country.capital\t巴黎\t花都 柏林\n",
            "line 2: 柏林, an alias of 巴黎, is a name of its own",
        ),
        ("*\t巴黎\t柏林\n", "line 2: 柏林, an alias of 巴黎, is a name of its own"),
        ("*\t巴黎\t花都\n*\t巴黎\t光之城\n", "line 3: * 巴黎 is there already"),
        ("country.capital\t巴黎\n", "line 2: 2 cells, but the header names 3"),
    ],
)
def test_a_bad_alias_names_file_and_line(tmp_path, row, message):
    path = tmp_path / "aliases.tsv"
    path.write_text(ALIASES + row, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"aliases.tsv {message}")):
        read_aliases(path, facts())


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
def test_it_can_stand_for_the_subject_that_a_statement_begins_with(relation):
    """它的主要语言是日语, but not 它人说日语."""
    for statement in relation.statements:
        assert not re.match(r"\{s\}(人|省|自治区)", statement)


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


def core(question: str) -> str:
    """The template without what people put around a question; a slot counts as one character."""
    return bare(question.replace("{s}", "X").replace("{o}", "X"))


@each_relation
@pytest.mark.parametrize("reverse", [False, True])
def test_unseen_questions_are_really_rephrased(relation, reverse):
    """Not a seen question with a word put in: five characters apart from each, or a third."""
    fact = next(fact for fact in facts() if fact.relation is relation)
    question = Question(fact, reverse)
    seen = [core(text) for text in (*question.phrasings, *question.asked_statements)]
    for unseen in map(core, question.unseen_phrasings):
        nearest = min(seen, key=lambda text: distance(unseen, text))
        assert distance(unseen, nearest) >= min(5, len(unseen) / 3), (unseen, nearest)


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
