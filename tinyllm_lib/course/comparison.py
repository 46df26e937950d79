"""A model beside its control, as in notebook 06: two exams with the test that paired answers get,
and the loss of what is asked and of what is replied.
"""

from collections.abc import Iterable
from itertools import groupby
from math import comb
from operator import attrgetter
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from tinyllm_lib.evaluate import Answer, ExamResult, format_table
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.tokenizer import encode_chat, encode_text

Pairs = list[tuple[Answer, Answer]]


class ExamComparison(NamedTuple):
    """What changed, as pairs of answers to the same question; how many items of each class were
    (gained, lost), where it stands in both exams; and a table of both.
    """

    gained: Pairs
    lost: Pairs
    items: dict[str, tuple[int, int]]
    table: str

    @property
    def p_values(self) -> dict[str, float]:
        """Class -> `mcnemar` of its items."""
        return {name: mcnemar(*changed) for name, changed in self.items.items()}


def mcnemar(gained: int, lost: int) -> float:
    """The exact p-value of paired answers (McNemar 1947): how often a fair coin, thrown once for
    each answer that changed, divides them at least as unevenly as `gained` and `lost`.

    Questions that both got right, or both wrong, say nothing about which of the two is better.
    """
    changed, fewer = gained + lost, min(gained, lost)
    as_uneven = 2 * sum(comb(changed, k) for k in range(fewer + 1))  # on either side
    return min(1.0, as_uneven / 2**changed)


def compare_exams(a: ExamResult, b: ExamResult, *, print_table: bool = True) -> ExamComparison:
    """Two results side by side, class by class and answer by answer.

    The table counts items, as the scores do: answers with the same `pair` are one, right if all of
    them are. Its last column is `mcnemar`, of the items that stand in both exams.
    """
    key = attrgetter("class_name", "question", "expected")  # several rows, after other turns
    left = {name: list(same) for name, same in groupby(sorted(b.answers, key=key), key)}
    both = [(x, left[key(x)].pop(0)) for x in a.answers if left.get(key(x))]
    changed = [(x, y) for x, y in both if x.right != y.right]
    gained = [(x, y) for x, y in changed if y.right]
    lost = [(x, y) for x, y in changed if x.right]
    rows = [("class", *(f"{r.kind} {r.checkpoint}".strip() for r in (a, b)), "gained", "lost", "p")]
    scores = [{s.class_name: s for s in r.classes} for r in (a, b)]
    changes = {}
    for name in scores[0] | scores[1]:
        found = (of.get(name) for of in scores)
        shares = (f"{s.share:.0%} ({s.right}/{s.total})" if s else "-" for s in found)
        items = _items([(x, y) for x, y in both if x.class_name == name])
        counts = items.count((False, True)), items.count((True, False))
        if items:
            changes[name] = counts
        p = p_value(mcnemar(*counts)) if items else "-"
        rows.append((name, *shares, *map(str, counts), p))
    table = format_table(rows, align="<>>>>>")
    if apart := len(a.answers) + len(b.answers) - 2 * len(both):
        table += f"\n{apart} questions stand in only one of the two exams: shares alone count them"
    if print_table:
        print(table, flush=True)
    return ExamComparison(gained, lost, changes, table)


def p_value(p: float) -> str:
    """As tables show it."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _items(answers: Pairs) -> list[tuple[bool, bool]]:
    """Whether each item of a class is right in the one exam and in the other."""
    items: dict[object, tuple[bool, bool]] = {}
    for i, (x, y) in enumerate(answers):
        item = x.pair or i
        before, after = items.get(item, (True, True))
        items[item] = (before and x.right, after and y.right)
    return list(items.values())


@torch.no_grad()
def loss_by_part(model: TextGenerator, dialogues: Iterable[list[dict]]) -> dict[str, float]:
    """Mean nats per token of the first "question" of dialogues and of its "reply", each with its
    `<|im_end|>`.

    Args:
        dialogues: messages, the system's first.
    """
    tokenizer, device = model.tokenizer, model.model.lm_head.weight.device
    header = 1 + len(encode_text(tokenizer, "user\n"))  # <|im_start|> and who speaks
    nats: dict[str, list[torch.Tensor]] = {"question": [], "reply": []}
    for messages in dialogues:
        asked, end = (len(encode_chat(tokenizer, messages[:n])) for n in (1, 2))
        chat = encode_chat(tokenizer, messages[:3], max_length=model.context)
        ids = torch.tensor([chat.ids], device=device)
        logits = model.model(ids[:, :-1])[0].float()
        loss = cross_entropy(logits, ids[0, 1:], reduction="none").cpu()  # [t]: of token t + 1
        nats["question"].append(loss[asked + header - 1 : end - 2])
        nats["reply"].append(loss[torch.tensor(chat.loss_mask[1:]).bool()])
    return {part: torch.cat(losses).mean().item() for part, losses in nats.items()}
