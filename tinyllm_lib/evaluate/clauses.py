"""What a reply states, clause by clause: which sentence counts, what it names and denies."""

import re
from dataclasses import dataclass
from functools import cached_property

from tinyllm_lib.evaluate.plain import NUMBER

JOINED = "(?:或者|或是|或|还是|以及|[、和与跟及同/])"
PARTICLES = "的了啊呀呢吧哦嘛哟啦地"
DENIAL = (
    "(?:不(?![过仅但管愧久丹锈韦起]|用说|列颠)|没(?!错|[记说弄]错|问题)|[从尚并]未|未曾|无法"
    "|(?:[并绝决而实才皆]|(?<![^,]))非(?![洲常金]))"
)
UNKNOWN = re.compile(
    "(?:不|没有?|无法|[从尚并]?未曾?)(?:太|大|是很|能|敢|曾|有)*(?:知道|清楚|确定|肯定|记得"
    "|认识|了解|晓得|听说|听过|见过|告诉|让我|说过|回答|明白|会$)|说不[准好]|不好说"
)
TAKEN_BACK = re.compile(
    "(?:^|(?<=,))(?:[哦噢啊呃]|等等|抱歉|对不起|,)*(?:不对?[了啊呀]?(?:,|$)|应该?[是为]|改为"
    "|准确地说|[更纠改修]正[为是,])|(?<!对)不对(?![称劲])|(?<!没)(?<!没[记说弄])错[了的]"
)
ALTERNATIVE = re.compile("或(?!许)|还是|要么|抑或|也有?可能|也有人说|也许.+也许|可能.+可能")
CONCLUSION = re.compile(".*(?:所以|因此|因而|可见|一共|总共)")
INTERJECTION = re.compile(
    "(?:好的?|嗯+|哦|啊|哈+|[你您]好[呀啊]?|当然|是的|[很真]?抱歉|对不起|不好意思|让?我想[一想]*|,)+"
)
QUESTION = "吗(?=$|,)|是不是|是否|对不对"
ASIDE = "(?<=[^,]),(?![这那]?[是对不没还或要真])[^,_]*(?:[我你您]|什么|怎)[^,_]*\\?$"  # …，你呢？
# What may stand before an answer of one character, what not before a longer one; what may follow.
SHORT_START = re.compile(
    r"(?:^|[(=:是为叫在用的属称即作说写]|代表|表示|对应|等于|叫做|[\d这那每][个种位座只条]?)$"
)
OTHER_START = re.compile(f"(?:[非半类准亚反伪副南北东西新内外白前比]|赤道|{JOINED})$")
SHORT_END = f"$|[()=<>{PARTICLES}这来]|元素"
LONG_END = (
    "(?:[人族类省市州县国]|元素|动物|(?:人民)?共和国|王国|联邦|特区|(?:特别)?行政区|自治区|地区"
    "|先生|女士|时期|朝代|[东西南北中]{1,2}部)*"
    f"(?:$|[()=<>{PARTICLES}是这那在为就也都才又更最先来里写创发建提所有属叫做作位定离简]|等于)"
)


@dataclass
class Clauses:
    """Reads replies to a question, all in plain text, for one of the `wanted` answers."""

    wanted: list[str]
    question: str

    @cached_property
    def forms(self) -> str:
        """A pattern for any of the wanted answers."""
        longest_first = sorted(self.wanted, key=len, reverse=True)
        return f"(?:{'|'.join(map(pattern, longest_first))})"

    @cached_property
    def words(self) -> re.Pattern[str]:
        """Two characters in a row that the question has, 是 and the like left out."""
        pairs = (self.question[i : i + 2] for i in range(len(self.question) - 1))
        kept = sorted({p for p in pairs if re.fullmatch(r"[^\W\d是的在有叫为和用]{2}", p)})
        return re.compile(f"(?:{'|'.join(kept) or '(?!)'})")

    @cached_property
    def rival(self) -> str:
        """How begins what the question offers beside the answer: 清明 in 立春和清明哪个在前."""
        two, joined = r"([^\W在]{2})", f"(?:在.)?{JOINED}"
        found = re.search(f"{two}{joined}{self.forms}|{self.forms}{joined}{two}", self.question)
        return found[1] or found[2] if found else ""

    def sentence(self, said: str) -> str:
        """The sentence that decides: the first that states something, or what corrects it."""
        chosen = idle = ""
        for sentence in re.findall(r"[^。?]+\??", said):
            if chosen and not TAKEN_BACK.match(sentence):
                continue
            asks = sentence.endswith("?")
            silent = not any(form in sentence for form in self.wanted)
            if (asks and sentence == self.question) or (
                silent and (asks or sentence.startswith("不是") or INTERJECTION.fullmatch(sentence))
            ):
                idle, chosen = sentence, ""
            else:
                chosen = sentence
        ends = [m.end() for m in TAKEN_BACK.finditer(chosen)]
        return chosen[max(ends, default=0) :] if chosen else idle

    def statement(self, said: str) -> tuple[list[str], str]:
        """The clauses of that sentence, each denial as one of its own; and why it states none."""
        sentence = re.sub(f"{self.forms}(?:{JOINED}|,)(?={self.forms})", "", self.sentence(said))
        bare = re.sub(self.forms, "_", sentence.replace(self.question, ""))
        bare = re.sub(ASIDE, "", bare)
        if bare.endswith("?") or re.search(QUESTION, bare):
            return [], "asks instead of answering"
        if any(UNKNOWN.search(c) and self.denies(c) for c in sentence.split(",")):
            return [], "says that it does not know"
        if ALTERNATIVE.search(bare):
            return [], "names an alternative"
        sentence = re.sub("而(?=是|非|不)", ",", CONCLUSION.sub("", sentence))
        if self.rival or set(self.wanted) & set(NUMBER.findall(self.question)):
            sentence = re.sub(".*,(?=[^,]*的是)", "", sentence)  # …，在前的是立春
        if re.search(f"{self.forms}[才并可绝]?{DENIAL}[^,]*(?:{self.words.pattern}|是)$", sentence):
            return [], "denies the answer"
        denial = f"{self.forms}|([才并可绝]?{DENIAL}[^,]*)"
        apart = re.sub(denial, lambda m: f",{m[1]}" if m[1] else m[0], sentence)
        return re.sub(",+", ",", apart).strip(",").split(","), ""

    def denies(self, clause: str) -> bool:
        """Whether a clause denies what it names; two denials cancel, the question's are none."""
        clause = re.sub(self.forms, "_", clause)
        found = (clause[m.start() : m.start() + 3] for m in re.finditer(DENIAL, clause))
        return sum(part not in self.question for part in found) % 2 == 1

    def names(self, form: str, clause: str, repeated: bool = False) -> bool:
        """Whether a clause names something by itself, as no part of another word.

        Args:
            repeated: also within words that are repeated from the question.
        """
        for m in re.finditer(pattern(form), clause):
            before, after = clause[: m.start()], clause[m.end() :]
            asked = self.question
            again = before[-1:] not in [*"是为叫在", ""] and before[-1:] + form in asked
            again |= after[:1] not in [*PARTICLES[1:], ""] and form + after[:1] in asked
            if not (again and not repeated) and self._apart(form, before, after):
                return True
        return False

    def _apart(self, form: str, before: str, after: str) -> bool:
        """Whether what stands before and after a text leaves it a word of its own."""
        known = self.words.fullmatch(before[-2:])
        if re.match(DENIAL, form) and not re.search("(?:^|[我它他她都也就还])$", before):
            return False
        if form.isascii():
            return not re.search(f"{JOINED}$", before) and not re.match(f" |{JOINED}", after)
        if len(form) > 1:
            ends = f"{LONG_END}|比?{self.words.pattern}"
            starts = bool(known) or not OTHER_START.search(before)
            return starts and bool(
                re.match(ends, after) or (len(after) == 1 and after in self.question)
            )
        ends = f"{SHORT_END}|是.*{self.words.pattern}$|{self.words.pattern}"
        counted = before[-1:].isdigit() and after[:1] in self.question  # 一本书
        starts = bool(known or SHORT_START.search(before))
        return starts and bool(counted or re.match(ends, after))


def pattern(form: str) -> str:
    """A pattern for a text: Latin words and figures whole, capitals as it has them."""
    start = "(?<![A-Za-z0-9])" if re.match("[A-Za-z]", form) else ""
    start = r"(?<![\d.-])" if form[0].isdigit() else start
    end = "(?![A-Za-z0-9])" if re.search("[A-Za-z0-9]$", form) else ""
    exact = form.isascii() and form != form.lower()
    return f"{start}{'(?-i:' if exact else '(?i:'}{re.escape(form)}){end}"
