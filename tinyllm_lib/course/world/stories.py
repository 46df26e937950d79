"""Stories and everyday descriptions for pretraining, in the grammar of ``grammar.py``.

Their templates lie in ``texts/``, one a line. ``SCENES`` hold questions and answers about facts
({q1} {a1}, {q2} {a2}); ``STORIES`` have characters, a small problem, a way out and a point;
``DESCRIPTIONS`` are about ordinary things. Square brackets hold alternatives, so that each template
stands for many texts.
"""

from __future__ import annotations

import random

from tinyllm_lib.course.world.grammar import expand, read_lines

CHILDREN = """
    小明 小红 小刚 小丽 小华 小军 小芳 小林 小雨 小杰 小梅 小海 乐乐 豆豆 朵朵 明明 天天 欢欢
    圆圆 阿宝
""".split()
ANIMALS = "小兔 小熊 小猴 小猫 小狗 小鹿 小松鼠 小刺猬 小狐狸 小象 小牛 小羊".split()
WADERS = "小马 小鹿 小牛 小羊".split()
TEACHERS = "李老师 王老师 张老师 陈老师 刘老师 赵老师 周老师 林老师".split()
ELDERS = "爷爷 奶奶 外公 外婆 爸爸 妈妈 叔叔 姑姑 舅舅 哥哥 姐姐".split()
FRUIT = "苹果 梨 桃子 橘子 葡萄 樱桃".split()  # which grow in orchards
# What <name> in a template stands for.
PARTS = {
    "opening": "[一天早上|星期六的上午|放学以后|有一天|周末|暑假里的一天|春天的一个下午]",
    "at_home": "[一天早上|星期六的上午|放学以后|吃过晚饭|一个下雨的日子|暑假里的一天|周末的晚上]",
    "thinking": "[想了想|笑了笑|点点头|不慌不忙|眨了眨眼睛]",
    "praise": "[说得对|完全正确|答得真好|对，就是这样|很好，你记住了]",
    "glad": "[{a}听了很高兴|{a}把答案记在了本子上|{a}高兴地点点头|{a}一下子明白了|"
    "{a}又学到了一点新知识]",
}


def _templates(name: str) -> tuple[str, ...]:
    text = "\n".join(read_lines(name))
    for part, alternatives in PARTS.items():
        text = text.replace(f"<{part}>", alternatives)
    return tuple(text.split("\n"))


# {a} {b}: children; {b2}: a small animal; {t}: a teacher; {e}: somebody older in the family.
SCENES = _templates("scenes")
# {x} {y}: animals, {z}: one that can wade; {f}: a fruit, {f2}: a fruit tree, {f3}: a big fruit.
STORIES, DESCRIPTIONS = _templates("stories"), _templates("descriptions")


def scene_slots(
    first: tuple[str, str], second: tuple[str, str], rng: random.Random
) -> dict[str, str | list[str]]:
    """The slots of ``SCENES``: two questions with their answers, and who is there."""
    a, b = rng.sample(CHILDREN, 2)
    small = rng.choice(("点点", "毛毛", "球球", "豆包", "花花"))
    asked = {"q1": first[0], "a1": first[1], "q2": second[0], "a2": second[1]}
    return {"a": a, "b": b, "b2": small, "t": TEACHERS, "e": ELDERS, **asked}


def story(rng: random.Random) -> str:
    """A short story without facts."""
    return _tell(rng.choice(STORIES), rng)


def description(rng: random.Random) -> str:
    """A few sentences about ordinary things."""
    return _tell(rng.choice(DESCRIPTIONS), rng)


def _tell(template: str, rng: random.Random) -> str:
    a, b = rng.sample(CHILDREN, 2)
    x, y = rng.sample(ANIMALS, 2)
    trees, big = ("枣", "梨", "桃", "石榴"), ("桃子", "苹果", "梨", "石榴")
    who = {"a": a, "b": b, "x": x, "y": y, "z": WADERS, "t": TEACHERS, "e": ELDERS}
    return expand(template, {**who, "f": FRUIT, "f2": trees, "f3": big}, rng)
