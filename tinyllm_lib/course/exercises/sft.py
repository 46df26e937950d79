"""Exercises of notebook 06: fine-tuning."""

from __future__ import annotations

from itertools import pairwise

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require
from tinyllm_lib.evaluate import Answer, ExamResult
from tinyllm_lib.tokenizer import encode_chat

SETUP = """
from collections import defaultdict

from tinyllm_lib.course.exercises import check_exercise
"""


@exercise("""
06.1 Count before you run (5 minutes, easy)

Change the dialogue to one of your own, with at least four messages. How many of its *messages* have
a learned token, and how many of its *headers* (`<|im_start|>assistant` and the line end) have one?

# hint:
Section 2 has the picture: what the model has to write itself is learned, what somebody else has
written is only read.

# code for mine, my_messages, my_headers:
# stub:
mine = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},  # add messages of your own
]
my_messages, my_headers = None, None  # two numbers
# solution:
mine = [
    {"role": "system", "content": "你是一个AI助手"},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "你是谁？"},  # Who are you?
    {"role": "assistant", "content": "我是一个AI助手。"},  # I am an AI assistant.
]
my_messages, my_headers = 2, 0
""")
def _check_learned_messages(mine, my_messages, my_headers) -> str:
    done(my_messages, my_headers)
    if len(mine) < 4:
        raise NotYet(f"your dialogue has {len(mine)} messages; four or more are worth asking about")
    tok = prepare.tokenizer(get_workspace())
    mask = encode_chat(tok, mine).loss_mask
    starts = [len(encode_chat(tok, mine[:n])) if n else 0 for n in range(len(mine) + 1)]
    learned = [any(mask[a:b]) for a, b in pairwise(starts)]
    headers = [mask[a] for a in starts[:-1]]
    if my_messages != sum(learned):
        said = f"{sum(learned)} messages have a learned token, the assistant's"
        raise NotYet(f"{said}; you say {my_messages}")
    if my_headers != sum(headers):
        raise NotYet("no header is learned: the program writes it before the model speaks")
    return "replies and their ends are learned, everything else is only read."


@exercise("""
06.2 A token weighs the same wherever it lies (10 minutes, medium)

One reply has 3 tokens with 2 nats each, another has 30 tokens with 1 nat each. Compute the loss of
a batch with both (a) as the trainer does, over all learned tokens, (b) as a mean of the two
replies' means. Which of the two ways makes short replies count for more?

# hint:
(a) all nats, divided by the number of all tokens. (b) first the mean of each reply, then the mean
of these two numbers.

# code for over_tokens, over_replies:
short, long = [2.0] * 3, [1.0] * 30
# stub:
over_tokens, over_replies = None, None  # (a), (b)
# solution:
over_tokens = sum(short + long) / len(short + long)
over_replies = (sum(short) / len(short) + sum(long) / len(long)) / 2
""")
def _check_two_means(over_tokens, over_replies) -> str:
    done(over_tokens, over_replies)
    if close(over_tokens, 1.5, 1e-6) and close(over_replies, 12 / 11, 1e-6):
        raise NotYet("the two are exchanged: (a) goes over all tokens")
    if not close(over_tokens, 36 / 33, 1e-3):
        raise NotYet(f"(a) is {over_tokens}: there are 36 nats and 33 tokens in all")
    require(close(over_replies, 1.5, 1e-3), f"(b) is {over_replies}: the mean of 2.0 and 1.0")
    return "(b) gives each token of the short reply ten times the weight of one in the long reply."


@exercise('''
06.3 Where does it fail? (15 minutes, medium)

Write `hardest(exam, result)`: of the relations (`row["relation"]`, which some rows lack) with at
least 10 questions, the one with the smallest share of right answers. `result.answers` has the order
of `exam`. Then call `hardest(exam, chat_exam)` and read the wrong answers of that relation: what do
they have in common?

# hint:
`zip(exam, result.answers)` brings question and answer together. Collect `answer.right` in one list
per relation, then take `min` with the share as its key.

# code for hardest:
def hardest(exam: list[dict], result) -> tuple[str, float]:
    """(relation, share of right answers) of the relation that goes worst."""
    # stub:
    return None  # your turn
    # solution:
    right = defaultdict(list)
    for row, answer in zip(exam, result.answers, strict=True):
        if "relation" in row:
            right[row["relation"]].append(answer.right)
    shares = {name: sum(marks) / len(marks) for name, marks in right.items() if len(marks) >= 10}
    name = min(shares, key=shares.get)
    return name, shares[name]
''')
def _check_hardest(hardest) -> str:
    questions = {"capital": (9, 12), "currency": (4, 12), "symbol": (0, 9), None: (0, 20)}
    exam, answers = [], []
    for relation, (right, total) in questions.items():
        row = {"class": "fact_seen"} | ({"relation": relation} if relation else {})
        exam += [row] * total
        answers += [Answer("fact_seen", "…", "…", "…", n < right) for n in range(total)]
    found = hardest(exam, ExamResult("chat", "step_000001", "exam.jsonl", 0.1, answers))
    done(found)
    name, share = found
    told = "With 9 of 12 right on capitals, 4 of 12 on currencies, 0 of 9 on symbols,"
    slips = {
        "symbol": " symbols have fewer than 10 questions;",
        None: " rows without a relation do not count;",
        "capital": " the worst is wanted, not the best;",
    }
    if name != "currency":
        raise NotYet(f"{told}{slips.get(name, '')} the answer is 'currency', yours is {name!r}")
    if not close(share, 4 / 12, 1e-6):
        raise NotYet(f"the share of right answers on currencies is 4 of 12, yours is {share}")
    return "now try it on your own exam: hardest(exam, chat_exam)."
