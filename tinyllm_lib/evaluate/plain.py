"""Text as grading compares it: one width, one punctuation, Chinese numerals as figures."""

import re
import unicodedata
from functools import lru_cache

NUMBER = re.compile(r"(?<![\d.比])-?\d+(?:\.\d+)?(?!\d|\.\d|[多几余%]|以[上下])")
DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_ANY = "[零〇一二三四五六七八九十百千万亿]"
_NUMERAL = re.compile(rf"(?:两(?![位旁边])|(?<!\d){_ANY}){_ANY}*(?<!千千)")


@lru_cache(100_000)
def plain(text: str) -> str:
    """NFKC, clauses that end in "," or "。" or "?", figures, no spaces, quotes or emoji."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").strip()
    text = "".join(c for c in text if unicodedata.category(c) not in ("So", "Sk", "Mn", "Cf"))
    text = re.sub(r"\.{2,}|[;:~—⋯]+", ",", text)
    text = re.sub(r"[!\n｡]|(?<![A-Za-z0-9])\.|\.(?![A-Za-z0-9])", "。", text)
    text = re.sub(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])|[\"'`*_“”‘’「」『』《》〈〉【】]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,000
    text = re.sub(r"负(?=\d)", "-", _NUMERAL.sub(_figures, text))
    text = re.sub(r"(?<=月)(\d+)号", r"\1日", text)
    text = re.sub(r"(?:公元|农历|阴历)(?=[\d初正腊])", "", text)
    return re.sub(r"[,。]*([。?])[,。]*|,+", lambda m: m[1] or ",", text).strip(",。")


def _figures(found: re.Match[str]) -> str:
    """八十二 as 82, 一九四九 as 1949; an 一 that may only say "a" (一个) stays."""
    numeral, digits = found[0], not set(found[0]) & set(UNITS)
    dated = found.string[: found.start()].endswith(("第", "月", "负"))
    dated |= re.match("[月日号,。?]|$", found.string[found.end() :]) is not None
    if (numeral in tuple("一百千万亿") and not dated) or (digits and len(numeral) == 2):  # 三四个
        return numeral
    total = section = digit = 0
    for c in numeral:
        if c in DIGITS:
            digit = 10 * digit + DIGITS[c]
        elif UNITS[c] < 10**4:
            section, digit = section + (digit or 1) * UNITS[c], 0
        else:
            total, section, digit = total + ((section + digit) or 1) * UNITS[c], 0, 0
    return str(total + section + digit)
