"""Is it so? True and false claims, half and half (悉尼是澳大利亚的首都吗？).

The reply to this one: 澳大利亚的首都是堪培拉，不是悉尼。
The fact comes first and the verdict after it: a model that writes from left to right cannot judge
a claim before it has written what is so.
"""

from __future__ import annotations

import random
from collections import defaultdict

from tinyllm_lib.course.world.facts import Fact
from tinyllm_lib.course.world.grammar import read_lines
from tinyllm_lib.course.world.skills.base import EXAM_ROWS, Row, Turns, held_out, interleave, take
from tinyllm_lib.course.world.world import KIND_WORDS, Deck, World

# Relation: what may be claimed, and what the reply states.
_CLAIMS = {
    name: (claims.split("/"), statement)
    for name, claims, statement in (line.split(" > ") for line in read_lines("yes_no"))
}
_QUESTIONS = (
    "{c}吗？", "{c}吗？", "请问{c}吗？", "{c}吧？", "{w}？", "请问{w}？", "你知道{w}吗？",
    "{c}，对吗？", "{c}，对不对？", "我觉得{c}，对吗？", "有人说{c}，对吗？", "听说{c}，对不对？",
    "{c}，是不是？", "{c}，是这样吗？", "我记得{c}，是吗？", "{c}，没错吧？",
)  # fmt: skip
_YES = ("没错", "没错", "是的")
# Large cities that are no capitals.
_NOT_CAPITALS = dict(
    pair.split(":")
    for pair in """
        澳大利亚:悉尼 美国:纽约 加拿大:多伦多 巴西:里约热内卢 土耳其:伊斯坦布尔 印度:孟买 中国:上海
        日本:大阪 韩国:釜山 越南:胡志明市 意大利:米兰 西班牙:巴塞罗那 德国:慕尼黑 法国:里昂
        英国:利物浦 俄罗斯:圣彼得堡 瑞士:苏黎世 巴基斯坦:卡拉奇 摩洛哥:卡萨布兰卡 埃及:亚历山大
        尼日利亚:拉各斯 阿联酋:迪拜 新西兰:奥克兰 缅甸:仰光 哈萨克斯坦:阿拉木图 坦桑尼亚:阿鲁沙
        科特迪瓦:阿比让 波兰:克拉科夫 葡萄牙:波尔图 厄瓜多尔:瓜亚基尔
    """.split()
)
# Objects of which one may be as right as the other.
_NEAR = tuple(
    frozenset(group.split())
    for group in (
        "东汉 三国 西晋 曹魏 蜀汉 东吴 汉朝", "宋朝 北宋 南宋 金朝", "东晋 南北朝", "战国 春秋",
        "韩语 朝鲜语", "刘备 诸葛亮 关羽 张飞", "廉颇 蔺相如", "项羽 刘邦 韩信 张良", "黄色 金黄色",
        "姑姑 姨妈 伯母 婶婶", "非金属 稀有气体", "省 直辖市", "元宵 汤圆",
    )
)  # fmt: skip
_SAME_SORT = ("record.holder",)  # a wrong object must end like the right one (河 for 河)
_ELSEWHERE_TOO = frozenset("故宫 西湖 石林 北海".split())  # places of that name lie elsewhere, too
# Kinds that share names: a province is called a city, too.
_KIN = (frozenset(("province", "city", "country")), frozenset(("festival", "solar_term")))


class YesNo:
    """Facts that dialogues may ask, claimed rightly or wrongly; and kinds (长江是国家吗？)."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng
        facts = [q.fact for q in world.askable() if not q.reverse]
        facts = [f for f in facts if f.relation.name in _CLAIMS and self._can_be_denied(f)]
        by_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            by_relation[fact.relation.name].append(fact)
        self._exam_facts = [
            [fact for fact in group if held_out("yes_no", name, fact.subject)]
            for name, group in by_relation.items()
        ]
        hidden = {
            (fact.relation.name, fact.subject) for group in self._exam_facts for fact in group
        }
        shown = [fact for fact in facts if (fact.relation.name, fact.subject) not in hidden]
        self._facts = Deck(shown, rng)
        self._kinds = {kind: words for kind, words in KIND_WORDS.items() if kind != "element"}
        names = {kind: [s for k, s in world.by_subject if k == kind] for kind in self._kinds}
        self._named = [(kind, name) for kind, group in names.items() for name in group]
        self._truth = Deck((True, False), rng)

    def _can_be_denied(self, fact: Fact) -> bool:
        if fact.relation.name in _SAME_SORT:
            ends = [other.object[-1] for other in self._world.by_relation[fact.relation.name]]
            return ends.count(fact.object[-1]) > 1
        return fact.object != "台湾" and fact.subject not in _ELSEWHERE_TOO

    def turns(self) -> Turns:
        """One or two claims, each with its verdict."""
        rng = self._rng
        return [self._turn() for _ in range(rng.choice((1, 1, 2)))]

    def _turn(self) -> tuple[str, str]:
        rng, truth = self._rng, self._truth.deal()
        if rng.random() < 0.2:
            kind, name = take(
                lambda: rng.choice(self._named), lambda key: not held_out("kind", *key)
            )
            return self._kind_claim(kind, name, truth, rng)
        return self._claim(self._facts.deal(), truth, rng)

    def _claim(self, fact: Fact, truth: bool, rng: random.Random) -> tuple[str, str]:
        claims, statement = _CLAIMS[fact.relation.name]
        said = fact.object if truth else self._wrong(fact, rng)
        claim = rng.choice(claims)
        return _put(claim, statement, (fact.subject, fact.object), said, truth, rng)

    def _wrong(self, fact: Fact, rng: random.Random) -> str:
        """Another object of the relation, which is surely wrong."""
        name, right = fact.relation.name, fact.object
        if name == "country.capital" and fact.subject in _NOT_CAPITALS and rng.random() < 0.5:
            return _NOT_CAPITALS[fact.subject]
        alike = [other.object for other in self._world.by_relation[name] if other.object != right]
        if name in _SAME_SORT:
            alike = [text for text in alike if text[-1] == right[-1]]

        def fits(text: str) -> bool:
            near = any(text in group and right in group for group in _NEAR)
            return (
                not near
                and text not in fact.subject
                and self._world.allows(text + "\n" + fact.subject)
            )

        return take(lambda: rng.choice(alike), fits)

    def _kind_claim(self, kind: str, name: str, truth: bool, rng: random.Random) -> tuple[str, str]:
        """What a name is the name of (长江是国家吗？ → 长江是一条河流，不是国家。)."""
        claimed = kind
        if not truth:
            kin = next((group for group in _KIN if kind in group), frozenset((kind,)))
            claimed = rng.choice([other for other in self._kinds if other not in kin])
        said, told = (f"一{self._kinds[k][1]}{self._kinds[k][0]}" for k in (claimed, kind))
        said = rng.choice((said, self._kinds[claimed][0]))
        return _put("{s}是{o}", "{s}是{o}", (name, told), said, truth, rng)

    def exam_rows(self, rng: random.Random) -> list[Row]:
        """Pairs of rows about the same subject, one claim true and one false."""
        pool = [rng.sample(group, len(group)) for group in self._exam_facts]
        kinds = [
            key for key in self._named if held_out("kind", *key) and self._world.allows(key[1])
        ]
        pool.append(rng.sample(kinds, min(10, len(kinds))))
        rows: list[Row] = []
        for item in interleave(pool)[:EXAM_ROWS]:
            make = self._claim if isinstance(item, Fact) else self._exam_kind
            for truth in (True, False):
                question, _ = make(item, truth, rng)
                yes = (
                    ("是的", ["是", "对", "对的", "没错"])
                    if truth
                    else ("不是", ["不", "不对", "错"])
                )
                row: Row = {"question": question, "answer": yes[0], "answers": yes[1]}
                if isinstance(item, Fact):
                    row["relation"] = item.relation.name
                rows.append({**row, "pair": f"yes_no {len(rows) // 2 + 1}"})
        return rows

    def _exam_kind(self, item: tuple[str, str], truth: bool, rng: random.Random) -> tuple[str, str]:
        return self._kind_claim(*item, truth, rng)


def _put(
    claim: str, statement: str, told: tuple[str, str], said: str, truth: bool, rng: random.Random
) -> tuple[str, str]:
    """The claim as a question in one of the ways to put it; what is so, and then the verdict."""
    question = rng.choice(_QUESTIONS)
    question = question.replace("{c}", claim).replace("{w}", claim.replace("是", "是不是", 1))
    subject, right = told
    asked = question.replace("{s}", subject).replace("{o}", said)
    verdict = rng.choice(_YES) if truth else denied(statement, said)
    return asked, f"{statement.replace('{s}', subject).replace('{o}', right)}，{verdict}。"


def denied(statement: str, said: str) -> str:
    """What is not so, in the words of a statement: {s}在{o}, 亚洲 → 不在亚洲."""
    before, after = statement.split("{o}")
    verb = next((verb for verb in ("在", "属于") if before.endswith(verb)), "是")
    return f"不{verb}{'第' * before.endswith('第')}{said}{after}"
