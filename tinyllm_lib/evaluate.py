"""How good is it? Bits per byte of a text, and an exam of questions with one right answer.

python -m tinyllm_lib.evaluate RUN [EXAM]        the exam table of a run; --help lists the options
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import Transformer
from tinyllm_lib.tokenizer import ROLES, encode_text, token_byte_lengths
from tinyllm_lib.workspace import atomic_path, get_workspace

# What each class of the sample corpus's exam shows; an exam of your own may have other classes.
CLASS_MEANING = {
    "greeting": "the format of a dialogue is learnt",
    "fact_seen": "memory: asked in SFT, in these words",
    "fact_rephrased": "understanding: asked in SFT, in other words",
    "fact_named": "never asked in SFT, though its subject is named there",
    "fact_unnamed": "never asked in SFT, nor its subject named",
    "sum_unseen": "a rule, not a table: sums shown nowhere",
    "follow_up": "context: a second turn",
}


# ---- bits per byte


@torch.no_grad()
def bits_per_byte(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    texts: str | Path | Iterable[str],
    *,
    max_documents: int | None = None,
    batch_size: int = 16,
) -> float:
    """How many bits the model needs for one byte of text, on average; lower is better, 8 is no model at all.

    Loss per token cannot be compared between tokenizers: one that cuts the same text into fewer tokens has a higher
    loss per token and yet may know the text better. Bytes are the same for all, so this number can be compared.

    A document longer than the context is read in windows, of which each but the first repeats half a context that is
    not counted again. The first token of a document is not predicted, so its bytes do not count either.

    Args:
        texts: documents, or a file: `.jsonl` with {"text": …} lines, else one document. (One text: pass [text].)
        max_documents: read only so many.

    Raises:
        ValueError: nothing to score.
    """
    lengths = torch.tensor(token_byte_lengths(tokenizer))
    device = model.lm_head.weight.device
    nats, counted = 0.0, 0
    batch: list[tuple[list[int], int]] = []

    def score() -> None:
        nonlocal nats, counted
        T = max(len(ids) for ids, _ in batch) - 1
        ids = torch.zeros(len(batch), T + 1, dtype=torch.long)
        weights = torch.zeros(len(batch), T)
        for row, (window, first) in enumerate(batch):
            ids[row, : len(window)] = torch.tensor(window)
            weights[row, first - 1 : len(window) - 1] = 1.0
        counted += int((lengths[ids[:, 1:]] * weights).sum())
        nats += model.nats(ids[:, :-1].to(device), ids[:, 1:].to(device), weights.to(device)).item()
        batch.clear()

    context = model.config.max_seq_len
    for number, text in enumerate(read_documents(texts)):
        if number == max_documents:
            break
        ids = encode_text(tokenizer, text)
        first = 1  # the first token to score
        while first < len(ids):
            start = 0 if first == 1 else max(0, first - context // 2)
            end = min(len(ids), start + context + 1)
            batch.append((ids[start:end], first - start))
            first = end
            if len(batch) == batch_size:
                score()
    if batch:
        score()
    if not counted:
        raise ValueError("bits_per_byte found no text of two tokens or more to score: is the file or list empty?")
    return nats / math.log(2) / counted


def read_documents(texts: str | Path | Iterable[str]) -> Iterator[str]:
    """The documents of a file (`.jsonl` with a "text" in each line, else the file is one), or `texts` as they are."""
    if not isinstance(texts, str | Path):
        yield from texts
        return
    path = Path(texts)
    if not path.is_file():
        raise FileNotFoundError(f"{str(texts)[:200]!r} is no file; to score a text itself, pass it in a list: [text].")
    if path.suffix != ".jsonl":
        yield path.read_text(encoding="utf-8")
        return
    for where, row in _json_lines(path):
        if not isinstance(row.get("text"), str):
            raise ValueError(f'{where}: no "text" field (found: {", ".join(row) or "nothing"}).')
        yield row["text"]


# ---- grading


def normalise(text: str) -> str:
    """NFKC, lower case, no spaces, no punctuation at either end: what two answers may differ in."""
    text = "".join(unicodedata.normalize("NFKC", text).lower().split())
    kept = [i for i, c in enumerate(text) if unicodedata.category(c)[0] not in "PS"]
    return text[kept[0] : kept[-1] + 1] if kept else ""


NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")


def is_right(reply: str, answer: str, question: str = "", other_answers: Iterable[str] = ()) -> bool:
    """Whether a reply, usually a sentence, gives the answer.

    * Spaces, outer punctuation, case and full width do not matter.
    * A number: the last number of the reply must equal it.
    * Otherwise the answer must stand in the reply, but not merely in words repeated from the question (西藏的简称是湘
      does not give 藏), nor as a part of a longer answer of the same exam (几内亚比绍 does not give 几内亚).

    Args:
        other_answers: all answers of the exam; those that do not contain `answer` play no role.
    """
    said, wanted = normalise(reply), normalise(answer)
    if not wanted:
        raise ValueError(f"the answer {answer!r} holds neither a letter nor a digit: nothing to compare a reply with.")
    if said == wanted:
        return True
    if NUMBER.fullmatch(wanted):
        numbers = NUMBER.findall(said)
        return bool(numbers) and float(numbers[-1]) == float(wanted)
    repeated = _repeated(said, question)
    longer = [other for other in map(normalise, other_answers) if wanted in other and wanted != other]
    covered = [span for other in longer for span in _spans(other, said)]
    return any(
        end > repeated and not any(a <= start and end <= b for a, b in covered) for start, end in _spans(wanted, said)
    )


def _repeated(said: str, question: str) -> int:
    """How many characters at the reply's beginning merely repeat the question's.

    None if they make up a sentence of their own: 你好呀！ is a reply to 你好呀.
    """
    asked = normalise(question)
    n = 0
    while n < min(len(said), len(asked)) and said[n] == asked[n]:
        n += 1
    whole_question = n == len(asked) and question.rstrip().endswith(("?", "？"))
    own_sentence = n == len(said) or said[n] in "。.!！,，;；~"
    return 0 if own_sentence and not whole_question else n


def _spans(part: str, text: str) -> list[tuple[int, int]]:
    return [(m.start(), m.start() + len(part)) for m in re.finditer(f"(?={re.escape(part)})", text)]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval (95% by default) in which the true share lies, seen from `right` of `total` (Wilson 1927).

    Unlike share ± z·sqrt(share·(1-share)/total) it stays within 0 to 1 and is honest near both ends.
    """
    if not total:
        return 0.0, 1.0
    share, zz = right / total, z * z / total
    middle = (share + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(share * (1 - share) / total + zz / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


# ---- the exam


def load_exam(path: str | Path) -> list[dict]:
    """The rows of an exam file: one JSON object a line, of the sample corpus or your own.

    {"question": …, "answer": …} and if you like "class" (default "own"), "history" (earlier messages) and "completion"
    (a text that a base model goes on with the answer).

    Raises:
        FileNotFoundError; ValueError with file and line of the first row that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: an exam is written with the sample corpus (notebook 01), or by you, "
            f'as lines of {{"question": …, "answer": …, "class": …}}.'
        )
    rows = []
    for where, row in _json_lines(path):
        for name in ("question", "answer", "class", "completion"):
            if name in ("question", "answer") and name not in row:
                raise ValueError(f'{where}: no "{name}" field (found: {", ".join(row) or "nothing"}).')
            value = row.get(name, "-")
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f'{where}: "{name}" is {value!r}, expected some text (numbers in quotes, too).')
        if not normalise(row["answer"]):
            raise ValueError(f'{where}: "answer" is {row["answer"]!r}, expected a letter or a digit in it.')
        history = row.get("history", [])
        if not isinstance(history, list) or not all(
            isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in history
        ):
            raise ValueError(f'{where}: "history" is not a list of {{"role": {" | ".join(ROLES)}, "content": text}}.')
        rows.append({"class": "own", **row})
    if not rows:
        raise ValueError(f"{path} holds no question.")
    return rows


def _json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """("file line N", object) for each line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name} line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # neither UTF-8 nor JSON
                raise ValueError(f"{where}: not a line of JSON in UTF-8 ({error}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected an object {{…}}, found {type(row).__name__}.")
            yield where, row


@dataclass(frozen=True)
class Answer:
    """One question, what was expected and what the model said (`got`)."""

    class_name: str
    question: str
    expected: str
    got: str
    right: bool


@dataclass(frozen=True)
class ClassScore:
    """The result of one class; `low` and `high` bound the share (Wilson, 95%)."""

    class_name: str
    right: int
    total: int
    share: float
    low: float
    high: float


@dataclass
class ExamResult:
    """An exam that was taken. `print(result)` shows the table; saved as `exam.json` it is this object's fields:

    {"kind": "chat" | "base", "checkpoint": "step_000500", "exam": "exam.jsonl", "seconds": 4.1,
     "classes": [{"class_name", "right", "total", "share", "low", "high"}, …],
     "answers": [{"class_name", "question", "expected", "got", "right"}, …]}
    """

    kind: str
    checkpoint: str
    exam: str
    seconds: float
    answers: list[Answer] = field(repr=False)

    @cached_property
    def classes(self) -> list[ClassScore]:
        """One score for each class, in the order of the exam file."""
        scores = []
        for name in dict.fromkeys(a.class_name for a in self.answers):
            of_class = [a.right for a in self.answers if a.class_name == name]
            right, total = sum(of_class), len(of_class)
            scores.append(ClassScore(name, right, total, right / total, *wilson(right, total)))
        return scores

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of right answers, 0 to 1."""
        return {score.class_name: score.share for score in self.classes}

    @property
    def wrong(self) -> list[Answer]:
        """The answers to look at."""
        return [answer for answer in self.answers if not answer.right]

    def __str__(self) -> str:
        rows = [("class", "right", "share", "95% interval", "what it shows")]
        rows += [
            (
                s.class_name,
                f"{s.right}/{s.total}",
                f"{s.share:.0%}",
                f"{s.low:.0%} to {s.high:.0%}",
                CLASS_MEANING.get(s.class_name, ""),
            )
            for s in self.classes
        ]
        title = f"{self.exam}, answered by the {self.kind} model {self.checkpoint} in {self.seconds:.1f} s".replace(
            "  ", " "
        )
        return title + "\n" + format_table(rows, align="<>>><")

    def save(self, path: str | Path) -> None:
        """Writes the JSON file described above."""
        content = {
            "kind": self.kind,
            "checkpoint": self.checkpoint,
            "exam": self.exam,
            "seconds": round(self.seconds, 2),
            "classes": [asdict(s) for s in self.classes],
            "answers": [asdict(a) for a in self.answers],
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ExamResult:
        """Reads an `exam.json`, or that of a run folder."""
        path = Path(path)
        path = path / "exam.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run_exam writes it when it has asked the whole exam.")
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            content["kind"],
            content["checkpoint"],
            content["exam"],
            content["seconds"],
            [Answer(**a) for a in content["answers"]],
        )


def run_exam(
    generator: TextGenerator | str | Path,
    exam: str | Path | Sequence[dict] | None = None,
    *,
    kind: str = "auto",
    limit: int | None = None,
    print_table: bool = True,
    save: bool = True,
    max_new_tokens: int = 48,
) -> ExamResult:
    """Asks all questions, greedily and in batches, and grades the replies with `is_right`.

    A chat model is asked in a dialogue. A base model goes on with the row's "completion", where there is one, and is
    right if it goes on with the answer; other questions it gets as 问：… 答：… after three answered ones of the class.

    Args:
        generator: a generator, or the folder of a run or checkpoint.
        exam: file, or rows as from `load_exam`; default: the exam of the workspace.
        kind: "chat", "base", or "auto": base if the run learned from documents (its token shards say so), else chat.
        limit: ask at most so many questions of each class, spread over it.
        save: write `exam.json` into the run folder. Not done with a `limit`, nor for a model without a folder.

    Returns:
        An `ExamResult`: scores by class, all answers, and `.wrong`, the list of wrong ones.
    """
    if kind not in ("chat", "base", "auto"):
        raise ValueError(f"kind is {kind!r}, expected 'chat', 'base' or 'auto'.")
    if not isinstance(generator, TextGenerator):
        generator = TextGenerator(generator)
    if exam is None:
        exam = get_workspace().raw / "exam.jsonl"
    name = Path(exam).name if isinstance(exam, str | Path) else "exam"
    rows = load_exam(exam) if isinstance(exam, str | Path) else [{"class": "own", **row} for row in exam]
    asked = [i for i, _ in _spread(rows, limit)]
    if kind == "auto":
        kind = kind_of_run(generator.folder)
    start = time.perf_counter()
    replies = (_ask_chat if kind == "chat" else _ask_base)(generator, rows, asked, max_new_tokens)
    expected = sorted({row["answer"] for row in rows})
    longer = {a: [b for b in expected if normalise(a) in normalise(b) and a != b] for a in expected}
    answers = []
    for i, reply in zip(asked, replies, strict=True):
        row, answer = rows[i], rows[i]["answer"]
        if kind == "base" and "completion" in row:
            right = goes_on_with(reply, answer, longer[answer])
        else:
            right = is_right(reply, answer, row["question"], longer[answer])
        answers.append(Answer(row["class"], row["question"], answer, reply, right))
    checkpoint = generator.folder.name if generator.folder else ""
    result = ExamResult(kind, checkpoint, name, time.perf_counter() - start, answers)
    if save and limit is None and generator.folder:
        result.save(run_folder(generator.folder) / "exam.json")
    if print_table:
        print(result, flush=True)
    return result


def goes_on_with(text: str, answer: str, longer: Iterable[str] = ()) -> bool:
    """Whether a base model's text begins with the answer, and not with a longer one or a longer number."""
    text, answer = normalise(text), normalise(answer)
    if NUMBER.fullmatch(answer):
        number = NUMBER.match(text)
        return bool(number) and float(number[0]) == float(answer)
    return text.startswith(answer) and not any(text.startswith(normalise(other)) for other in longer)


def _ask_chat(generator: TextGenerator, rows: Sequence[dict], asked: Sequence[int], max_new_tokens: int) -> list[str]:
    dialogues = [[*rows[i].get("history", []), {"role": "user", "content": rows[i]["question"]}] for i in asked]
    return generator.replies(dialogues, max_new_tokens=max_new_tokens)


def _ask_base(generator: TextGenerator, rows: Sequence[dict], asked: Sequence[int], max_new_tokens: int) -> list[str]:
    prompts = [rows[i].get("completion") or _few_shot(rows, i) for i in asked]
    return [reply.text for reply in generator.completions(prompts, max_new_tokens=min(max_new_tokens, 24), stop=["\n"])]


def _few_shot(rows: Sequence[dict], i: int, shots: int = 3) -> str:
    """The question after `shots` answered ones of its class (the next in the file), as documents write them."""
    same = [j for j in (*range(i + 1, len(rows)), *range(i)) if rows[j]["class"] == rows[i]["class"]]
    different = [j for j in same if rows[j]["answer"] != rows[i]["answer"]][:shots]
    lines = []
    for row in (*(rows[j] for j in different), rows[i]):
        for message in row.get("history", []):
            mark = {"user": "问：", "assistant": "答："}.get(message["role"], "")
            lines.append(mark + message["content"])
        lines += [f"问：{row['question']}", f"答：{row['answer']}"]
    return "\n".join(lines[:-1]) + "\n答："


def _spread(rows: Sequence[dict], limit: int | None) -> list[tuple[int, dict]]:
    """(number, row) of at most `limit` rows of each class, evenly spread over it, in the order of the file."""
    kept = set()
    for name in dict.fromkeys(row["class"] for row in rows):
        of_class = [i for i, row in enumerate(rows) if row["class"] == name]
        n = len(of_class) if limit is None else min(limit, len(of_class))
        kept |= {of_class[k * len(of_class) // n] for k in range(n)}
    return [(i, row) for i, row in enumerate(rows) if i in kept]


def run_folder(folder: Path) -> Path:
    """The run that a checkpoint folder belongs to, or the folder itself if it lies in none."""
    return folder.parent.parent if folder.resolve().parent.name == "checkpoints" else folder


def kind_of_run(folder: Path | None) -> str:
    """ "base" if the run's token shards were made of documents, else "chat"."""
    config = run_folder(folder) / "config.json" if folder else None
    if config is None or not config.is_file():
        return "chat"
    data = Path(json.loads(config.read_text(encoding="utf-8")).get("data_path") or "-")
    manifest = data / "train" / "manifest.json"
    if manifest.is_file():
        return "base" if json.loads(manifest.read_text(encoding="utf-8"))["kind"] == "pretrain" else "chat"
    return "base" if "pretrain" in data.name else "chat"


# ---- two exams side by side


@dataclass(frozen=True)
class ExamComparison:
    """What changed from exam `a` to exam `b`; `print(comparison)` shows it."""

    a: ExamResult
    b: ExamResult

    @property
    def gained(self) -> list[tuple[Answer, Answer]]:
        """(answer of a, answer of b) where a was wrong and b is right."""
        return [(x, y) for x, y in self._pairs() if y.right and not x.right]

    @property
    def lost(self) -> list[tuple[Answer, Answer]]:
        """(answer of a, answer of b) where a was right and b is wrong."""
        return [(x, y) for x, y in self._pairs() if x.right and not y.right]

    def _pairs(self) -> list[tuple[Answer, Answer]]:
        second: dict[tuple[str, str, str], list[Answer]] = {}
        for y in self.b.answers:
            second.setdefault((y.class_name, y.question, y.expected), []).append(y)
        return [
            (x, found.pop(0)) for x in self.a.answers if (found := second.get((x.class_name, x.question, x.expected)))
        ]

    def __str__(self) -> str:
        names = [f"{r.kind} {r.checkpoint}".strip() for r in (self.a, self.b)]
        a, b = ({s.class_name: s for s in r.classes} for r in (self.a, self.b))
        gained, lost = ([x.class_name for x, _ in pairs] for pairs in (self.gained, self.lost))
        rows = [("class", *names, "gained", "lost")]
        for name in dict.fromkeys([*a, *b]):
            shares = [f"{s[name].share:.0%} ({s[name].right}/{s[name].total})" if name in s else "-" for s in (a, b)]
            rows.append((name, *shares, str(gained.count(name)), str(lost.count(name))))
        return format_table(rows, align="<>>>>")


def compare_exams(
    a: ExamResult | str | Path, b: ExamResult | str | Path, *, print_table: bool = True
) -> ExamComparison:
    """Two results, or run folders with an `exam.json`, side by side; `.gained` and `.lost` hold what changed."""
    comparison = ExamComparison(*(r if isinstance(r, ExamResult) else ExamResult.load(r) for r in (a, b)))
    if print_table:
        print(comparison, flush=True)
    return comparison


def format_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows as aligned columns, the first row underlined; a Chinese character counts as two columns.

    Args:
        align: "<" or ">" for each column.
    """
    widths = [max(text_width(row[i]) for row in rows) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = [(cell, " " * (width - text_width(cell))) for cell, width in zip(row, widths, strict=True)]
        lines.append(
            "  ".join(cell + gap if side == "<" else gap + cell for (cell, gap), side in zip(cells, align, strict=True))
        )
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.evaluate", description="Ask a model the exam and print the table."
    )
    parser.add_argument(
        "run", help="a run folder, a checkpoint or Hugging Face folder, or a run's name in the workspace"
    )
    parser.add_argument("exam", nargs="?", help="the exam file; default: the workspace's")
    parser.add_argument(
        "--kind", choices=("auto", "chat", "base"), default="auto", help="how to ask (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="at most so many questions of each class")
    parser.add_argument("--wrong", action="store_true", help="list the wrong answers too")
    options = parser.parse_args(argv)
    try:
        run = Path(options.run) if Path(options.run).exists() else get_workspace().run(options.run)
        result = run_exam(run, options.exam, kind=options.kind, limit=options.limit)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.wrong:
        rows = [("class", "question", "expected", "got")] + [
            (a.class_name, a.question, a.expected, a.got) for a in result.wrong
        ]
        print("\n" + format_table([[" ".join(cell.split()) for cell in row] for row in rows], align="<<<<"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
