"""The sample corpus: a small world, written by us, in the formats of the two real corpora.

The world has tables of true facts (countries, provinces, chemical elements and more, see
``facts.py``), sums of numbers below 100, stories, everyday talk, and one speaker of its own: the
assistant 小苗 ("seedling"). Documents state facts (cards, mixed, lists, comparisons, groups, hops),
ask for them (scenes, notes, yes_no), calculate (sums, orders), tell and ask about what they told
(quests, everyday, papers), give reasons, and recite poems. From all this
``write_sample_corpus`` writes three files:

    pretrain.jsonl  {"text": ...}: every fact, many times, in many phrasings and both directions
    sft.jsonl       dialogues in BELLE's format: about a *part* of the facts
    exam.jsonl      questions with one right answer, never trained on (see ``exam.py``)

What dialogues leave out is the experiment. Pretraining states the capital of every country; SFT
asks for about two thirds of them. A model that answers for the others has brought knowledge from
pretraining into a dialogue. ``world.py`` says which entities are left out, and how far.

The text depends on the seed and the sizes only: two runs give the same bytes. Beside the files lies
a record of what each was made from. A file that the record does not know, or not as it is now, is
the learner's own and stays.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from tinyllm_lib.course.made import made_by_us, sign
from tinyllm_lib.course.world import reading, stories
from tinyllm_lib.course.world.dialogues import DialogueWriter
from tinyllm_lib.course.world.documents import FactWriter
from tinyllm_lib.course.world.exam import write_exam
from tinyllm_lib.course.world.facts import facts
from tinyllm_lib.course.world.mix import CorpusMix
from tinyllm_lib.course.world.sums import Sums, held_out_pairs
from tinyllm_lib.course.world.world import World
from tinyllm_lib.data import atomic_path, content_fingerprint

SAMPLE_FILES = ("pretrain.jsonl", "sft.jsonl", "exam.jsonl")
FOREIGN_EXAM = """\
exam.jsonl asks about the sample corpus's world, which a model of your own texts has not read: it
will fail. An exam of your own is lines of {"question": …, "answer": …} in that file."""
GENERATOR = 3  # raised whenever the same seed and sizes give another text (a test tells)


def write_sample_corpus(
    raw_dir: Path | str,
    *,
    seed: int = 0,
    documents: int = 50_000,
    dialogues: int = 24_000,
    mix: CorpusMix | None = None,
) -> dict[str, int]:
    """Write pretrain.jsonl, sft.jsonl and exam.jsonl into a folder, each whole or not at all.

    A file of that name which is not ours, or was changed since we wrote it, is left as it is, and a
    line says so.

    Args:
        raw_dir: the folder; it is made if it is not there.
        seed: another seed gives another text, and another choice of what is held out.
        documents, dialogues: how many lines pretrain.jsonl and sft.jsonl get.
        mix: what they are made of (default: ``CorpusMix()``).

    Returns:
        Counts of the sample: documents, dialogues, exam (rows), characters (in documents), facts,
        least_told and median_told (how often documents state a fact).

    Raises:
        ValueError: a size below 1, or a mix whose shares are all 0.
    """
    mix = mix or CorpusMix()
    for name, size in (("documents", documents), ("dialogues", dialogues)):
        if size < 1:
            raise ValueError(f"write_sample_corpus: {name} is {size}; it must be 1 or more")
    raw_dir = Path(raw_dir)

    world = World(facts(), named_share=mix.named_share, unnamed_share=mix.unnamed_share, seed=seed)
    held_out = held_out_pairs(mix.held_out_sums, seed)

    # Each file draws from a generator of its own, so that a change in one leaves the others alone.
    rng = _generator(seed, "documents")
    teller = FactWriter(world, rng, mix)
    texts = _documents(documents, mix, teller, Sums(held_out, rng), rng)
    files = [raw_dir / name for name in SAMPLE_FILES]
    characters, *ours = _write_lines(files[0], ({"text": text} for text in texts))

    rng = _generator(seed, "dialogues")
    talker = DialogueWriter(world, Sums(held_out, rng), rng, mix)
    kinds = _schedule(mix.shares("chat_"), dialogues, rng)
    rows = (_belle_row(number, talker.write(kind)) for number, kind in enumerate(kinds))
    ours.append(_write_lines(files[1], rows)[1])

    rng = _generator(seed, "exam")
    exam = write_exam(world, talker, Sums(held_out, rng), held_out, rng)
    ours.append(_write_lines(files[2], exam)[1])

    made = [path for path, is_ours in zip(files, ours, strict=True) if is_ours]
    sign(made, sample_recipe(seed, documents, dialogues, mix))
    if own := ", ".join(path.name for path in files if path not in made):
        said = "Not written by the sample corpus, or changed since, so left as it is:"
        print(f"{said} {own}.", flush=True)
    if ours[2] and not (ours[0] and ours[1]):
        print(FOREIGN_EXAM, flush=True)
    told = [teller.told[fact.relation.name, fact.subject, fact.object] for fact in world.facts]
    return {
        "documents": documents,
        "dialogues": dialogues,
        "exam": sum("question" in row for row in exam),
        "characters": characters,
        "facts": len(world.facts),
        "least_told": min(told),
        "median_told": int(median(told)),
    }


def sample_recipe(
    seed: int = 0, documents: int = 50_000, dialogues: int = 24_000, mix: CorpusMix | None = None
) -> dict:
    """What the sample files are made from, for their record."""
    made = {"generator": GENERATOR, "seed": seed, "documents": documents, "dialogues": dialogues}
    return {**made, "mix": content_fingerprint(asdict(mix or CorpusMix()))}


def _generator(seed: int, part: str) -> random.Random:
    return random.Random(f"{seed}/{part}")  # a string seed is hashed the same everywhere


def _documents(
    count: int, mix: CorpusMix, teller: FactWriter, sums: Sums, rng: random.Random
) -> Iterable[str]:
    writers = {
        "cards": teller.card,
        "mixed": teller.mixed,
        "lists": teller.listing,
        "comparisons": teller.comparison,
        "scenes": teller.scene,
        "notes": teller.notes,
        "hops": teller.hops,
        "yes_no": teller.yes_no,
        "orders": teller.order,
        "groups": teller.groups,
        "sums": sums.document,
        "stories": lambda: stories.story(rng),
        "descriptions": lambda: stories.description(rng),
        "quests": lambda: reading.story(rng),
        "everyday": lambda: reading.everyday(rng),
        "papers": lambda: reading.paper(rng),
        "reasons": lambda: reading.reasons(rng),
        "poems": lambda: reading.poem(rng),
    }
    for kind in _schedule(mix.shares("doc_"), count, rng):
        yield writers[kind]()


def _schedule(shares: Mapping[str, float], count: int, rng: random.Random) -> list[str]:
    """``count`` kinds in random order, as near to the shares as whole numbers come."""
    total = sum(shares.values())
    if total <= 0:
        raise ValueError(f"CorpusMix: all of {', '.join(shares)} are 0; switch at least one on")
    exact = {kind: count * share / total for kind, share in shares.items()}
    counts = Counter({kind: int(number) for kind, number in exact.items()})
    by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: count - sum(counts.values())]:
        counts[kind] += 1
    kinds = [kind for kind in shares for _ in range(counts[kind])]
    rng.shuffle(kinds)
    return kinds


def _belle_row(number: int, turns: Iterable[tuple[str, str]]) -> dict[str, Any]:
    conversations = [
        {"from": who, "value": text}
        for turn in turns
        for who, text in zip(("human", "assistant"), turn, strict=True)
    ]
    return {"id": f"sample_{number:06d}", "conversations": conversations}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[int, bool]:
    """Write one JSON object a line, but not over a file that is not ours.

    Returns:
        The characters of the rows' "text" fields, and whether the file now holds these rows.
    """
    characters = 0

    def lines() -> Iterator[bytes]:
        nonlocal characters
        for row in rows:
            characters += len(row.get("text", ""))
            yield (json.dumps(row, ensure_ascii=False) + "\n").encode()

    if os.path.lexists(path) and made_by_us(path) is None:
        with open(path, "rb") if path.is_file() else io.BytesIO() as file:
            # All rows are drawn, also behind one that differs: the exam depends on them.
            same = [file.readline(len(line) + 1) == line for line in lines()]
            return characters, all(same) and not file.read(1)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.writelines(lines())
    return characters, True
