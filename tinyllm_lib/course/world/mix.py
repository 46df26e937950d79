"""What the sample corpus is made of: shares and switches."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class CorpusMix:
    """What the corpus is made of. Shares within a group are relative; 0 leaves a kind out."""

    # Pretraining documents.
    doc_cards: float = 0.075  # several facts about one subject
    doc_mixed: float = 0.125  # unrelated facts
    doc_lists: float = 0.025  # one relation, many subjects
    doc_comparisons: float = 0.02  # two subjects side by side
    doc_groups: float = 0.035  # many subjects, sorted by what they share
    doc_hops: float = 0.045  # two facts that share a name
    doc_scenes: float = 0.03  # stories in which somebody asks for a fact and is told
    doc_notes: float = 0.3  # 问：…答：…
    doc_yes_no: float = 0.03
    doc_sums: float = 0.115
    doc_orders: float = 0.015  # which is larger, which comes first
    doc_stories: float = 0.01  # with a point
    doc_quests: float = 0.02  # a wish, an obstacle, an attempt, a result
    doc_everyday: float = 0.05  # everyday life, and questions about it
    doc_papers: float = 0.05  # notices, letters, lists, a shop, a doctor
    doc_reasons: float = 0.025  # 因为…所以…
    doc_poems: float = 0.02
    doc_descriptions: float = 0.01
    pronoun_share: float = 0.25  # cards: 它 for the subject in a later sentence
    focus: int = 3  # the relations that the exam holds out are told this many times as often

    # Dialogues.
    chat_greetings: float = 0.07
    chat_identity: float = 0.07
    chat_facts: float = 0.39
    chat_sums: float = 0.06
    chat_follow_ups: float = 0.17
    chat_naming: float = 0.02  # 你听说过蒙古吗？
    chat_everyday: float = 0.02
    chat_yes_no: float = 0.03  # 悉尼是澳大利亚的首都吗？
    chat_memory: float = 0.06  # 我叫小红。 … 我叫什么？
    chat_two_hops: float = 0.03  # 合肥所在省份的简称是什么？
    chat_comparison: float = 0.0  # 37和45哪个大？
    chat_refusals: float = 0.08
    chat_instructions: float = 0.0  # 用“苹果”造句。
    full_share: float = 0.88  # replies that repeat what was asked about: 法国的首都是巴黎。
    stated_share: float = 0.1  # and of these, in the words of a statement: 法国的首都叫巴黎。
    opener_share: float = 0.0  # full replies that begin with 这个我知道，
    blank_share: float = 0.1  # 填空：法国的首都是____。
    varied_share: float = 0.6  # 我想知道，法国的首都是哪儿？
    context_share: float = 0.1  # and of these, who asks or when: 小华问我，法国的首都是哪儿？
    invented_share: float = 0.42  # refusals about names that do not exist, beside rare real ones
    again_share: float = 0.0  # dialogues that end with 再说一遍
    named_other_facts: bool = True  # "named" entities: dialogues ask for their other facts
    name_objects: bool = True  # and name, apart from them, the objects of their held-out facts

    # What only the exam asks.
    named_share: float = 0.20
    unnamed_share: float = 0.19
    held_out_sums: float = 0.08

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise ValueError(f"CorpusMix.{field.name} is {value}; a share is 0 (off) or more")
        if not isinstance(self.focus, int) or self.focus < 1:
            raise ValueError(f"CorpusMix.focus is {self.focus}; it is a whole number, 1 or more")
        if (left_out := self.named_share + self.unnamed_share) > 0.6:
            told = "keep it at 0.6 or less, so that dialogues have facts to ask about"
            raise ValueError(f"CorpusMix: named_share + unnamed_share is {left_out:.2f}; {told}")

    def shares(self, prefix: str) -> dict[str, float]:
        """The shares of one group by kind: ``shares("doc_")`` → {"cards": 0.2, ...}."""
        return {
            field.name.removeprefix(prefix): getattr(self, field.name)
            for field in fields(self)
            if field.name.startswith(prefix)
        }
