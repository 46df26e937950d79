"""Does a reply give the answer? The rules stand in `grade`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tinyllm_lib.evaluate.plain import NUMBER, plain

PARTICLES = "的了啊呀呢吧哦啦地"
JOINED = "(?:或者?|还是|以及|[、和与跟及同/])"
EITHER = re.compile("或(?!许)|(?<![我它也])还是|要么|也可能|也许.+也许|可能.+可能")
NOT = "(?:不(?![过仅但丹])|没(?!错)|[并而]非|无法|未必|误以为|怎么会)"
UNKNOWN = re.compile("(?:不|没有?|无法)太?(?:知道|清楚|确定|认识|了解|听说|听过|告诉|会$)")
TAKEN_BACK = re.compile(
    "(?<![^,])(?:[哦啊,]|抱歉)*不对?[了啊]?(?![^,])|不对|(?<![没出])错误?[了的]|更正"
)
ASKS_BACK = ",(?![对是不没或真难会]|要么|还是|也?可能|我(?!们)|应该|这样|[你您](?:说|确))[^,_]+[?]$"
ASKS = re.compile("[?]$|吗(?=$|,)|是不是")
IDLE = re.compile("(?:好的?|嗯|哦|啊|[你您]好[呀啊]?|当然|是的|抱歉|对不起|,)+")
CONCLUSION = re.compile(".*(?:所以|一共|的是|排(?=第))")
# What may stand before an answer of one character, what not before a longer one; what may follow.
BEFORE_SHORT = r"^|[(=是为叫在用的属称作写示]|代表|对应|等于|[\d一][个种位座只条]?"
BEFORE_LONG = "(?<!赤道)(?<![非南北东西新内外白前比、和与跟及同/或])"
FOLLOWS = f"$|[()=<>{PARTICLES}是这在为就才也都更最来先写建提所简有属位里]|等(?!.*[城国人])"
KIND = "[人族类省市州县国代]|元素|共和国|特区|时期|[东西南北中]部"
YES = "(?:当然|完全|一点|确实|正|应该|我觉得|[你您]说得)*"
YES += f"(?:是|对|没错|正确|如此|(?<=当然)|(?<=确实))[{PARTICLES}]*"
NO = "(?:当然|[才并]|[你您]?[记说弄])?"
NO += f"(?:不(?:是这样|[是会]|太?对|正确)?|没有?|错误?|否|并非如此)[{PARTICLES}]*"
DENIES = re.compile("^.*不(?:[是在对]|属于)?")  # what it is that a clause denies


class Verdict(NamedTuple):
    """Whether a reply is right, and in a short sentence why it is or is not."""

    right: bool
    why: str


def grade(reply: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a reply, usually a sentence, gives the answer that a row of an exam expects.

    Width, spaces, quotes and emoji do not matter, nor Chinese numerals for figures (八十二 is 82).

    * **The first sentence decides**; interjections and a question of its own come before it. What
      follows does not matter, unless it corrects (82。不，83。): the correction counts.
    * **The answer ends a clause** of it, or is followed by a particle (的, 了), by 是, 在 and the
      like, by words of the question, or by a word for its kind (人, 市, 元素): 大小 does not give
      小, nor 几内亚比绍 几内亚. Words merely repeated from the question are no answer, unless the
      question offers it (立春和清明哪个在前): there the first named counts.
    * **Wrong are** a denied answer (不是巴黎; two denials cancel), one of several (巴黎或里昂), a
      question (是巴黎吗？), 不知道, and another object of the relation, one of `others`, unless it
      stands in the question or is denied.
    * **A number** is the last one of the sentence; asked without figures (第几颗行星), of the first
      clause that has one. **Latin answers** are whole words, with capitals as the answer has them.
    * **Yes and no** (answer 是的 or 不是): the clause that says it decides, also behind the fact;
      no other may contradict it. **Not knowing** (answer 不知道): in any words, and no answer.

    Args:
        row: `question`, `answer`, and if you like `answers` (other right forms), `others`,
            `all_of` and `none_of` (texts the whole reply must and must not hold), `min_chars` and
            `max_chars` (punctuation not counted), `free` (only these four decide).

    Raises:
        ValueError: an answer without a letter or a digit.
    """
    wanted = [*map(plain, (row["answer"], *row.get("answers", ())))]
    if not all(any(map(str.isalnum, form)) for form in wanted):
        raise ValueError(f"the answer {row['answer']!r} holds neither a letter nor a digit.")
    why = _broken(reply, row)
    if why or row.get("free"):
        return Verdict(not why, why or "keeps to what was asked")
    said = plain(reply)
    for i, form in enumerate(wanted):  # a line of a poem is one piece
        wanted[i] = re.sub("[,。?]", "", form)
        said = said.replace(form, wanted[i])
    asked = Asked(wanted, plain(row.get("question", "")), [*map(plain, row.get("others", ()))])
    if not any(map(str.isalnum, said)):
        why = "says nothing"
    elif wanted[0] in ("是的", "不是"):
        why = asked.why_not_said(said)
    elif UNKNOWN.search(wanted[0]):
        why = asked.why_not_unknown(said)
    else:
        clauses, why = asked.statement(said)
        number = all(map(NUMBER.fullmatch, wanted))
        why = why or (asked.why_no_number if number else asked.why_not_named)(clauses)
    return Verdict(not why, why or "gives the answer")


def is_right(reply: str, answer: str, question: str = "", **row: Any) -> bool:
    """Whether a reply gives the answer, or one of its other forms: the rules of `grade`."""
    return grade(reply, {**row, "question": question, "answer": answer}).right


def goes_on_with(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a base model's text begins with an answer of a row, and not with a longer word."""
    clause = re.split("[,。?]", plain(text))[0]
    forms = [row["answer"], *row.get("answers", ())]
    right = clause.startswith(tuple(map(plain, forms)))
    right = right and grade(clause, {**row, "question": ""}).right
    return Verdict(right, f"goes on with {'the answer' if right else 'another text'}")


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


class Asked:
    """A question and the answers wanted; each `why_…` says what is wrong with a reply, or ""."""

    def __init__(self, wanted: list[str], question: str, others: list[str]) -> None:
        self.wanted, self.question, self.others = wanted, question, others
        self.forms = f"(?:{'|'.join(map(pattern, sorted(wanted, key=len, reverse=True)))})"
        pairs = {question[i : i + 2] for i in range(len(question) - 1)}
        words = sorted(p for p in pairs if re.fullmatch(r"[^\W\d是的在有叫为和用]{2}", p))
        self.words = f"(?:{'|'.join(words) or '(?!)'})"
        # How begins what the question offers beside the answer: 清明 in 立春和清明哪个在前.
        two, joined = r"([^\W在]{1,2})", f"(?:在.)?{JOINED}"
        offered = re.search(f"{two}{joined}{self.forms}|{self.forms}{joined}{two}", question)
        self.rival = offered[1] or offered[2] if offered else ""

    def sentence(self, said: str) -> str:
        """The sentence that decides: the first that states something, or what corrects it."""
        chosen = ""
        for sentence in re.findall(r"[^。?]+\??", said):
            if chosen and not TAKEN_BACK.match(sentence):
                continue
            asks = sentence.endswith("?") or sentence.startswith("不是")
            idle = sentence == self.question or asks or IDLE.fullmatch(sentence)
            chosen = "" if idle and not re.search(self.forms, sentence) else sentence
        return TAKEN_BACK.split(chosen or sentence)[-1]

    def statement(self, said: str) -> tuple[list[str], str]:
        """The clauses of the sentence that decides, and why it states nothing, or ""."""
        sentence = re.sub(f"{self.forms}(?:{JOINED}|,)(?={self.forms})", "", self.sentence(said))
        bare = re.sub(self.forms, "_", sentence.replace(self.question, ""))
        bare = re.sub(ASKS_BACK, "", bare)
        if ASKS.search(bare):
            return [], "asks instead of answering"
        if any(UNKNOWN.search(c) and self.denies(c) for c in sentence.split(",")):
            return [], "says that it does not know"
        if EITHER.search(bare) or (not self.rival and re.search(f"_{JOINED}|{JOINED}_", bare)):
            return [], "names an alternative"
        end = CONCLUSION.sub("", sentence)
        found = re.search(rf"\d|{self.forms}", end)
        return re.split(",|而(?=是|非|不)", end if found else sentence), ""

    def denies(self, clause: str) -> bool:
        """Whether a clause denies what it names; two denials cancel, the question's are none."""
        clause = re.sub(self.forms, "_", clause)
        found = (clause[m.start() : m.start() + 3] for m in re.finditer(NOT, clause))
        return sum(part not in self.question for part in found) % 2 == 1

    def names(self, form: str, clause: str, repeated: bool = False) -> bool:
        """Whether a clause names something by itself (`repeated`: or in words of the question)."""
        start, end = BEFORE_LONG, f"(?:{KIND})*(?:{FOLLOWS})|比?{self.words}"
        if form.isascii():
            start, end = "", "(?! )"
        elif re.match(NOT, form):
            start = "^|[我你它也还]"
        elif len(form) == 1:
            start = BEFORE_SHORT
        for m in re.finditer(pattern(form), clause):
            before, after = clause[: m.start()], clause[m.end() :]
            again = before[-1:] not in "是为叫在" and before[-1:] + form in self.question
            again |= after[:1] not in PARTICLES[1:] and form + after[:1] in self.question
            counted = before[-1:] == "一" and after[:1] in self.question  # 一本书
            starts = re.search(f"(?:{start}|{self.words})$", before)
            if starts and (counted or re.match(end, after)) and (repeated or not again):
                return True
        return False

    def names_other(self, clauses: list[str]) -> str:
        """Says which of the others a reply affirms."""
        bare = [re.sub(self.forms, "_", clause) for clause in clauses if not self.denies(clause)]
        for other in self.others:
            known = other in self.question or other in self.wanted or NUMBER.fullmatch(other)
            if not known and any(other in c and self.names(other, c, True) for c in bare):
                return f"names {other}, another object of the relation"
        return ""

    def why_not_named(self, clauses: list[str]) -> str:
        """Of an answer that is a name or a word."""
        repeated = bool(self.rival)
        found = [c for c in clauses if any(self.names(f, c, repeated) for f in self.wanted)]
        within = found or [c for c in clauses if re.search(self.forms, c)]
        if any(map(self.denies, within)):
            return "denies the answer"
        if not found:
            said = "gives the answer only within other words"
            return said if within else "does not give the answer"
        affirmed = [c for c in clauses if not self.denies(c)]
        if repeated and re.match(f"((?!{self.forms}).)*{self.rival}", ",".join(affirmed)):
            return f"names {self.rival} first"
        return self.names_other(affirmed)

    def why_no_number(self, clauses: list[str]) -> str:
        """Of an answer that is a number alone."""
        asked = NUMBER.findall(self.question)
        known = [] if set(asked) & set(self.wanted) else asked
        clauses = [c for c in clauses if not self.denies(c)]
        numbers = ([n for n in NUMBER.findall(c) if n not in known] for c in clauses)
        if not (found := [of for of in numbers if of]):
            return "no number"
        number = found[0][0] if self.rival else found[-1 if asked else 0][-1]
        if float(number) not in map(float, self.wanted):
            return f"says {number} at its end"
        return self.names_other(clauses)

    def why_not_said(self, said: str) -> str:
        """Of yes and no; the verdict may follow the fact (首都是堪培拉，不是悉尼)."""
        sentence = re.split("。|(?<=[?])", re.sub("^(?:(?:嗯|抱歉|对不起)[,。])+", "", said))[0]
        sentence = re.sub(f"{ASKS_BACK}|(?:就|的?确实?)(?=是)|的|(?<=,)所以", "", sentence)
        clauses = sentence.split(",")
        if ASKS.search(sentence) or UNKNOWN.search(clauses[0]) or clauses[0] == "对不起":
            return "does not say yes or no"
        claim = self.question.replace("是不是", "是").split(",")[0]
        claim = re.sub("^(?:请问|你知道|我觉得|我记得|听说|有人说)|[吗吧?的]", "", claim)
        so = pattern(claim or "?")

        def denied(c: str) -> bool:  # 不是悉尼, but of another name than the question's
            parts = (c[m.start() : m.start() + 2] for m in re.finditer(NOT, c))
            what = re.findall("星?(?:第?[A-Za-z0-9]+|.{,2})", DENIES.sub("", c))[0]
            named = not what or re.search(BEFORE_LONG + pattern(what), claim)
            return bool(named) and sum(p not in claim for p in parts) % 2 == 1

        decides = re.compile(f"{YES}|{NO}|.*{so}.*").fullmatch
        first, *rest = sorted(clauses, key=lambda c: not (decides(c) or denied(c)))
        affirmed = (claim.endswith(first) or re.search(so, first)) and not denied(first)
        yes = re.fullmatch(YES, first) or affirmed
        no = re.fullmatch(NO, first) or denied(first)
        if not (yes or no or first in self.wanted):
            return "begins with neither yes nor no"
        if yes if self.wanted[0] == "不是" else no and not yes:
            return f"begins with {first}"
        told = {n for c in clauses if not re.search(NOT, c) for n in NUMBER.findall(c)}
        if yes and (any(map(denied, rest)) or told - set(NUMBER.findall(self.question))):
            return "says yes, and then something else"
        what = BEFORE_LONG + pattern(DENIES.sub("", first) or claim or "?") + "$"
        if not yes and any(re.search(so, c) or re.search(what, c) for c in rest):
            return "says no, and then what it denies"
        return self.names_other([first, *rest]) if yes else ""

    def why_not_unknown(self, said: str) -> str:
        """Of an answer that says that something is not known."""
        sentence = self.sentence(said)
        found = re.search(f"[^,]*(?:{UNKNOWN.pattern}|{self.forms})[^,]*", sentence)
        if not found or sentence.endswith("?"):
            return "does not say that it does not know"
        if re.search(NOT, re.sub(self.forms, "", UNKNOWN.sub("", found[0]))):
            return "denies that it does not know"
        after = sentence[found.end() :]
        if re.search("[是在叫为]", after):
            return "answers all the same"
        return self.names_other([found[0], *after.split(",")])


def pattern(form: str) -> str:
    """A pattern for a text: Latin words and figures whole, capitals as it has them."""
    start = r"(?<![A-Za-z\d.-])" if form[0].isascii() else ""
    end = r"(?![A-Za-z\d])" if form[-1].isascii() else ""
    capitals = form.isascii() and form != form.lower()
    return f"{start}(?{'-' * capitals}i:{re.escape(form)}){end}"
