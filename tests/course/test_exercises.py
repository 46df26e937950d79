"""Exercises: stubs run and are not done, solutions are right, mistakes are told in the learner's
terms, progress is kept.
"""

import itertools
import json
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import load_tool

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises import EXERCISES, SETUPS, check_exercise, echo, show_progress
from tinyllm_lib.course.exercises.progress import read_progress
from tinyllm_lib.tokenizer import encode_chat

REPOSITORY = Path(__file__).resolve().parents[2]
tool = load_tool("exercises")


def run_cell(exercise, part):
    """Runs a cell as the notebook of solutions does, after its first cell."""
    names = {}
    exec(SETUPS[exercise.notebook], names)
    exec(exercise.cell(part), names)


# ---- stubs, solutions, notebooks


@pytest.mark.parametrize("number", EXERCISES)
def test_a_stub_runs_and_is_not_done(number, capsys):
    run_cell(EXERCISES[number], "stub")
    assert capsys.readouterr().out.splitlines()[-1] == f"{number} not done yet"
    assert read_progress() == {}


@pytest.mark.parametrize("number", EXERCISES)
def test_a_solution_passes_its_check_and_counts_for_nobody(number, capsys):
    run_cell(EXERCISES[number], "solution")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{number} right: ")
    assert read_progress() == {}


@pytest.mark.parametrize("notebook", SETUPS)
def test_what_the_notebooks_store_is_what_the_library_says(notebook):
    path = tool.NOTEBOOKS[notebook]
    stored = tool.read(path)
    assert tool.with_exercises(stored, notebook) == stored, "run tools/exercises.py"
    solved = tool.read(tool.SOLUTIONS / path.name)
    assert tool.sources(solved) == tool.sources(tool.solutions(notebook)), "run tools/exercises.py"


def test_each_notebook_has_two_to_four_with_minutes_difficulty_and_a_hint():
    assert set(Counter(exercise.notebook for exercise in EXERCISES.values()).values()) <= {2, 3, 4}
    assert set(SETUPS) == {exercise.notebook for exercise in EXERCISES.values()}
    for exercise in EXERCISES.values():
        assert exercise.difficulty in ("easy", "medium", "hard") and 1 <= exercise.minutes <= 30
        assert exercise.hint and exercise.cell("stub") != exercise.cell("solution")


def test_the_tool_changes_its_own_cells_only():
    mine = {"cell_type": "markdown", "id": "c02-99", "metadata": {}, "source": ["text"]}
    begun = {"cells": [mine, tool.code("ex-02", "old", number=7), mine]}
    made = tool.with_exercises(begun, "02")["cells"]
    assert made[0] is mine and made[-1] is mine
    assert all(cell["id"].startswith("ex-02") for cell in made[1:-1])
    with pytest.raises(ValueError, match='no cell whose id begins with "ex-"'):
        tool.with_exercises({"cells": [mine]}, "02")


# ---- what a learner is told


def decode(ids):
    return prepare.tokenizer(get_workspace()).decode(list(ids))


def mask_of_length(messages):
    return [1] * len(encode_chat(prepare.tokenizer(get_workspace()), messages))


def train(model, batches, change, *, clear=True):
    """A loop for 05.1 with a rule for the parameters."""
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(model(batch.X).flatten(0, 1), batch.Y.flatten())
        loss.backward()
        change(model)
        if clear:
            model.zero_grad()
    return model


@torch.no_grad()
def sgd(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for p in model.parameters():
        p -= 0.3 * p.grad


def torch_sgd(model):
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def attention_that(does):
    """Attention with one of the usual mistakes."""

    def attention(q, k, v):
        H, T = q.shape[1:3]
        shared_by, heads = H // k.shape[1], torch.arange(H)
        of_head = heads % k.shape[1] if does == "exchanges heads" else heads // shared_by
        k, v = k[:, of_head], v[:, of_head]
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        allowed = torch.ones(T, T, dtype=torch.bool).tril(-1 if "before" in does else 0)
        if does == "looks ahead":
            allowed = torch.ones(T, T, dtype=torch.bool)
        if does == "looks at itself":
            allowed = torch.eye(T, dtype=torch.bool)
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v

    return attention


def share_of_different_pieces(text, n=3):
    pieces = [text[i : i + n] for i in range(len(text) - n + 1)]
    return len(set(pieces)) / len(pieces) if pieces else 1.0


def best_temperature(logits, targets):
    losses = {
        t / 20: torch.nn.functional.cross_entropy(logits / (t / 20), targets).item()
        for t in range(2, 200)
    }
    return min(losses, key=losses.get)


def sixteen_levels(row):
    blocks = row.reshape(-1, 32)
    low = blocks.min(1, keepdims=True)
    distance = (blocks.max(1, keepdims=True) - low) / 15
    return (low + np.round((blocks - low) / (distance + 1e-9)) * distance).reshape(-1)


def symmetric_levels(row):
    """As q8_0, with 4 bits."""
    blocks = row.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 7
    return (np.round(blocks / scale) * scale).reshape(-1)


def read_from(path, name, header):
    """Offsets counted from a place of the file that is not the header's end."""
    data = path.read_bytes()
    entry = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])[name]
    begin, end = (header + offset for offset in entry["data_offsets"])
    return np.frombuffer(data[begin:end], dtype="<f4").reshape(entry["shape"])


dice = itertools.cycle(["train", "val", "test"])
MISTAKES = {
    "made up": (
        "01.1",
        [lambda line: b'{"text": "' + line + b'"}'],
        "cannot be saved, so the answer is None",
    ),
    "one part": (
        "01.2",
        [lambda text: "val"],
        "the shares should be 80%, 10% and 10%; yours are train 0%, val 100%, test 0%",
    ),
    "dice": ("01.2", [lambda text: next(dice)], "nothing but the text may count"),
    "half a character": (
        "02.1",
        [lambda ids: "".join(decode([i]) for i in ids)],
        "half a character; join all bytes first",
    ),
    "one price": ("02.2", [{"WORDS": 1.0}, [], []], "the names are WORDS, digits, none"),
    "the other way round": (
        "02.2",
        [dict.fromkeys(("WORDS", "digits", "none"), 3.0), ["你好！"], ["你好！"]],
        "WORDS: 3.000 is tokens per character, not characters per token",
    ),
    "a byte that is used": (
        "02.3",
        [{5 + ord("a") - ord("!")}, ["a"]],
        "is used, for instance in 'a'",
    ),
    "too few unused": ("02.3", [set(), ["你好"]], "are missing, for instance"),
    "a tag": ("02.3", [{4}, ["你好"]], "4 is the id of a special token"),
    "a short mask": ("03.1", [lambda messages: [1]], "1 values for"),
    "no mask": ("03.1", [mask_of_length], "learned is '<|im_start|>system"),
    "not rooms": (
        "03.2",
        [lambda lengths, context: lengths],
        "documents of [7, 3, 5, 5, 2, 6, 4] in rows of 10 leave room for",
    ),
    "head twice": ("04.1", [162_624 + 64_000], "64,000 too many: the head is the embedding"),
    "last norm": ("04.1", [162_624 - 64], "64 too few: one norm"),
    "across heads": (
        "04.2",
        [lambda weight, head_dim: weight.flip(0)],
        "no row may go over to another head",
    ),
    "no window": (
        "04.3",
        [lambda T, window: torch.ones(T, T, dtype=torch.bool).tril()],
        "yours lets it look at [0, 1, 2]",
    ),
    "no step": ("05.1", [lambda model, batches: model], "nothing takes a step"),
    "plain SGD": ("05.1", [lambda *given: train(*given, sgd)], "are wanted: are gradients cleared"),
    "never cleared": ("05.1", [lambda *given: train(*given, sgd, clear=False)], "are wanted"),
    "torch's own": ("05.1", [lambda *given: train(*given, torch_sgd)], "torch.optim is closed"),
    "looks ahead": ("04.4", [attention_that("looks ahead")], "it sees the words it is to guess"),
    "looks at itself": ("04.4", [attention_that("looks at itself")], "does not arrive"),
    "before itself": ("04.4", [attention_that("looks before itself")], "it gives NaN"),
    "heads exchanged": ("04.4", [attention_that("exchanges heads")], "heads 1, 2 differ"),
    "from zero": (
        "05.2",
        [lambda step, steps, warmup, high: high * step / warmup],
        "step 0 of 100 is in the warm-up",
    ),
    "as it is": ("05.3", [{}], "are wanted"),
    "one repair": ("05.3", [{"warmup_steps": 5}], "are wanted"),
    "another number": ("05.3", [{"steps": 600}], "steps: only learning_rate, warmup_steps"),
    "three": (
        "05.3",
        [{"warmup_steps": 5, "weight_decay": 0.1, "grad_clip": 2.0}],
        "3 numbers are changed, two are enough",
    ),
    "learns nothing": ("06.1", [1e-7, 0.5], "It has not learned to answer well enough"),
    "no rate": ("06.1", [3, 0.5], "a learning rate lies between 0 and 1"),
    "one by one": (
        "06.2",
        [lambda p: [name for name in p if p[name] <= 0.05]],
        "0.05 must be divided by how many are still to be compared",
    ),
    "never stops": (
        "06.2",
        [lambda p: [n for i, n in enumerate(sorted(p, key=p.get)) if p[n] <= 0.05 / (len(p) - i)]],
        "After the first that fails no other may pass",
    ),
    "few questions": (
        "06.3",
        [lambda exam, result: ("symbol", 0.0)],
        "symbols have fewer than 10 questions",
    ),
    "hot": ("07.1", [2.0], "at 2 Paris is 2.718 times as likely as Lyon"),
    "whole pieces": (
        "07.2",
        [lambda pieces, stop: (piece for piece in pieces if piece != stop)],
        "答：b问：c', wanted '问：a'",
    ),
    "never the same": ("07.3", [lambda text, n=3: 1.0, 1.25], "3 different of 7"),
    "no penalty": ("07.3", [share_of_different_pieces, 0.8], "a penalty is above 1"),
    "as sure as before": ("07.4", [lambda logits, targets: 1.0], "can be reached"),
    "one over it": (
        "07.4",
        [lambda logits, targets: 1 / best_temperature(logits, targets)],
        "1/T would be better",
    ),
    "sixteen levels on both sides": ("08.1", [symmetric_levels, 5], "should stay exact"),
    "the two numbers are forgotten": ("08.1", [sixteen_levels, 4], "4 bits is the weight alone"),
    "no gradient": (
        "08.2",
        [lambda weight, rounding: rounding(weight)],
        "Backward the gradient must come through",
    ),
    "not rounded": ("08.2", [lambda weight, rounding: weight], "must give the rounded weight"),
    "header forgotten": (
        "08.3",
        [lambda path, name: read_from(path, name, header=0)],
        "has other numbers: its numbers begin",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_exercise(mistake, capsys):
    number, answers, told = MISTAKES[mistake]
    check_exercise(number, *answers, record=False)
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.startswith(f"{number} not yet: ") and told in out


def test_an_exception_in_the_answer_is_told_with_its_line_and_stops_nothing(capsys):
    names = {}
    exec("def repair(line):\n    row = {}\n    return row['body']\n", names)
    check_exercise("01.1", names["repair"], record=False)
    assert (
        capsys.readouterr().out
        == "01.1 not yet: line 3 of your cell (repair) stopped with KeyError: 'body'\n"
    )
    check_exercise("04.3", 3, record=False)
    told = (
        "04.3 not yet: this is no answer of the kind that was asked for: TypeError: 'int' object is"
        " not callable\n"
    )
    assert capsys.readouterr().out == told


def test_a_number_that_does_not_exist_and_a_forgotten_answer_are_errors():
    with pytest.raises(ValueError, match=r"no exercise '02.9'. There are: 01.1, 01.2"):
        check_exercise("02.9", None)
    with pytest.raises(TypeError, match="missing a required argument: 'sample'"):
        check_exercise("02.3", "…")


def test_half_of_the_language_of_echoes_is_known_in_advance():
    rows = echo.echo_rows(8, seed=1)
    questions, echoes = rows[:, 0::2], rows[:, 1::2]
    assert questions.max() < echo.WORDS <= echoes.min()
    assert torch.equal(echoes[:, 1:], questions[:, :-1] + echo.WORDS)
    assert not torch.equal(rows, echo.echo_rows(8, seed=2))


# ---- progress


def test_progress_counts_tries_and_once_right_stays_right(workspace_root, capsys):
    check_exercise("07.1", None)
    assert read_progress() == {}
    for answer in (2.0, 0.8686, 3.0):
        check_exercise("07.1", answer)
    check_exercise("04.1", 7)
    stored = json.loads((workspace_root / "progress.json").read_text(encoding="utf-8"))
    assert {number: (entry["right"], entry["tries"]) for number, entry in stored.items()} == {
        "07.1": (True, 3),
        "04.1": (False, 1),
    }
    capsys.readouterr()
    show_progress()
    table = capsys.readouterr().out
    states = {line.split()[0]: re.split(" {2,}", line)[1] for line in table.splitlines()[2:-2]}
    assert (
        states["07.1"] == "right" and states["04.1"] == "tried 1 time" and states["01.1"] == "open"
    )
    assert table.endswith(f"1 of {len(EXERCISES)} right\n")
    show_progress("04")
    assert "07.1" not in capsys.readouterr().out


def test_progress_is_the_learners_in_every_profile_and_after_a_restart(workspace_root, monkeypatch):
    check_exercise("07.1", 0.8686)
    monkeypatch.setenv("TINYLLM_PROFILE", "laptop")
    later = "from tinyllm_lib.course.exercises import show_progress; show_progress('07')"
    done = subprocess.run(
        [sys.executable, "-c", later], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.endswith("1 of 4 right\n")


def test_a_damaged_progress_file_is_named_and_not_written_over(workspace_root):
    (workspace_root / "progress.json").parent.mkdir(parents=True)
    (workspace_root / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="progress.json is damaged .* Delete it"):
        check_exercise("07.1", 0.8686)
    assert (workspace_root / "progress.json").read_text(encoding="utf-8") == "{"
