"""Does a reply give the answer? `grade` says so of what a chat model says, and why;
`goes_on_with` of a base model's text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tinyllm_lib.evaluate.plain import NUMBER, plain

JOINED = "或者|或是|或|还是|以及|[、和与跟及同/]"
PARTICLES = "的了啊呀呢吧哦嘛哟啦地"
YES = re.compile(rf"(?:当然|确实|应该|就|嗯|哦)*(?:是|对|没错|正确)[{PARTICLES}]*")
NO = re.compile(rf"(?:当然|应该|并|才|嗯|哦)*(?:不[是对会能行]?|没有?|错|并非)[{PARTICLES}]*")
DENIAL = (
    "不(?![过仅但管愧久丹锈韦起]|用说|列颠)|没(?!错|[记说弄]错|问题)|[从尚并]未|未曾|无法"
    "|(?:[并绝决而实才皆]|(?<![^,]))非(?![洲常金])"
)
UNKNOWN = re.compile(
    "(?:不|没有?|无法|[从尚并]?未曾?)(?:太|大|是很|能|敢|曾|有)*(?:知道|清楚|确定|肯定|记得"
    "|认识|了解|晓得|听说|听过|见过|告诉|让我|说过|回答|明白|会$)|说不[准好]|不好说"
)
TAKEN_BACK = re.compile(
    "(?:^|(?<=,))(?:[哦噢啊呃]|等等|抱歉|对不起|,)*(?:不对?[了啊呀]?(?:,|$)|应该?[是为]|改为|准确地说"
    "|[更纠改修]正[为是,])|(?<!对)不对(?![称劲])|(?<!没)(?<!没[记说弄])错[了的]"
)
ALTERNATIVE = re.compile("或(?!许)|还是|要么|抑或|也有?可能|也有人说|也许.+也许|可能.+可能")
TAG = "[这那]?[是对不没还或要真]"
INTERJECTION = re.compile(
    "(?:好的?|嗯+|哦|啊|哈+|[你您]好[呀啊]?|当然|是的|[很真]?抱歉|对不起|不好意思|让我想[一想]*|我想[一想]*|,)+"
)
# What may stand before an answer of one character, what not before a longer one; what may follow.
SHORT_START = re.compile(
    r"(?:^|[(=:是为叫在用的属称即作说写]|代表|表示|对应|等于|叫做|[\d这那每][个种位座只条]?)$"
)
OTHER_START = re.compile(rf"(?:[非半类准亚反伪副南北东西新内外白前]|赤道|{JOINED})$")
SHORT_END = re.compile(f"$|[()=<>{PARTICLES}这来]|元素")
LONG_END = re.compile(
    "(?:[人族类省市州县国]|元素|动物|(?:人民)?共和国|王国|联邦|特区|(?:特别)?行政区|自治区|地区"
    "|先生|女士|时期|朝代|[东西南北中]{1,2}部)*"
    rf"(?:$|[()=<>{PARTICLES}是这那在为就也都才又更最先来里写创发建提所有属叫做作位定离简]|等于)"
)


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
    if not all(any(c.isalnum() for c in form) for form in wanted):
        raise ValueError(f"the answer {row['answer']!r} holds neither a letter nor a digit.")
    why = _broken(reply, row)
    if why or row.get("free"):
        return Verdict(not why, why or "keeps to what was asked")
    question, said = plain(row.get("question", "")), plain(reply)
    for i, form in enumerate(wanted):  # a line of a poem is one piece
        wanted[i] = re.sub("[,。?]", "", form)
        said = said.replace(form, wanted[i])
    if not any(map(str.isalnum, said)):
        return Verdict(False, "says nothing")
    others = [plain(other) for other in row.get("others", ())]
    if wanted[0] in ("是的", "不是"):
        why = _says_otherwise(said, wanted, question, others)
    elif UNKNOWN.search(wanted[0]):
        why = _claims_to_know(said, wanted, question, others)
    elif all(map(NUMBER.fullmatch, wanted)):
        why = _misses_number(plain(reply, count=True), wanted, question, others)
    else:
        why = _misses(said, wanted, question, others)
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
        elif clause.startswith(form) and _stands(form, clause, ""):
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
        if part in reply or plain(part) and plain(part) in said:
            return f"holds {part}"
    if not row.get("min_chars", 0) <= size <= row.get("max_chars", size):
        return f"has {size} characters"
    return ""


def _misses(said: str, wanted: list[str], question: str, others: Sequence[str]) -> str:
    """Why a reply does not give one of the `wanted` texts; "" if it does."""
    clauses, why = _statement(said, wanted, question)
    if why:
        return why
    if offered := _offered(question, wanted):  # 立春和清明中，…  长江比黄河长
        both = rf"(?:{_any(wanted)})(?:{JOINED}){offered}|{offered}(?:{JOINED})(?:{_any(wanted)})"
        clauses = [re.sub(f"{both}|(?<=.)比{offered}.*", "", clause) for clause in clauses]
    asked = "" if offered else question
    if not any(_stands(form, clause, asked) for form in wanted for clause in clauses):
        within = any(form in clause for form in wanted for clause in clauses)
        return f"does not give {wanted[0]}" + (" by itself" if within else "")
    affirmed = [c for c in clauses if not _denied(c, wanted, question)]
    denied = [c for c in clauses if c not in affirmed]
    if any(_stands(form, clause, "") for form in wanted for clause in denied):
        return "the answer stands after a denial"
    if offered and re.search(f"{offered}.*(?:{_any(wanted)})", ",".join(affirmed)):
        return f"names {offered} first"
    return _other(affirmed, wanted, question, others)


def _misses_number(said: str, wanted: list[str], question: str, others: Sequence[str]) -> str:
    """Why a reply does not give one of the `wanted` numbers; "" if it does."""
    clauses, why = _statement(said, wanted, question)
    if why:
        return why
    clauses = [re.sub(r"比\d+", "", c) for c in clauses if not _denied(c, wanted, question)]
    asked = NUMBER.findall(question)
    offered = set(wanted) & set(asked)
    own = [c for c in clauses if set(NUMBER.findall(c)) - set(asked)]
    stated = [c for c in (clauses if offered else own or clauses) if NUMBER.search(c)]
    if not stated:
        return "no number" if not NUMBER.search(said) else "denies its number"
    if offered:
        number = next((n for c in stated for n in NUMBER.findall(c) if n in asked), "another")
    else:
        clause = stated[-1 if asked or not question else 0]
        numbers = NUMBER.findall(clause)
        if "第几" in question:  # 八颗行星里，水星排第一
            numbers = re.findall(r"(?<=第)\d+", ",".join(stated))[:1] or numbers
        number = [n for n in numbers if n not in asked or own == []][-1]
        if re.search(rf"\d(?:{JOINED}|[到至]){re.escape(number)}(?!\d)", clause):
            return "names several numbers"
    if number == "another" or float(number) not in map(float, wanted):
        return f"says {number} at its end"
    return _other(clauses, wanted, question, others)


def _says_otherwise(said: str, wanted: list[str], question: str, others: Sequence[str]) -> str:
    """Why a reply does not say the yes or no that is wanted; "" if it does."""
    sentence = re.split("[。]|(?<=[?])", re.sub("^(?:[嗯哦啊]+[,。])+", "", said))[0]
    first, *rest = re.sub("^(?:抱歉|对不起|不好意思),?", "", sentence).split(",")
    claim = re.sub("^请问|[吗吧?]", "", question.replace("是不是", "是")).split(",")[0]
    if sentence.endswith("?") or re.search("吗|是不是|对不对", first) or UNKNOWN.search(first):
        return "does not say yes or no"
    no = bool(NO.fullmatch(first)) or _denied(first, [], "") and not YES.fullmatch(first)
    bare = re.sub("确实|的确|当然|[,的]", "", first)
    yes = not no and bool(
        YES.fullmatch(first)
        or len(bare) > 1
        and bare.startswith("是")
        and bare in claim.replace("的", "")
        or claim
        and claim.replace("的", "") in bare
    )
    if not (yes or no or first in wanted):
        return "begins with neither yes nor no"
    if wanted[0] == "不是":
        if yes:
            return f"begins with {first}"
        again = any(claim in c and not _denied(c, [], "") for c in rest)
        return "says no, and then what it denies" if again else ""
    if no:
        return f"begins with {first}"
    if any(_denied(c, [], "") for c in rest):
        return "says yes, and then denies it"
    return _other([first, *rest], wanted, question, others)


def _claims_to_know(said: str, wanted: list[str], question: str, others: Sequence[str]) -> str:
    """Why a reply does not say that it does not know; "" if it does."""
    clauses = _sentence(said, wanted, question).split(",")
    unknown = [i for i, c in enumerate(clauses) if UNKNOWN.search(c) or any(f in c for f in wanted)]
    if not unknown or clauses[-1].endswith("?"):
        return "does not say that it does not know"
    clause = UNKNOWN.sub("", clauses[unknown[0]])
    if re.search(DENIAL, clause.replace(wanted[0], "")):
        return "denies that it does not know"
    if any(
        re.search("但|不过|可是|可能|也许|应该|大概|猜", c) and re.search("[是在叫为]", c)
        for c in clauses[unknown[0] :]
    ):
        return "answers all the same"
    return _other(clauses, wanted, question, others)


def _sentence(said: str, wanted: Sequence[str], question: str) -> str:
    """The sentence that decides: the first that states something, or what corrects it."""
    chosen = ""
    for sentence in re.findall(r"[^。?]+\??", said):
        gives = any(form in sentence for form in wanted)
        idle = INTERJECTION.fullmatch(sentence) or sentence.endswith("?") or sentence[:2] == "不是"
        if not chosen or TAKEN_BACK.match(sentence):
            chosen = sentence
        if chosen == sentence and (
            idle and not gives or sentence == question and sentence[-1] == "?"
        ):
            last, chosen = sentence, ""
    if not chosen:
        return last
    return chosen[max((m.end() for m in TAKEN_BACK.finditer(chosen)), default=0) :]


def _statement(said: str, wanted: list[str], question: str) -> tuple[list[str], str]:
    """The clauses of the sentence that decides, a denial as one of its own; why it states none."""
    sentence = _sentence(said, wanted, question)
    forms = _any(wanted)
    sentence = re.sub(rf"(?:{forms})(?:{JOINED}|,)(?=(?:{forms}))", "", sentence)  # 黔或贵
    sentence = re.sub(
        rf"(?<=[^,]),(?!{TAG}|[^,]*(?:{forms}))[^,]*(?:[我你您]|什么|怎)[^,]*\?$", "", sentence
    )
    bare = re.sub(forms, "_", sentence.replace(question, ""))
    if bare.endswith("?") or re.search("吗(?=$|,)|是不是|是否|对不对", bare):
        return [], "asks instead of answering"
    if any(UNKNOWN.search(c) and _denied(c, wanted, question) for c in sentence.split(",")):
        return [], "says that it does not know"
    if ALTERNATIVE.search(bare):
        return [], "names an alternative"
    sentence = re.sub(".*(?:所以|因此|因而|可见|一共|总共)", "", sentence)
    if _offered(question, wanted) or set(wanted) & set(NUMBER.findall(question)):
        sentence = re.sub(".*,(?=[^,]*的是)", "", sentence)  # …，在前的是立春
    sentence = re.sub("而(?=是|非|不)", ",", sentence)
    if re.search(rf"(?:{forms})[才并可绝]?(?:{DENIAL})[^,]*(?:{_words(question)})$", sentence):
        return [], "denies the answer"
    apart = re.sub(rf"{forms}|(?:^|(?<=,))?([才并可绝]?(?:{DENIAL})[^,]*)", _apart, sentence)
    return apart.strip(",").split(","), ""


def _apart(found: re.Match[str]) -> str:
    return f",{found[1]}" if found[1] else found[0]


def _denied(clause: str, wanted: Iterable[str], question: str) -> bool:
    """Whether a clause denies what it names; two denials cancel, those of the question are none."""
    for form in wanted:
        clause = re.sub(_pattern(form), "_", clause)
    found = (clause[m.start() : m.start() + 3] for m in re.finditer(DENIAL, clause))
    return sum(part not in question for part in found) % 2 == 1


def _other(
    clauses: Iterable[str], wanted: Sequence[str], question: str, others: Iterable[str]
) -> str:
    """Says which of `others` a reply affirms, outside the answer and the question's words."""
    bare = [re.sub(_any(wanted), "_", c) for c in clauses if not _denied(c, wanted, question)]
    for other in others:
        if other not in question and other not in wanted and not NUMBER.fullmatch(other):
            if any(other in clause and _stands(other, clause, "") for clause in bare):
                return f"names {other}, another object of the relation"
    return ""


def _offered(question: str, wanted: Iterable[str]) -> str:
    """How begins what a question offers beside the answer: 清明 in 立春和清明哪个在前."""
    two, joined = r"([^\W在]{2})", f"(?:在.)?(?:{JOINED})"
    for form in map(_pattern, wanted):
        if found := re.search(f"{two}{joined}{form}|{form}{joined}{two}", question):
            return found[1] or found[2]
    return ""


def _stands(form: str, clause: str, question: str) -> bool:
    """Whether a text stands in a clause by itself, and not in words repeated from the question."""
    for m in re.finditer(_pattern(form), clause):
        before, after = clause[: m.start()], clause[m.end() :]
        if (
            before
            and before[-1] not in "是为叫在"
            and before[-1] + form in question
            or (after and after[0] not in PARTICLES[1:] and form + after[0] in question)
        ):
            continue
        if re.match(DENIAL, form) and not re.search("(?:^|[我它他她都也就还])$", before):
            continue
        words = re.compile(_words(question))
        if form.isascii():
            if not re.search(f"(?:{JOINED})$", before) and not re.match(f" |{JOINED}", after):
                return True
        elif len(form) == 1:
            counted = before[-1:].isdigit() and after[:1] and after[0] in question  # 一本书
            if (SHORT_START.search(before) or before[-2:] and words.fullmatch(before[-2:])) and (
                SHORT_END.match(after)
                or re.match(f"是.*(?:{words.pattern})$", after)
                or counted
                or words.match(after)
            ):
                return True
        elif not OTHER_START.search(before) or words.fullmatch(before[-2:]):
            if (
                LONG_END.match(after)
                or words.match(after.removeprefix("比"))
                or (len(after) == 1 and after in question)
            ):
                return True
    return False


def _words(question: str) -> str:
    """A pattern for two characters in a row that the question has, 是 and the like left out."""
    pairs = {question[i : i + 2] for i in range(len(question) - 1)}
    kept = sorted(p for p in pairs if re.fullmatch(r"[^\W\d是的在有叫为和用]{2}", p))
    return "|".join(kept) or "(?!)"


def _pattern(form: str) -> str:
    """A pattern for a text: Latin words and figures whole, capitals as it has them."""
    latin = re.fullmatch(r"[\x00-\x7f]+", form) and form != form.lower()
    start = "(?<![A-Za-z0-9])" if form[0].isascii() and form[0].isalpha() else ""
    end = "(?![A-Za-z0-9])" if form[-1].isascii() and form[-1].isalnum() else ""
    if form[0].isdigit():
        start = r"(?<![\d.-])"
    return f"{start}{'' if latin else '(?i:'}{re.escape(form)}{'' if latin else ')'}{end}"


def _any(forms: Iterable[str]) -> str:
    return "|".join(map(_pattern, sorted(forms, key=len, reverse=True)))
