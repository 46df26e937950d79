"""Does a reply give the answer? `grade` says so of what a chat model says, and why;
`goes_on_with` of a base model's text.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tinyllm_lib.evaluate.clauses import DENIAL, JOINED, PARTICLES, UNKNOWN, Clauses
from tinyllm_lib.evaluate.plain import NUMBER, plain

YES = re.compile(f"(?:当然|确实|应该|就|嗯|哦)*(?:是|对|没错|正确)(?:这样)?[{PARTICLES}]*")
NO = re.compile(f"(?:当然|应该|并|才|嗯|哦)*(?:不[是对会能行]?|没有?|错|并非)[{PARTICLES}]*")
OPENING = re.compile("^(?:请问|想问一下|你知道|我觉得|我记得|我想|听说|有人说),?|[吗吧?]")
GUESS = re.compile("(?:但|不过|可是|可能|也许|应该|大概|猜)[^,]*[是在叫为]")


class Verdict(NamedTuple):
    """Whether a reply is right, and in a short sentence why it is or is not."""

    right: bool
    why: str


def grade(reply: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a reply, usually a sentence, gives the answer that a row of an exam expects.

    Width, spaces, quotes and emoji do not matter, nor whether a number is written in figures
    (八十二 is 82, 一千米 is 1000米, 6月1号 is 6月1日). Then:

    * **The first sentence decides**; interjections and a question of its own come before it.
      What follows does not matter, unless it corrects (82。不，83。): the correction counts.
    * **The answer ends a clause** of it, or is followed by a particle (的, 了), by 是, 在 and the
      like, by words of the question, or by a word for its kind (人, 市, 元素, 共和国): 大小 does
      not give 小, 日本 not 本, 几内亚比绍 not 几内亚. Words merely repeated from the question are
      no answer, unless the question offers it (立春和清明哪个在前): there the first named counts.
    * **A denied answer is wrong** (不是巴黎; two denials cancel), and so is one of several
      (巴黎或里昂), a question (是巴黎吗？), and 不知道.
    * **Another object of the relation**, one of `others`, makes it wrong, unless it stands in the
      question or is denied.
    * **A number** is the last one of the sentence; asked without figures (第几颗行星), of the first
      clause that has one. **Latin answers** are whole words, and capitals matter where the answer
      has one: Ir and i are not I.
    * **Yes and no** (answer 是的 or 不是): the first clause decides; what follows must not
      contradict it. **Not knowing** (answer 没有听说过, 不知道): every way to say so is right, and
      an answer all the same is wrong.

    Args:
        row: `question`, `answer`, and if you like `answers` (other right forms), `others`,
            `all_of` and `none_of` (texts the whole reply must and must not hold), `min_chars` and
            `max_chars` (punctuation not counted), `free` (only these four decide).

    Raises:
        ValueError: an answer without a letter or a digit.
    """
    wanted = [plain(form) for form in (row["answer"], *row.get("answers", ()))]
    if not all(any(map(str.isalnum, form)) for form in wanted):
        raise ValueError(f"the answer {row['answer']!r} holds neither a letter nor a digit.")
    why = _broken(reply, row)
    if why or row.get("free"):
        return Verdict(not why, why or "keeps to what was asked")
    said = plain(reply)
    for i, form in enumerate(wanted):  # a line of a poem is one piece
        wanted[i] = re.sub("[,。?]", "", form)
        said = said.replace(form, wanted[i])
    clauses = Clauses(wanted, plain(row.get("question", "")))
    others = [plain(other) for other in row.get("others", ())]
    if not any(map(str.isalnum, said)):
        why = "says nothing"
    elif wanted[0] in ("是的", "不是"):
        why = _says_otherwise(said, clauses, others)
    elif UNKNOWN.search(wanted[0]):
        why = _claims_to_know(said, clauses, others)
    elif all(map(NUMBER.fullmatch, wanted)):
        why = _misses_number(plain(reply, count=True), clauses, others)
    else:
        why = _misses(said, clauses, others)
    return Verdict(not why, why or "gives the answer")


def is_right(
    reply: str,
    answer: str,
    question: str = "",
    *,
    answers: Iterable[str] = (),
    others: Iterable[str] = (),
) -> bool:
    """Whether a reply gives the answer, or one of its other forms: the rules of `grade`."""
    row = {"question": question, "answer": answer, "answers": [*answers], "others": [*others]}
    return grade(reply, row).right


def goes_on_with(
    text: str, answer: str, others: Iterable[str] = (), answers: Iterable[str] = ()
) -> bool:
    """Whether a base model's text begins with the answer or another form of it, and not with a
    longer one of `others`, a longer number or a longer word.
    """
    text = plain(text)
    clause = re.split("[,。?]", text)[0]
    for form in map(plain, (answer, *answers)):
        if NUMBER.fullmatch(form):
            number = NUMBER.match(text)
            if number and float(number[0]) == float(form):
                return True
        elif clause.startswith(form) and Clauses([form], "").names(form, clause):
            longer = (plain(o) for o in others if len(plain(o)) > len(form))
            return not any(o != form and text.startswith(o) for o in longer)
    return False


def _broken(reply: str, row: Mapping[str, Any]) -> str:
    """The constraint that a reply breaks, as a sentence; "" for none."""
    said, size = plain(reply), sum(c.isalnum() for c in reply)
    for part in row.get("all_of", ()):
        if part not in reply and plain(part) not in said:
            return f"lacks {part}"
    for part in row.get("none_of", ()):
        if part in reply or (plain(part) and plain(part) in said):
            return f"holds {part}"
    if not row.get("min_chars", 0) <= size <= row.get("max_chars", size):
        return f"has {size} characters"
    return ""


def _misses(said: str, of: Clauses, others: Iterable[str]) -> str:
    """Why a reply does not give a text that is wanted; "" if it does."""
    clauses, why = of.statement(said)
    if why:
        return why
    if rival := of.rival:  # 立春和清明中，立春在前  长江比黄河长
        both = f"{of.forms}{JOINED}{rival}|{rival}{JOINED}{of.forms}|(?<=.)比{rival}.*"
        clauses = [re.sub(both, "", clause) for clause in clauses]
    named = [c for c in clauses if any(of.names(form, c, bool(rival)) for form in of.wanted)]
    if not named:
        within = any(form in clause for form in of.wanted for clause in clauses)
        return "gives the answer only within other words" if within else "does not give the answer"
    if any(of.denies(c) for c in clauses if any(of.names(form, c, True) for form in of.wanted)):
        return "the answer stands after a denial"
    affirmed = [c for c in clauses if not of.denies(c)]
    if rival and re.search(f"{rival}.*{of.forms}", ",".join(affirmed)):
        return f"names {rival} first"
    return _other(affirmed, of, others)


def _misses_number(said: str, of: Clauses, others: Iterable[str]) -> str:
    """Why a reply does not give a number that is wanted; "" if it does."""
    clauses, why = of.statement(said)
    if why:
        return why
    asked = NUMBER.findall(of.question)
    clauses = [re.sub(r"比\d+", "", c) for c in clauses if not of.denies(c)]
    found = [numbers for c in clauses if (numbers := NUMBER.findall(c))]
    if not found:
        return "denies its number" if NUMBER.search(said) else "no number"
    if offered := set(of.wanted) & set(asked):  # 37和45哪个大？
        number = next((n for numbers in found for n in numbers if n in asked), found[-1][-1])
    else:
        new = [kept for numbers in found if (kept := [n for n in numbers if n not in asked])]
        number = (new or found)[-1 if asked or not of.question else 0][-1]
    if "第几" in of.question:  # 八颗行星里，水星排第一
        number = (re.findall(r"(?<=第)\d+", ",".join(clauses)) or [number])[0]
    if not offered and any(re.search(rf"\d(?:{JOINED}|[到至]){number}(?!\d)", c) for c in clauses):
        return "names several numbers"
    if float(number) not in map(float, of.wanted):
        return f"says {number} at its end"
    return _other(clauses, of, others)


def _says_otherwise(said: str, of: Clauses, others: Iterable[str]) -> str:
    """Why a reply does not say the yes or no that is wanted; "" if it does."""
    says = Clauses(["是的"], "")  # here a denial is not part of the answer
    said = re.sub("^(?:(?:[嗯哦啊]+|抱歉|对不起|不好意思)[,。])+", "", said)
    sentence = re.split("。|(?<=[?])", said)[0]
    first, *rest = sentence.split(",")
    if sentence.endswith("?") or UNKNOWN.search(first) or re.search("吗|是不是|对不[对起]", first):
        return "does not say yes or no"
    claim = OPENING.sub("", of.question.replace("是不是", "是").split(",")[0]).replace("的", "")
    bare = re.sub("确实|的确|当然|的", "", first)
    repeats = claim and (claim in bare or (bare.startswith("是") and bare[1:] and bare in claim))
    yes = YES.fullmatch(first) or (repeats and not says.denies(first))
    no = NO.fullmatch(first) or says.denies(first)
    if not (yes or no or first in of.wanted):
        return "begins with neither yes nor no"
    if yes if of.wanted[0] == "不是" else no and not yes:
        return f"begins with {first}"
    if yes and any(map(says.denies, rest)):
        return "says yes, and then denies it"
    if not yes and any(claim in c.replace("的", "") and not says.denies(c) for c in rest):
        return "says no, and then what it denies"
    return _other([first, *rest], of, others) if yes else ""


def _claims_to_know(said: str, of: Clauses, others: Iterable[str]) -> str:
    """Why a reply does not say that it does not know; "" if it does."""
    clauses = of.sentence(said).split(",")
    while clauses and not (UNKNOWN.search(clauses[0]) or re.search(of.forms, clauses[0])):
        del clauses[0]
    if not clauses or clauses[-1].endswith("?"):
        return "does not say that it does not know"
    if re.search(DENIAL, re.sub(of.forms, "", UNKNOWN.sub("", clauses[0]))):
        return "denies that it does not know"
    if any(map(GUESS.search, clauses)):
        return "answers all the same"
    return _other(clauses, of, others)


def _other(clauses: Iterable[str], of: Clauses, others: Iterable[str]) -> str:
    """Says which of `others` a reply affirms, outside the answer and the question's words."""
    bare = [re.sub(of.forms, "_", clause) for clause in clauses if not of.denies(clause)]
    for other in others:
        known = other in of.question or other in of.wanted or NUMBER.fullmatch(other)
        if not known and any(other in c and of.names(other, c, True) for c in bare):
            return f"names {other}, another object of the relation"
    return ""
