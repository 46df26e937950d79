"""How good is it? Bits per byte of a text, and an exam of questions with one right answer.

python -m tinyllm_lib.evaluate RUN [EXAM]        the exam table of a run; --help lists the options
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import content_fingerprint, get_workspace, read_json, utf8_output
from tinyllm_lib.evaluate.exam import (
    Answer,
    ClassScore,
    ExamComparison,
    ExamResult,
    checked_rows,
    compare_exams,
    format_table,
    goes_on_with,
    is_right,
    json_lines,
    load_exam,
    normalise,
    wilson,
)
from tinyllm_lib.generate import TextGenerator, read_text_file
from tinyllm_lib.model import (
    Batch,
    Transformer,
    explaining_out_of_memory,
    run_folder,
    score,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import encode_text, token_byte_lengths, why_no_bytes
from tinyllm_lib.train import run_config

__all__ = [
    "Answer",
    "ClassScore",
    "ExamComparison",
    "ExamResult",
    "bits_per_byte",
    "compare_exams",
    "is_right",
    "load_exam",
    "run_exam",
    "wilson",
]


# ---- bits per byte


def bits_per_byte(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    texts: str | Path | Iterable[str],
    *,
    max_documents: int | None = None,
    batch_size: int = 16,
) -> float:
    """How many bits the model needs for one byte of text, on average; lower is better, 8 is no
    model at all.

    What counts is told in `score`. A document longer than the context is read in windows, of which
    each but the first repeats half a context that is not counted again.

    Args:
        texts: documents, or a file: `.jsonl` with {"text": …} lines, else one document. (One text:
            pass [text].)
        max_documents: read only so many.

    Raises:
        ValueError: nothing to score.
    """
    documents = (
        encode_text(tokenizer, text) for text in islice(read_documents(texts), max_documents)
    )
    windows = (window for ids in documents for window in _windows(ids, model.config.max_seq_len))
    lengths = torch.tensor(token_byte_lengths(tokenizer))
    advice = f"give a smaller batch_size than {batch_size}, or load the model with device='cpu'."
    with explaining_out_of_memory("while evaluating", advice):
        found = score(model, _batches(windows, batch_size), lengths)
    if not found.text_bytes:
        raise ValueError(
            "bits_per_byte found no text of two tokens or more to score: is the file or list empty?"
        )
    return found.bits_per_byte


def _windows(ids: list[int], context: int) -> Iterator[tuple[list[int], int]]:
    """(ids, the first of them to score), up to context + 1 ids at a time, until each but the first
    of all has been scored once.
    """
    first = 1
    while first < len(ids):
        start = 0 if first == 1 else max(0, first - context // 2)
        end = min(len(ids), start + context + 1)
        yield ids[start:end], first - start
        first = end


def _batches(windows: Iterator[tuple[list[int], int]], batch_size: int) -> Iterator[Batch]:
    while batch := list(islice(windows, batch_size)):
        T = max(len(ids) for ids, _ in batch) - 1
        ids, mask = (
            torch.zeros(len(batch), T + 1, dtype=torch.long),
            torch.zeros(len(batch), T, dtype=torch.long),
        )
        for row, (window, first) in enumerate(batch):
            ids[row, : len(window)] = torch.tensor(window)
            mask[row, first - 1 : len(window) - 1] = 1
        yield ids[:, :-1], ids[:, 1:], mask, {}


def read_documents(texts: str | Path | Iterable[str]) -> Iterator[str]:
    """The documents of a file (`.jsonl` with a "text" in each line, else the file is one), or
    `texts` as they are.
    """
    if not isinstance(texts, str | Path):
        yield from texts
        return
    path = Path(texts)
    if not os.path.isfile(
        texts
    ):  # unlike Path.is_file, no error where a text is too long to be a name
        raise FileNotFoundError(
            f"{str(texts)[:200]!r} is no file; to score a text itself, pass it in a list: [text]."
        )
    if path.suffix != ".jsonl":
        yield read_text_file(path)
        return
    for where, row in json_lines(path):
        if not isinstance(row.get("text"), str):
            raise ValueError(f'{where}: no "text" field (found: {", ".join(row) or "nothing"}).')
        if reason := why_no_bytes(row["text"]):
            raise ValueError(f"{where}: {reason}")
        yield row["text"]


# ---- asking


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

    A chat model is asked in a dialogue. A base model goes on with the row's "completion", where
    there is one, and is right if it goes on with the answer; other questions it gets as 问：… 答：…
    after three answered ones of the class.

    Args:
        generator: a generator, or the folder of a run or checkpoint.
        exam: file, or rows as from `load_exam`; default: the exam of the workspace.
        kind: "chat", "base", or "auto": base if the run learned from documents (its token shards
            say so), else chat.
        limit: ask at most so many questions of each class, spread over it.
        save: write `exam.json` into the run folder. Not done with a `limit`, nor for a model
            without a folder.

    Returns:
        An `ExamResult`: scores by class, all answers, and `.wrong`, the list of wrong ones.

    Raises:
        ValueError: a row that is wrong or does not fit the context, no row, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected 1 or more; None asks every question.")
    if kind not in ("chat", "base", "auto"):
        raise ValueError(f"kind is {kind!r}, expected 'chat', 'base' or 'auto'.")
    if not isinstance(generator, TextGenerator):
        generator = TextGenerator(generator)
    if exam is None:
        exam = get_workspace().raw / "exam.jsonl"
    name = Path(exam).name if isinstance(exam, str | Path) else "exam"
    if isinstance(exam, str | Path):
        rows = load_exam(exam)
    else:
        rows = checked_rows(
            ((f"exam row {number}", row) for number, row in enumerate(exam, 1)), "the exam"
        )
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
    made_from = (
        {"weights": weights_fingerprint(generator.folder), "exam": content_fingerprint(rows)}
        if generator.folder
        else None
    )
    result = ExamResult(kind, checkpoint, name, time.perf_counter() - start, answers, made_from)
    if save and limit is None and generator.folder:
        result.save(run_folder(generator.folder) / "exam.json")
    if print_table:
        print(result, flush=True)
    return result


def _ask_chat(
    generator: TextGenerator, rows: Sequence[dict], asked: Sequence[int], max_new_tokens: int
) -> list[str]:
    dialogues = [
        [*rows[i].get("history", []), {"role": "user", "content": rows[i]["question"]}]
        for i in asked
    ]
    return generator.replies(dialogues, max_new_tokens=max_new_tokens)


def _ask_base(
    generator: TextGenerator, rows: Sequence[dict], asked: Sequence[int], max_new_tokens: int
) -> list[str]:
    room = generator.context - min(max_new_tokens, 24)
    prompts = [rows[i].get("completion") or _few_shot(rows, i, generator, room) for i in asked]
    return [
        reply.text
        for reply in generator.completions(
            prompts, max_new_tokens=min(max_new_tokens, 24), stop=["\n"]
        )
    ]


def _few_shot(
    rows: Sequence[dict], i: int, generator: TextGenerator, room: int, shots: int = 3
) -> str:
    """The question after `shots` answered ones of its class (the next in the file), as documents
    write them.

    Fewer shots where they would not fit `room` tokens.
    """
    same = [
        j for j in (*range(i + 1, len(rows)), *range(i)) if rows[j]["class"] == rows[i]["class"]
    ]
    different = [j for j in same if rows[j]["answer"] != rows[i]["answer"]][:shots]
    lines = []
    for row in (*(rows[j] for j in different), rows[i]):
        for message in row.get("history", []):
            mark = {"user": "问：", "assistant": "答："}.get(message["role"], "")
            lines.append(mark + message["content"])
        lines += [f"问：{row['question']}", f"答：{row['answer']}"]
    prompt = "\n".join(lines[:-1]) + "\n答："
    if shots and generator.length(prompt) > room:
        return _few_shot(rows, i, generator, room, shots - 1)
    return prompt


def _spread(rows: Sequence[dict], limit: int | None) -> list[tuple[int, dict]]:
    """(number, row) of at most `limit` rows of each class, evenly spread over it, in the order of
    the file.
    """
    kept = set()
    for name in dict.fromkeys(row["class"] for row in rows):
        of_class = [i for i, row in enumerate(rows) if row["class"] == name]
        n = len(of_class) if limit is None else min(limit, len(of_class))
        kept |= {of_class[k * len(of_class) // n] for k in range(n)}
    return [(i, row) for i, row in enumerate(rows) if i in kept]


def kind_of_run(folder: Path | None) -> str:
    """ "base" if the run's token shards were made of documents, else "chat"."""
    data = Path((folder and run_config(run_folder(folder)).get("data_path")) or "-")
    manifest = data / "train" / "manifest.json"
    if manifest.is_file():
        return "base" if read_json(manifest)["kind"] == "pretrain" else "chat"
    return "base" if "pretrain" in data.name else "chat"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.evaluate",
        description="Ask a model the exam and print the table.",
    )
    parser.add_argument(
        "run",
        help="a run folder, a checkpoint or Hugging Face folder, or a run's name in the workspace",
    )
    parser.add_argument(
        "exam",
        nargs="?",
        help="a file of your own; default: the workspace's, kept as the run's exam.json",
    )
    parser.add_argument(
        "--kind",
        choices=("auto", "chat", "base"),
        default="auto",
        help="how to ask (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, help="at most so many questions of each class")
    parser.add_argument("--wrong", action="store_true", help="list the wrong answers too")
    options = parser.parse_args(argv)
    try:
        run = Path(options.run) if Path(options.run).exists() else get_workspace().run(options.run)
        own = (
            options.exam is not None
        )  # three questions of one's own must not replace the result of the whole exam
        result = run_exam(run, options.exam, kind=options.kind, limit=options.limit, save=not own)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.wrong:
        rows = [("class", "question", "expected", "got")] + [
            (a.class_name, a.question, a.expected, a.got) for a in result.wrong
        ]
        print(
            "\n"
            + format_table([[" ".join(cell.split()) for cell in row] for row in rows], align="<<<<")
        )
    return 0
