"""Dialogues that name things, and say what kind of thing they are, but tell no fact of the tables.

They name above all what the exam's ``fact_named`` asks about.
"""

from __future__ import annotations

import random

from tinyllm_lib.course.world.skills import Turns
from tinyllm_lib.course.world.world import KIND_WORDS, Deck, Rotation, World

# {k}: 国家, {m}: 个.
_NAMING = (
    ("你听说过{s}吗？", "听说过，{s}是一{m}{k}。"),
    ("你知道{s}吗？", "知道，{s}是一{m}{k}。"),
    ("{s}是什么？", "{s}是一{m}{k}。"),
    ("我今天在书上看到了{s}。", "{s}是一{m}{k}，书里是怎么说的？"),
    ("老师今天讲到了{s}。", "{s}是一{m}{k}，老师讲得有趣吗？"),
    ("请把“{s}”重复一遍。", "{s}。"),
)
_NAMING_PLACES = (
    ("我想去{s}旅行。", "真好，祝你在{s}玩得开心！"),
    ("我有一个朋友住在{s}。", "真好，你可以请朋友讲讲{s}的故事。"),
    ("我刚从{s}回来。", "欢迎回来！在{s}玩得开心吗？"),
    ("我爸爸去{s}出差了。", "希望他在{s}一切顺利。"),
)
_NAMING_TWO = (
    ("{s}和{t}都是{k}吗？", "是的，{s}和{t}都是{k}。"),
    ("{s}和{t}有什么相同的地方？", "{s}和{t}都是{k}。"),
    ("请把{s}和{t}写在一起。", "{s}、{t}。"),
)
_NAMING_MIXED = ("{s}和{t}都是{k}吗？", "不是，{s}是一{m}{k}，{t}是一{n}{l}。")
_PLACES = ("country", "province", "city")


class Naming:
    """Names things, most often those of which a fact is held out.

    Args:
        name_objects: whether to name the objects of held-out facts, too, apart from their subjects.
    """

    def __init__(self, world: World, rng: random.Random, *, name_objects: bool) -> None:
        self._rng, self._wording = rng, Rotation(rng)
        everything = [
            key for key in world.role if key[0] in KIND_WORDS and world.role[key] != "unnamed"
        ]
        named = [key for key in everything if world.role[key] == "named"]
        if name_objects:
            kinds = {(fact.relation.object_kind, fact.object) for fact in world.named}
            named += sorted(key for key in kinds if key[0] in KIND_WORDS)
        self._named = Deck(named, rng)
        self._everything = Deck(everything, rng)

    def turns(self) -> Turns:
        """One turn."""
        rng = self._rng
        use_named = len(self._named) and rng.random() < 0.6
        kind, name = (self._named if use_named else self._everything).deal()
        word, measure = KIND_WORDS[kind]
        slots = {"{s}": name, "{k}": word, "{m}": measure}
        templates = _NAMING + (_NAMING_PLACES if kind in _PLACES else ())
        if rng.random() < 0.25:
            # Of two things, 都是…吗 is as often denied as it is said to be so.
            alike = rng.random() < 0.83
            drawn = [key for key in self._everything.deal_different(40) if key[1] != name]
            fitting = [key for key in drawn if (key[0] == kind) == alike]
            fitting = [key for key in fitting if alike or not {kind, key[0]} <= {*_PLACES}]
            if fitting:
                other_kind, slots["{t}"] = fitting[0]
                slots["{l}"], slots["{n}"] = KIND_WORDS[other_kind]
                templates = _NAMING_TWO if alike else (_NAMING_MIXED,)
        says, reply = self._wording.pick(("name", len(templates), name), templates)
        for slot, text in slots.items():
            says, reply = says.replace(slot, text), reply.replace(slot, text)
        return [(says, reply)]
