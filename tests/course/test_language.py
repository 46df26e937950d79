"""The sample corpus reads as an educated native speaker would write it.

No text of a whole corpus holds a wording that was once found to make a reader wince.
"""

import json
import random
import re

import pytest

from tinyllm_lib.course.world import facts, write_sample_corpus
from tinyllm_lib.course.world.facts import relations
from tinyllm_lib.course.world.grammar import dress, reword
from tinyllm_lib.course.world.sums import Sums
from tinyllm_lib.course.world.world import Question

DRESSED_TWICE = (
    r"(我想知道|请告诉我|考考你|帮我想想|我忘了|请教一下)，(你知(?!道我)|请|想问|说出|写出)"
)
# What no document and no dialogue may hold, and why.
MENDED = {
    DRESSED_TWICE: "an opening before a question that has one",
    r"吗？(你知道吗|能告诉我吗|请回答|谢谢)": "an ending after a question that has one",
    r"(问|题|问题)：(题目|考考你|我有个问题)：": "a heading under a heading",
    r"(题|：)计算：": "a heading under a heading",
    r"是一[种颗]什么？|这种元素是什么？": "哪类元素, 哪类行星, 哪一类",
    r"就是(什么|谁|哪里|几(?!内亚))": "a definition as a question",
    r"(简称|称呼|单质)为什么": "为什么 is why",
    r"颜色是什么颜色": "颜色是什么",
    r"学生答(多少|什么)？": "a scene as a question",
    r"这种东西，我们叫它|正好相反，就说|找得到的反义词": "nobody says so",
    r"相反词": "反义词",
    r"如果数目是一|作业里写着三": "no natural example",
    r"用.{1,3}色的(笔|颜料)": "血液 and 石油 are not drawn",
    r"不冷也不热的时候": "在室温下",
    r"的宝宝是": "后代: 蚊子 have no 宝宝",
    r"条腿走路": "蜻蜓 and 燕子 fly",
    r"要该吃什么": "要吃什么",
    r"算哪个(大洲|季节|地区)|日子是几月几日": "属于哪个; 农历 dates are no 几月几日",
    r"(爱迪生|牛顿|法拉第|诺贝尔)(发明|发现)了什么": "more than one thing",
    r"新鲜[^。]*腐烂|乌鸦的叫声[是为]": "no single answer",
    r"(?<!\d)0[个张支本朵颗]": "nobody has 0 apples",
    r"(爷爷|奶奶|外公|外婆|爸爸|妈妈|叔叔|姑姑|舅舅|哥哥|姐姐)马上举起手": "not at home",
    r"唱了一首歌[^\n]*(扔掉|蓝色)": "a song is not thrown away",
    r"有人敲门，身上没有钱": "not seen through a door",
    r"飞机出门[^\n]*下车": "one gets off a plane otherwise",
    r"果园里挂满了(西瓜|草莓|樱桃|葡萄)": "not in orchards, or not in autumn",
    r"(?<!苹)(果|梨|子|萄|桃|莓)又大又红": "of apples only",
    r"小鸭(要过河|要把一袋粮食|过不了河)": "ducks swim",
    r"觉得格外珍惜": "觉得 takes no verb like 珍惜",
    # of other tables
    r"去[^，。：]{1,14}的(首都|省会|首府)，就是去": "the obvious",
    r"要去[^，。]+旅行，就要去|要去[^，。]+，先要到": "the obvious",
    r"也就住在|有人会说.{1,8}语|作为一个(省|自治区|直辖市)": "the obvious",
    r"我们会想到它的作者": "filler",
    r"离太阳第1近": "最近",
    r"那\d+呢？": "那第109号呢？",
    r"请问\d+个等于多少": "12个是一打吗？",
    r"每年的.{1,3}月，我们会过|到了十一月，北京正是": "a solar term is not kept; it is winter then",
    # of dialogues
    r"是一样的东西吗": "cities are no 东西",
    r"你会累吗？\n我不需要睡觉": "no answer to that",
    r"我喜欢冬天，因为可以看雪": "an assistant that cannot see",
}


def texts(folder, **sizes):
    write_sample_corpus(folder, **sizes)
    for line in (folder / "pretrain.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]
    for line in (folder / "sft.jsonl").read_text(encoding="utf-8").splitlines():
        yield "\n".join(turn["value"] for turn in json.loads(line)["conversations"])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The sizes of the ci profile, and a large one."""
    sizes = ({"documents": 300, "dialogues": 100}, {"documents": 10_000, "dialogues": 4_000})
    return [text for size in sizes for text in texts(tmp_path_factory.mktemp("raw"), **size)]


@pytest.mark.parametrize("pattern", MENDED)
def test_what_made_a_reader_wince_is_nowhere(corpora, pattern):
    assert not [text for text in corpora if re.search(pattern, text)][:3], MENDED[pattern]


@pytest.mark.parametrize(
    "question",
    [
        "你知道法国的首都吗？",
        "请问法国的首都在哪里？",
        "写出氢的元素符号。",
        "想问一下，法国在哪里？",
    ],
)
def test_a_question_is_dressed_once(question):
    rng = random.Random(0)
    assert {dress(question, rng) for _ in range(50)} == {question}
    assert "我想知道，法国的首都在哪里？" in {dress("法国的首都在哪里？", rng) for _ in range(200)}


def test_other_words_for_a_question_are_words_that_people_say():
    rng = random.Random(0)
    asked = [
        reword(template, rng)
        for relation in relations()
        for template in (*relation.questions, *relation.reverse_questions)
        for _ in range(8)
    ]
    assert not [text for text in asked if re.search("相反词|要该|归在哪个|日子是几月几日", text)]


def test_statements_become_questions_with_the_word_that_asks_for_their_end():
    by_relation = {fact.relation.name: Question(fact) for fact in facts()}
    asked = {name: question.asked_statements for name, question in by_relation.items()}
    assert "{s}的颜色是什么？" in asked["thing.color"]  # not 什么颜色
    assert "{s}在常温下是什么状态？" in asked["element.state"]
    assert "在元素的分类里，{s}属于哪一类？" in asked["element.class"]
    assert not [text for texts in asked.values() for text in texts if "就是" in text]


def test_a_second_turn_names_a_number_as_a_number():
    fact = next(fact for fact in facts("element") if fact.relation.name == "element.number")
    assert Question(fact, reverse=True).follow_up == f"那第{fact.object}号呢？"
    assert Question(fact).follow_up == f"那{fact.subject}呢？"


def test_nobody_counts_things_that_are_not_there():
    sums = Sums(frozenset(), random.Random(0))
    assert not re.search(r"(?<!\d)0[个张支本朵颗]", "".join(sums.document() for _ in range(3000)))


def test_each_word_has_one_opposite():
    """Else a question for it has two right answers."""
    words = [word for fact in facts("word") for word in (fact.subject, fact.object)]
    assert len(words) == len(set(words))
