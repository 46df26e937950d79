"""Does a reply give the answer? `is_right` for what a chat model says, `goes_on_with` for a base
model's text.
"""

import re
import unicodedata
from collections.abc import Iterable

NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")


def normalise(text: str) -> str:
    """NFKC, lower case, no spaces, no punctuation at either end: what two answers may differ in."""
    text = "".join(unicodedata.normalize("NFKC", text).lower().split()).replace("−", "-")
    kept = [i for i, c in enumerate(text) if unicodedata.category(c)[0] not in "PS"]
    if not kept:
        return ""
    start = kept[0]
    minus = start and text[start - 1] == "-" and text[start].isdigit()
    return text[start - 1 if minus else start : kept[-1] + 1]


def is_right(
    reply: str, answer: str, question: str = "", other_answers: Iterable[str] = ()
) -> bool:
    """Whether a reply, usually a sentence, gives the answer.

    * Spaces, outer punctuation, case and full width do not matter.
    * A number: the last number of the reply must equal it.
    * Otherwise the answer must stand in the reply, but not merely in words repeated from the
      question (西藏的简称是湘 does not give 藏), nor as a part of a longer answer of the same
      exam (几内亚比绍 does not give 几内亚).

    Args:
        other_answers: all answers of the exam; those that do not contain `answer` play no role.
    """
    said, wanted = normalise(reply), normalise(answer)
    if not wanted:
        raise ValueError(f"the answer {answer!r} holds neither a letter nor a digit to compare.")
    if said == wanted:
        return True
    if NUMBER.fullmatch(wanted):
        numbers = NUMBER.findall(said)
        return bool(numbers) and float(numbers[-1]) == float(wanted)
    repeated = _repeated(said, question)
    longer = [o for o in map(normalise, other_answers) if wanted in o and wanted != o]
    covered = [span for other in longer for span in _spans(other, said)]
    return any(
        end > repeated and not any(a <= start and end <= b for a, b in covered)
        for start, end in _spans(wanted, said)
    )


def goes_on_with(text: str, answer: str, other_answers: Iterable[str] = ()) -> bool:
    """Whether a base model's text begins with the answer, and not with a longer one or a longer
    number.
    """
    text, answer = normalise(text), normalise(answer)
    if NUMBER.fullmatch(answer):
        number = NUMBER.match(text)
        return number is not None and float(number[0]) == float(answer)
    longer = (o for o in map(normalise, other_answers) if len(o) > len(answer))
    return text.startswith(answer) and not any(map(text.startswith, longer))


def _repeated(said: str, question: str) -> int:
    """How many characters at the reply's beginning merely repeat the question's.

    None if they make up a sentence of their own: 你好！ and 你好呀！ are replies to 你好.
    """
    asked = normalise(question)
    n = 0
    while n < min(len(said), len(asked)) and said[n] == asked[n]:
        n += 1
    whole_question = n == len(asked) and question.rstrip().endswith(("?", "？"))
    own_sentence = n == len(said) or said[n] in "。.!！,，;；~呀啊"
    return 0 if own_sentence and not whole_question else n


def _spans(part: str, text: str) -> list[tuple[int, int]]:
    return [(m.start(), m.start() + len(part)) for m in re.finditer(f"(?={re.escape(part)})", text)]
