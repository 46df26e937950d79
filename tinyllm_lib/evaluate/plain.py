"""Text as grading compares it: one width, one punctuation, Chinese numerals as figures."""

import re
import unicodedata
from functools import lru_cache

NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?(?!\d|\.\d|[多几余])")
DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_ANY = f"[{''.join(DIGITS | UNITS).replace('两', '')}]"
_NUMERAL = re.compile(
    rf"(第?)(负?)(?<![\d{_ANY[1:-1]}])(两(?![位旁边端侧]){_ANY}*|{_ANY}+(?<!千千))(?:点([零〇一二三四五六七八九]+))?(?=([,。?]|$)?)"
)


@lru_cache(100_000)
def plain(text: str, count: bool = False) -> str:
    """NFKC, clauses that end in "," or "。" or "?", figures, no spaces, quotes or emoji.

    Args:
        count: the text is read for a number: a 一 that only says "a" (一个) stays.
    """
    text = unicodedata.normalize("NFKC", text).replace("−", "-").strip()
    text = "".join(c for c in text if unicodedata.category(c) not in ("So", "Sk", "Mn", "Cf", "Cs"))
    text = re.sub(r"\.{2,}|[;:~—⋯]+", ",", text)
    text = re.sub(r"[!\n｡]|(?<![A-Za-z0-9])\.|\.(?![A-Za-z0-9])", "。", text)
    text = re.sub(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])|[\"'`*_“”‘’「」『』《》〈〉【】]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,000
    text = _NUMERAL.sub(lambda m: _figures(m, count), text)
    text = re.sub(r"(\d+(?:\.\d+)?)([百千万亿])", _times, text)  # 3千米 is 3000米
    text = re.sub(r"(?<=月)(\d+)号", r"\1日", text)
    text = re.sub(r"(?:公元|农历|阴历)(?=[\d初正腊])", "", text)
    return re.sub(r"[,。]*([。?])[,。]*|,+", lambda m: m[1] or ",", text).strip(",。")


def _times(found: re.Match[str]) -> str:
    return f"{float(found[1]) * UNITS[found[2]]:.15g}"


def _figures(found: re.Match[str], count: bool) -> str:
    """八十二 as 82, 一九四九 as 1949, 第三 as 第3, 二点五 as 2.5."""
    ordinal, minus, numeral, decimals, end = found.groups()
    if count and numeral in tuple("一百千万亿") and not (ordinal or end is not None):
        return found[0]
    if not set(numeral) & set(UNITS):
        if len(numeral) == 2:  # 三四个: about so many
            return found[0]
        value = "".join(str(DIGITS[c]) for c in numeral)
    else:
        total = section = digit = 0
        for c in numeral:
            if c in DIGITS:
                digit = DIGITS[c]
            elif UNITS[c] < 10**4:
                section, digit = section + (digit or 1) * UNITS[c], 0
            else:
                total, section, digit = total + ((section + digit) or 1) * UNITS[c], 0, 0
        value = str(total + section + digit)
    fraction = "." + "".join(str(DIGITS[c]) for c in decimals) if decimals else ""
    return ordinal + "-" * bool(minus) + value + fraction
