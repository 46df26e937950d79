"""The dialogues of the sample corpus: lists of turns, each (what a person says, the reply).

The writer keeps to the hold-out of ``world.py`` (every dialogue is searched for names that it
must not contain) and remembers what it asked, so that the exam knows what was seen.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from tinyllm_lib.course.world import talk
from tinyllm_lib.course.world.grammar import expand
from tinyllm_lib.course.world.mix import CorpusMix
from tinyllm_lib.course.world.naming import Naming
from tinyllm_lib.course.world.skills import Skills, Turns, is_short
from tinyllm_lib.course.world.sums import Sums, working
from tinyllm_lib.course.world.world import COMPARABLE_KINDS, Deck, Question, Rotation, World

# The question that every learner tries first.
_FIRST_QUESTION = ("country.capital", "中国", "{s}的首都是哪里？")
_BLANKS = (
    "填空：{q}。", "把句子补充完整：{q}。", "“{q}”，空格里应该填什么？", "“{q}”，这里缺了什么？",
    "“{q}”这句话里，空格该填什么？", "请填空：{q}。", "帮我补全这句话：{q}。",
)  # fmt: skip
# Who wants to know, and when; the slots are filled from ``talk.VALUES`` ({p}: a person).
_CONTEXTS = (
    "[我的同桌|我弟弟|我妹妹|我爷爷|我家孩子|邻居家的小朋友][问我，|想知道，|考我：|今天问我，]{q}",
    "[我的朋友|我的同学|同桌|邻居家的|班长|][{p}][问我，|想知道，|考我：|刚才问我，|发消息问我：]{q}",
    "我和{p}一起{hobby}的时候，聊到一个问题：{q}",
    "[我和{p}打赌，|{p}也不知道，|我和{p}想的不一样，|我和{p}都忘了，]{q}",
    "[今天|昨天]上课的时候，[老师问：|{p}问老师：|老师问{p}：]{q}",
    "{day}要考试了，{q}",
    "[写作业|吃{fruit}|吃{dish}|{hobby}|等车|排队|吃早饭]的时候，我[突然|忽然|]想到一个问题：{q}",
    "[我的|{p}的|妹妹的|弟弟的]作业里有一道题：{q}",
    "[我想考考{p}，|我答应帮{p}问一问，]{q}",
)
_DRESSED = re.compile("[，：你。]|请|说|写出|谢谢|小苗|告诉")
_THANKS = (
    "[谢谢|多谢|谢谢你|明白了，谢谢|原来如此，谢谢]，我[去告诉{p}|记在本子上了|去写{subject}作业了"
    "|去吃{fruit}了|再去问问{p}|要和{p}去{hobby}了]。"
)
_WELCOME = "不客气[！|，[有问题随时问我|能帮到你就好|我们一起学习|欢迎再来问我]。|，还想知道什么？]"
_OPENERS = ("这个我知道，", "我知道，", "问得好，", "好的，", "我来告诉你，", "让我想想，")
_AGAIN = (
    "再说一遍。", "请再说一遍。", "我没听清，再说一遍好吗？", "你刚才说什么？", "能再说一次吗？",
    "麻烦你再说一遍。",
)  # fmt: skip
# What a second question calls what it asks for (它的货币呢？).
_ITS = {
    **{"country.capital": "首都", "country.currency": "货币", "country.language": "官方语言"},
    **{"province.capital": "省会", "province.seat": "首府", "province.abbreviation": "简称"},
    **{"element.symbol": "元素符号", "element.number": "原子序数", "animal.sound": "叫声"},
    **{"dynasty.founder": "建立者", "dynasty.capital": "都城", "animal.birth": "繁殖方式"},
}
_MORE = ("再加{d}呢？", "再加上{d}呢？", "那再加{d}呢？")


class DialogueWriter:
    """Writes dialogues that keep to the hold-out.

    Args:
        mix: its `named_other_facts`, `name_objects`, and the shares of ways to ask and to reply.

    Attributes:
        skills: what an assistant can do beside facts and sums.
    """

    def __init__(self, world: World, sums: Sums, rng: random.Random, mix: CorpusMix) -> None:
        self._world, self._sums, self._rng, self._mix = world, sums, rng, mix
        self.skills = Skills(world, rng, sums, invented_share=mix.invented_share)
        self._wording = Rotation(rng)
        askable = world.askable()
        if not mix.named_other_facts:
            askable = [q for q in askable if world.role_of(q.fact) == "asked"]
        self._questions = Deck(askable, rng)
        # How many relations say a thing in the same words: {s}在{o}。 has more than one right end.
        self._uses = Counter(
            text
            for relation in world.relations
            for text in {*relation.statements, *relation.answers, *relation.reverse_answers}
            | {relation.completion + "{o}。"}
        )
        self._first = None
        sides: dict[tuple[str, bool], list[Question]] = defaultdict(list)
        subjects: dict[tuple[str, str], list[Question]] = defaultdict(list)
        for question in askable:
            fact, relation = question.fact, question.fact.relation
            if self._first is None and (relation.name, fact.subject) == _FIRST_QUESTION[:2]:
                self._first = question
            sides[relation.name, question.reverse].append(question)
            if not question.reverse and relation.subject_kind in COMPARABLE_KINDS:
                subjects[relation.subject_kind, fact.subject].append(question)
        self._sides = {key: Deck(group, rng) for key, group in sides.items() if len(group) >= 4}
        self._side_names = Deck([key for key, deck in self._sides.items() for _ in deck.items], rng)
        self._same_subject = Deck([group for group in subjects.values() if len(group) > 1], rng)
        self._naming = Naming(world, rng, name_objects=mix.name_objects)
        # For the exam: standalone questions in the words used, and what follow-ups put together.
        self.asked: dict[str, Question] = {}
        self._asked_now: dict[str, Question] = {}
        self.followed: set[frozenset[str]] = set()

    def write(self, kind: str) -> Turns:
        """One dialogue of the kind: greetings, identity, facts, sums, follow_ups, naming, ..."""
        writers: dict[str, Callable[[], Turns]] = {
            "greetings": self._greetings,
            "identity": lambda: [talk.identity(self._rng)],
            "facts": self._facts,
            "sums": self._arithmetic,
            "follow_ups": self._follow_ups,
            "naming": self._naming.turns,
            "everyday": lambda: talk.everyday(self._rng),
        }
        write = writers.get(kind) or partial(self.skills.turns, kind)
        for _ in range(100):
            self._asked_now = {}
            turns = write()
            allowed = self._world.allows("\n".join(text for turn in turns for text in turn))
            if allowed and is_short(turns):
                self.asked.update(self._asked_now)
                return self._again(turns)
        raise ValueError(
            f"no dialogue of kind {kind!r} keeps to the hold-out in 100 attempts; "
            "lower named_share and unnamed_share, or set the share of this kind to 0"
        )

    def _again(self, turns: Turns) -> Turns:
        """The turns, now and then followed by the wish to hear the last reply again."""
        if self._rng.random() >= self._mix.again_share:
            return turns
        longer = [*turns, (self._rng.choice(_AGAIN), turns[-1][1])]
        return longer if is_short(longer) else turns

    def ask(self, question: Question) -> tuple[str, str]:
        """The question in its next wording, and a reply."""
        return question.fact.fill(self._template(question)), self.reply(question)

    def _template(self, question: Question) -> str:
        key = (question.fact.relation.name, question.fact.subject, question.reverse)
        return self._wording.pick(key, question.phrasings)

    def reply(self, question: Question, *, full: bool | None = None) -> str:
        """A reply to the question; ``full``: one that repeats what was asked about."""
        if full is None:
            full = self._rng.random() < self._mix.full_share
        replies = question.full_replies if full else question.replies
        if full and self._rng.random() < self._mix.stated_share:
            replies = self._statements_ending_with_answer(question) or replies
        return question.fact.fill(self._rng.choice(replies))

    def _ask_next(self) -> tuple[str, str]:
        if self._first is not None and self._rng.random() < 0.01:
            question = self._first
            template, reply = _FIRST_QUESTION[2], self.reply(question, full=True)
        else:
            question = self._questions.deal()
            template, reply = self._template(question), self.reply(question)
        if question.given in reply and self._rng.random() < self._mix.opener_share:
            reply = self._rng.choice(_OPENERS) + reply
        draw = self._rng.random()
        if draw < self._mix.blank_share:
            return self._blank(question), reply
        if draw < self._mix.blank_share + self._mix.varied_share:
            return self._in_context(question, question.in_other_words(template, self._rng), reply)
        text = question.fact.fill(template)
        self._asked_now[text] = question
        return text, reply

    def _in_context(self, question: Question, asked: str, reply: str) -> tuple[str, str]:
        """Now and then, who asks or when."""
        rng = self._rng
        if _DRESSED.search(asked) or rng.random() > self._mix.context_share:
            return asked, reply
        name = talk.person(rng)
        text = expand(rng.choice(_CONTEXTS), {**talk.VALUES, "p": name, "q": asked}, rng)
        plain = question.given in reply and not reply.startswith(_OPENERS)
        if name in text and plain and rng.random() < 0.5:
            reply = f"{rng.choice(('你可以', ''))}告诉{name}，{reply}"
        return text, reply

    def _blank(self, question: Question) -> str:
        """The question as a statement with a gap at its end (填空：法国的首都是____。)."""
        fact, rng = question.fact, self._rng
        options = self._statements_ending_with_answer(question)
        if not options:
            return fact.fill(self._template(question))
        key = ("blank", fact.relation.name, fact.subject, question.reverse)
        gap = "{s}。" if question.reverse else "{o}。"
        statement = self._wording.pick(key, options).removesuffix(gap) + "____"
        return rng.choice(_BLANKS).replace("{q}", fact.fill(statement))

    def _statements_ending_with_answer(self, question: Question) -> list[str]:
        """Those that begin with what is given, and with which only one relation is stated."""
        relation = question.fact.relation
        given, gap = ("{o}", "{s}") if question.reverse else ("{s}", "{o}")
        said = {*relation.statements, *question.replies, relation.completion + "{o}。"}
        return sorted(
            text
            for text in said
            if text.endswith(gap + "。")
            and given in text
            and "，" not in text
            and text.count(gap) == 1
            and self._uses[text] == 1
        )

    def _greetings(self) -> Turns:
        turns = [talk.greeting(self._rng)]
        if self._rng.random() < 0.15:
            turns.append(talk.identity(self._rng))
        elif self._rng.random() < 0.15:
            turns.append(self._ask_next())
        return turns

    def _facts(self) -> Turns:
        count = self._rng.choices((1, 2, 3), weights=(4, 3, 2))[0]
        turns = [self._ask_next() for _ in range(count)]
        if self._rng.random() < 0.04:
            slots = {**talk.VALUES, "p": talk.person(self._rng)}
            turns.append((expand(_THANKS, slots, self._rng), expand(_WELCOME, {}, self._rng)))
        return turns

    def _arithmetic(self) -> Turns:
        rng = self._rng
        if rng.random() < 0.02:
            return [("1+1等于多少？", "1+1=2。")]
        count = rng.choices((1, 2, 3), weights=(6, 2, 1))[0]
        return [self._sums.question(words=rng.random() < 0.06) for _ in range(count)]

    def _follow_ups(self) -> Turns:
        rng = self._rng
        draw = rng.random()
        if draw < 0.3:
            a, b, d = self._sums.chain()
            self.followed.add(frozenset((f"{a}+{b}", str(d))))
            return [(f"{a}+{b}等于多少？", working(a, b) + "。"), more(a + b, d, rng)]
        if draw < 0.45 and len(self._same_subject):
            return self._about_it(*rng.sample(self._same_subject.deal(), 2))
        group = self._sides[self._side_names.deal()].deal_different(rng.choice((2, 2, 3)))
        turns = [self.ask(group[0])]
        for before, question in pairwise(group):
            self.followed.add(frozenset((before.given, question.given)))
            asked = re.sub("^那", rng.choice(("那", "那", "那么", "那要是")), question.follow_up)
            turns.append((asked, self.reply(question)))
        return turns

    def _about_it(self, first: Question, second: Question) -> Turns:
        """Two questions about one thing, which the second calls 它."""
        relation = second.fact.relation
        begun = [
            text for text in second.phrasings if text.startswith("{s}") and "{s}这" not in text
        ]
        template = self._wording.pick(("it", relation.name), begun or second.phrasings)
        asked = second.fact.fill(template.replace("{s}", "它"))
        if relation.name in _ITS and self._rng.random() < 0.6:
            asked = self._rng.choice(("它的{x}呢？", "那它的{x}呢？", "它的{x}是什么？"))
            asked = asked.replace("{x}", _ITS[relation.name])
        return [self.ask(first), (asked, self.reply(second, full=True))]


def more(total: int, d: int, rng: random.Random) -> tuple[str, str]:
    """The follow-up turn of a sum (再加3呢？ → 个位2+3=5，十位8+0=8，所以82+3=85。)."""
    return rng.choice(_MORE).replace("{d}", str(d)), working(total, d) + "。"
