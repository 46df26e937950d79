"""How varied a corpus is: `python tools/corpus_table.py FILE…`, a column for each file.

A file holds lines of `{"text": …}` or of dialogues in BELLE's format; any other file is read as
plain text. Sentences end at 。！？ or a line's end. Higher is more varied, except for the size that
xz leaves (×: how many times smaller) and the share that the most frequent skeletons cover: a
skeleton is a sentence in which the names of the sample corpus's world, the names of its people and
all numbers are masked.
"""

from __future__ import annotations

import json
import lzma
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tinyllm_lib.course.world import facts, stories
from tinyllm_lib.data import utf8_output

CHARACTERS = 600_000
SKELETONS = 1000
_REASON = re.compile("因为|所以(?![0-9])")  # not the 所以 of a sum's working
_NUMBER = re.compile("[0-9]+|[零一二三四五六七八九十百]{2,}")


def read_texts(path: Path) -> list[str]:
    """The documents or the dialogues (their turns joined by line ends) of a file.

    Raises:
        ValueError: a line of JSON that has neither "text" nor "conversations".
    """
    if path.suffix != ".jsonl":
        return [path.read_text(encoding="utf-8")]
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if "text" in row:
            texts.append(row["text"])
        elif "conversations" in row:
            texts.append("\n".join(turn["value"] for turn in row["conversations"]))
        else:
            raise ValueError(f"{path} line {number}: neither text nor conversations")
    return texts


def sentences(texts: Iterable[str]) -> list[str]:
    """The sentences of the texts, without the quotation marks around them."""
    parts = (part for text in texts for part in re.findall("[^。！？\n]+[。！？]*", text))
    return [part for part in (part.strip("“”‘’ \r") for part in parts) if part]


def measure(texts: list[str]) -> dict[str, str]:
    """The rows of the table, by name."""
    told = sentences(texts)
    if not told:
        raise ValueError("no sentence to measure: the file is empty")
    text = "\n".join(texts)[:CHARACTERS]
    grams = [text[start : start + 5] for start in range(len(text) - 4)]
    raw = text.encode("utf-8")
    covered = sum(count for _, count in Counter(skeletons(told)).most_common(SKELETONS))
    reasons = sum(_REASON.search(sentence) is not None for sentence in told)
    return {
        "characters": f"{sum(map(len, texts)):,}",
        "sentences": f"{len(told):,}",
        "distinct sentences": f"{len(set(told)) / len(told):.0%}",
        f"distinct 5-grams in {CHARACTERS:,} characters": (
            f"{len(set(grams)) / max(1, len(grams)):.2f}"
        ),
        f"xz on {CHARACTERS:,} characters": f"{len(raw) / len(lzma.compress(raw)):.1f}×",
        "distinct characters": f"{len(set(''.join(texts))):,}",
        f"covered by {SKELETONS:,} skeletons": f"{covered / len(told):.0%}",
        "with 因为 or 所以": f"{reasons / len(told):.1%}",
    }


def table(columns: dict[str, dict[str, str]]) -> str:
    """The measures of several files side by side, in Markdown."""
    names = next(iter(columns.values()))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = " | ".join(column[name] for column in columns.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def skeletons(told: Iterable[str]) -> list[str]:
    """The sentences with ○ for the names of the world and # for numbers."""
    names = {name for fact in facts() for name in (fact.subject, fact.object)}
    names |= {*stories.CHILDREN, *stories.ANIMALS, *stories.TEACHERS, *stories.ELDERS}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    kept = (name for name in longest_first if len(name) > 1 and not name[0].isdigit())
    masked = re.compile("|".join(map(re.escape, kept)))
    return [_NUMBER.sub("#", masked.sub("○", sentence)) for sentence in told]


def main(paths: list[str]) -> None:
    """Print the table of the files."""
    utf8_output()
    if not paths:
        sys.exit(__doc__)
    print(table({path: measure(read_texts(Path(path))) for path in paths}))


if __name__ == "__main__":
    main(sys.argv[1:])
