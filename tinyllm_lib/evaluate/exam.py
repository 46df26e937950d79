"""An exam of questions with one right answer: read, asked as a model's kind can answer, graded."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyllm_lib.data import content_fingerprint, differences, read_json, read_lines
from tinyllm_lib.evaluate.grading import goes_on_with, grade
from tinyllm_lib.evaluate.results import Answer, ExamResult
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import model_folder, run_folder, weights_fingerprint
from tinyllm_lib.tokenizer import ROLES
from tinyllm_lib.train import run_config

CHAT_TOKENS, BASE_TOKENS = 48, 24  # enough for an answer; a base model does not stop by itself
MARKS = {"user": "问：", "assistant": "答："}  # as documents write questions and answers


def load_exam(exam: str | Path | Sequence[dict]) -> list[dict]:
    """The rows of an exam, from a file with a JSON object a line or from a list, checked.

    {"question": …, "answer": …} and if you like "class" (default "own"), "history" (earlier
    messages), "completion" (a text that a base model goes on with the answer), "pair" (rows of a
    class that count as one item) and what `grade` knows. A line {"relation": …, "objects": […]} is
    no row: these names become the "others" of each row of that "relation". A missing file is a
    FileNotFoundError, the first wrong row a ValueError.
    """
    if isinstance(exam, str | Path):
        numbered = _json_lines(Path(exam))
    else:
        numbered = ((f"exam row {number}", row) for number, row in enumerate(exam, 1))
    rows, objects = [], {}
    for where, row in numbered:
        if problem := _problem(row):
            raise ValueError(f"{where}: {problem}")
        if "objects" in row:
            objects[row["relation"]] = row["objects"]
        else:
            rows.append({"class": "own", **row})
    if not rows:
        raise ValueError(f"{exam or 'the exam'} holds no question.")
    for row in rows:
        if known := objects.get(row.get("relation")):
            row["others"] = [*row.get("others", ()), *known]
    return rows


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """("file line N", value) for each line that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: an exam is written in notebook 01.")
    for line in read_lines(path):
        where = f"{line.source} line {line.number}"
        try:
            if line.problem:
                raise line.problem
            if line.raw.strip():
                yield where, json.loads(line.raw)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON in UTF-8 ({error}).") from error


def _problem(row: object) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict):
        return f"expected an object {{…}}, found {type(row).__name__}."
    for name in ("relation",) if "objects" in row else ("question", "answer"):
        if name not in row:
            return f'no "{name}" field (found: {", ".join(row) or "nothing"}).'
    for name in ("question", "answer", "class", "completion", "relation", "pair"):
        value = row.get(name, "-")
        if not isinstance(value, str) or not value.strip():
            return f'"{name}" is {value!r}, expected some text (numbers in quotes, too).'
    for name in ("answers", "others", "objects", "all_of", "none_of"):
        value = row.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            return f'"{name}" is not a list of texts.'
    for name, kind in (("min_chars", int), ("max_chars", int), ("free", bool)):
        if type(row.get(name, kind())) is not kind:
            return f'"{name}" is {row[name]!r}, expected {kind.__name__}.'
    for form in (row.get("answer", "-1"), *row.get("answers", ())):
        if not any(map(str.isalnum, form)):
            return f'"answer" is {form!r}, expected a letter or a digit in it.'
    history = row.get("history", [])
    for m in history if isinstance(history, list) else [None]:
        if not (isinstance(m, dict) and m.get("role") in ROLES and type(m.get("content")) is str):
            return f'"history" is not a list of {{"role": {" | ".join(ROLES)}, "content": text}}.'
    return None


def run_exam(
    generator: TextGenerator | str | Path,
    exam: str | Path | Sequence[dict] | None = None,
    *,
    kind: str = "auto",
    limit: int | None = None,
    print_table: bool = True,
    save: bool = True,
) -> ExamResult:
    """Asks all questions, greedily and in batches, and grades the replies with `grade`.

    A chat model is asked in a dialogue. A base model goes on with the row's "completion"; other
    questions it gets as 问：… 答：… after three answered ones of the class.

    Args:
        generator: a generator, or the folder of a run or checkpoint.
        exam: file, or rows; default: `raw/exam.jsonl` of the workspace that the run lies in.
        kind: "chat", "base", or "auto": base if the run learned from documents, else chat.
        limit: ask at most so many questions of each class, spread over it.
        save: write `exam.json` into the run folder, if there is one and no `limit`.

    Raises:
        ValueError: a row that is wrong or does not fit the context, or no row.
    """
    if kind not in ("chat", "base", "auto"):
        raise ValueError(f"kind is {kind!r}, expected 'chat', 'base' or 'auto'.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected 1 or more.")
    if not isinstance(generator, TextGenerator):
        generator = TextGenerator(generator)
    folder = generator.folder
    if exam is None:  # workspace/<profile>/runs/<name>
        if folder is None:
            raise ValueError("which exam? This model comes from no folder: give a file or rows.")
        exam = run_folder(folder.resolve()).parent.parent / "raw" / "exam.jsonl"
    name = Path(exam).name if isinstance(exam, str | Path) else "exam"
    rows = load_exam(exam)
    if kind == "auto":
        kind = kind_of_run(folder)
    asked, start = _spread(rows, limit), time.perf_counter()
    if kind == "chat":
        dialogues = [_dialogue(rows[i])[:-1] for i in asked]
        replies = generator.replies(dialogues, max_new_tokens=CHAT_TOKENS)
    else:
        room = generator.context - BASE_TOKENS
        prompts = [rows[i].get("completion") or _few_shot(rows, i, generator, room) for i in asked]
        written = generator.completions(prompts, max_new_tokens=BASE_TOKENS, stop=["\n"])
        replies = [reply.text for reply in written]
    seconds = time.perf_counter() - start
    answers = []
    for i, reply in zip(asked, replies, strict=True):
        row = rows[i]
        judge = goes_on_with if kind == "base" and "completion" in row else grade
        asked_for = (row["class"], row["question"], row["answer"])
        answers.append(Answer(*asked_for, reply, *judge(reply, row), row.get("pair")))
    result = ExamResult(kind, folder.name if folder else "", name, seconds, answers)
    if folder:
        weights = weights_fingerprint(folder)
        result.made_from = {"weights": weights, "exam": content_fingerprint(rows)}
        if save and limit is None:
            result.save(run_folder(folder) / "exam.json")
    if print_table:
        print(result, flush=True)
    return result


def exam_of(folder: str | Path, exam: str | Path | None = None) -> ExamResult:
    """The saved result of a run or checkpoint, if these weights sat it, and it was this `exam`.

    Raises:
        FileNotFoundError: no checkpoint or result.  ValueError: other weights, or another exam.
    """
    folder = model_folder(folder)
    run = run_folder(folder)
    result = ExamResult.load(run / "exam.json")
    now = {"weights": weights_fingerprint(folder)}
    if exam:
        now["exam"] = content_fingerprint(load_exam(exam))
    if changed := ", ".join(differences(result.made_from, now)):
        what = f"{run.name}/exam.json is not the exam of these weights"
        raise ValueError(f"{what}, {changed}: run_exam takes it again.")
    return result


def kind_of_run(folder: Path | None) -> str:
    """Base if the run's token shards were made of documents, else chat."""
    data = Path((folder and run_config(run_folder(folder)).get("data_path")) or "-")
    manifest = data / "train" / "manifest.json"
    kind = read_json(manifest)["kind"] if manifest.is_file() else data.name
    return "base" if "pretrain" in kind else "chat"


def _spread(rows: Sequence[dict], limit: int | None) -> list[int]:
    """The numbers of at most `limit` items of each class, evenly spread over it, in order."""
    classes: dict[str, dict[object, list[int]]] = {}
    for i, row in enumerate(rows):
        classes.setdefault(row["class"], {}).setdefault(row.get("pair", i), []).append(i)
    kept = []
    for items in classes.values():
        n = min(limit or len(items), len(items))
        kept += [i for k in range(n) for i in list(items.values())[k * len(items) // n]]
    return sorted(kept)


def _dialogue(row: dict) -> list[dict[str, str]]:
    question = {"role": "user", "content": row["question"]}
    return [*row.get("history", []), question, {"role": "assistant", "content": row["answer"]}]


def _few_shot(rows: list[dict], i: int, generator: TextGenerator, room: int) -> str:
    """Question i after answered ones of its class, the next in the file: three, or as many as
    leave the prompt within `room` tokens.
    """
    name, answer = rows[i]["class"], rows[i]["answer"]
    others = [r for r in rows[i + 1 :] + rows[:i] if r["class"] == name and r["answer"] != answer]
    for shots in (3, 2, 1, 0):
        messages = [m for row in (*others[:shots], rows[i]) for m in _dialogue(row)]
        text = "\n".join(MARKS.get(m["role"], "") + m["content"] for m in messages)
        prompt = text.removesuffix(answer)
        if generator.length(prompt) <= room:
            break
    return prompt
