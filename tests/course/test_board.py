"""The board: what a config may change and what it costs, rows that everybody can read, runs that go
on; and docs/board.md itself, whose newest config is trained once more, small.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny import ROOT

from tinyllm_lib.course import board, get_profile
from tinyllm_lib.course.board import (
    BASELINE,
    BUDGET,
    Row,
    append_row,
    parse_row,
    read_board,
    settle,
)
from tinyllm_lib.data import read_json
from tinyllm_lib.launch import LaunchError
from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]

LAPTOP = get_profile("laptop")
PAGE = (ROOT / "docs/board.md").read_text(encoding="utf-8")
MINE = {"pretrain": {"learning_rate": 0.02}, "sft": {"steps": 100}}


def row(**changes):
    made = {"name": "mine", "date": "2026-11-28", "library": "c704f71", "data": "0123abcd"}
    numbers = {"right": [1050, 998, 1100, 1146], "bits": [0.6, 0.55, 0.61], "config": MINE}
    return Row(**{**made, **numbers, **changes})


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A board without rows, which takes the place of docs/board.md."""
    path = tmp_path / "board.md"
    path.write_text(f"# The board\n\n{board.HEADER}\n|---|\n", encoding="utf-8")
    monkeypatch.setattr(board, "BOARD", path)
    return path


# ---- the budget


def test_a_reference_token_is_a_position_of_the_laptop_model_and_an_update_is_200_of_them():
    assert board.step_costs(settle({})) == {"pretrain": 16 * 128 + 200, "sft": 16 * 128 + 200}
    assert board.step_costs(settle({"sft": {"batch_size": 4}}))["sft"] == 4 * 128 + 200
    small, large = (
        board.step_costs(settle({"pretrain": {"n_layers": n}}))["pretrain"] for n in (4, 8)
    )
    layers = 1 - 6 * 4096 * 128 / board.size_of(*board.SHAPE.values())[0]
    assert large == pytest.approx(small * (1 + layers)), "the head is not doubled"


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, (444, 223)),
        ({"sft": {"steps": 100}}, (567, 100)),
        ({"pretrain": {"steps": 60}}, (60, 607)),
    ],
)
def test_stages_without_steps_fill_the_budget_to_the_last_step(config, steps):
    full = settle(config)
    assert (full["pretrain"]["steps"], full["sft"]["steps"]) == steps
    spent = board.reference_tokens(full)
    assert spent <= BUDGET < spent + 2248


def test_the_baseline_is_the_laptop_recipe_the_page_shows():
    assert board.size_of(*board.SHAPE.values()) == (8_650_752, 1_311_872)
    for name in (*BASELINE["pretrain"], "replay_share"):
        assert f"`{name}`" in PAGE, name
    assert f"{BUDGET:,}" in PAGE and f"{board.UPDATE} more" in PAGE
    assert settle(json.loads(PAGE.split("```")[1].removeprefix("json")))["sft"]["steps"] == 300


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            {"pretrain": {"steps": 900}},
            "costs 2,02[0-9],... reference tokens .900 steps of pretrain",
        ),
        ({"pretrain": {"steps": 400}, "sft": {"steps": 268}}, "1,501,664 .* allows 1,500,000"),
        ({"pretrain": {"dim": 4096}}, "fewer rows or layers cost less"),
        ({"pretrain": {"dim": 130}}, "not a multiple of n_heads"),
        ({"pretrain": {"data_path": "mine"}}, "pretrain cannot have data_path here"),
        ({"sft": {"dim": 64}}, "sft cannot have dim here. What it can: batch_size"),
        ({"vocab_size": 100}, "a config cannot have vocab_size here"),
        ({"sft": [1]}, "sft is .1., expected an object"),
        ({"pretrain": {"learning_rate": -1}}, "learning_rate must be positive"),
        ({"replay_share": "half"}, "expected a number from 0 to 2"),
    ],
)
def test_what_is_no_config_or_over_the_budget_is_refused_before_anything_is_made(
    config, why, tmp_path, workspace_root, page, capsys
):
    with pytest.raises(ValueError, match=why):
        settle(config)
    (tmp_path / "mine.json").write_text(json.dumps(config), encoding="utf-8")
    assert board.main([str(tmp_path / "mine.json")]) == 1
    assert "No row is appended" in capsys.readouterr().err
    assert not workspace_root.exists() and read_board(page) == []


# ---- rows


def test_a_row_says_all_that_is_needed_to_train_it_again():
    line = str(row())
    assert parse_row(line) == row()
    assert line == (
        "| mine | 2026-11-28 | c704f71 | 0123abcd | 1,050 (998 to 1,100) of 1,146"
        " | 0.6000 (0.5500 to 0.6100) | 1,499,416 | 1,311,872"
        ' | `{"pretrain": {"learning_rate": 0.02}, "sft": {"steps": 100}}` |'
    )


@pytest.mark.parametrize(
    ("was", "becomes", "why"),
    [
        ("1,499,416", "1,400,000", "would write .* 1,499,416"),
        ("1,311,872", "1", "would write .* 1,311,872"),
        ("2026-11-28", "yesterday", "would write"),
        ("c704f71", "c704f71+", "changed library: commit"),
        ("1,050 (998", "1,150 (998", "median lies between"),
        ("of 1,146", "of 1,046", "median lies between"),
        ("0.5500", "0.7500", "median lies between"),
        ("(998 to 1,100) ", "", "expected the cells"),
        (" | 0123abcd", "", "expected the cells"),
        ('{"steps": 100}', '{"steps": 900}', "the board allows 1,500,000"),
        ('{"steps": 100}', '{"seed": 7}', "sft cannot have seed"),
        ('"steps": 100}', '"steps": 100', "Expecting"),
        ("| mine", "| mi`ne", "would write"),
    ],
)
def test_a_row_that_make_board_would_not_write_is_found_with_its_line(page, was, becomes, why):
    assert was in str(row())
    with page.open("a", encoding="utf-8") as file:
        file.write(f"{row(name='first')}\n{str(row()).replace(was, becomes)}\n")
    with pytest.raises(ValueError, match=f"board.md line 6: .*{why}"):
        read_board(page)


def test_text_below_the_rows_and_a_page_without_a_table_are_found(page):
    with page.open("a", encoding="utf-8") as file:
        file.write(f"{row()}\nMine is the best.\n")
    with pytest.raises(ValueError, match="line 6: expected the cells"):
        read_board(page)
    page.write_text("# The board\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the line"):
        read_board(page)


def test_rows_are_only_added_and_the_same_trial_once(page):
    assert append_row(row(), page).startswith("Appended")
    again = append_row(row(name="again", config={**MINE, "replay_share": 0.5}), page)
    assert (
        again == "Not appended: mine is this config of this library already; nothing is replaced."
    )
    assert append_row(row(name="later", library="1234567"), page).startswith("Appended")
    assert [r.name for r in read_board(page)] == ["mine", "later"]
    assert "changed library" in append_row(row(library="1234567+", config={}), page)
    before = page.read_text(encoding="utf-8") + "and a note\n"
    page.write_text(before, encoding="utf-8")
    assert "line 7: expected" in append_row(row(config={}), page), "what others wrote stays"
    assert page.read_text(encoding="utf-8") == before


# ---- runs


@pytest.fixture
def quick(monkeypatch, workspace_root, one_thread, page):
    """Training in this process, of a very small model; the out_dirs of what was launched."""
    launched = []
    for name, value in {"dim": 32, "n_layers": 1, "batch_size": 4}.items():
        monkeypatch.setitem(BASELINE["pretrain"], name, value)
    monkeypatch.setitem(BASELINE["sft"], "batch_size", 4)
    monkeypatch.setitem(board.SIZES, "ci", (4000, 1))
    ci = replace(get_profile("ci"), documents=400, dialogues=250, vocab_size=400)
    monkeypatch.setattr(board, "get_profile", lambda name: {"ci": ci, "laptop": LAPTOP}[name])

    def launch(config):
        launched.append("/".join(Path(config.out_dir).parts[-2:]))
        return train(config)

    monkeypatch.setattr(board, "launch", launch)
    return launched


def test_a_board_that_was_stopped_goes_on_where_it_was(quick, tmp_path, monkeypatch, capsys):
    config = tmp_path / "my idea (1).json"
    config.write_text('{"sft": {"learning_rate": 0.004, "warmup_steps": 10}}', encoding="utf-8")
    command = [str(config), "--profile", "ci", "--seeds", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(board, "run_exam", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert board.main(command) == 130
    assert "The same command goes on" in capsys.readouterr().out
    weights = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")}
    assert len(weights) == 2 and quick == ["seed_0/pretrain", "seed_0/sft"]
    assert board.main(command) == 0
    assert quick[2:] == [f"seed_{n}/{stage}" for n in (0, 1) for stage in ("pretrain", "sft")]
    assert weights == {path: path.stat().st_mtime_ns for path in weights}, "nothing trained twice"
    said = capsys.readouterr().out
    assert "\n| my idea _1_ |" in said and '`{"sft": {"learning_rate": 0.004}}` |' in said
    assert "Nothing is appended" in said and read_board(board.BOARD) == []


def test_runs_are_those_of_their_config_and_data(quick, workspace_root):
    ci = board.get_profile("ci")
    board.row_of("first", {}, [0], ci)
    board.row_of("second", {"replay_share": 0}, [0], ci)
    folders = {path.name for path in (workspace_root / "ci/board").iterdir()}
    assert len(folders) == 4 and {"data_0", "data_0.5"} < folders
    with (workspace_root / "ci/board/data_0/raw/exam.jsonl").open("a", encoding="utf-8") as exam:
        exam.write("\n")
    with pytest.raises(ValueError, match=r"exam.jsonl was changed by hand; .* remove .*data_0"):
        board.row_of("second", {"replay_share": 0}, [0], ci)


def test_three_seeds_become_a_row_with_median_and_range(page, tmp_path, monkeypatch, capsys):
    results = {0: (700, 1056, 0.61234), 1: (650, 1056, 0.62), 2: (710, 1056, 0.6)}
    monkeypatch.setattr(board, "run_seed", lambda config, seed, profile: results[seed])
    monkeypatch.setattr(board, "library_commit", lambda: "c704f71")
    (tmp_path / "mine.json").write_text(json.dumps(MINE), encoding="utf-8")
    assert board.main([str(tmp_path / "mine.json"), "--profile", "laptop"]) == 0
    (found,) = read_board(page)
    assert (found.name, found.config, found.data) == ("mine", MINE, board.data_hash(LAPTOP))
    assert (found.right, found.bits) == ([700, 650, 710, 1056], [0.6123, 0.6, 0.62])
    assert board.main([str(tmp_path / "mine.json"), "--profile", "laptop"]) == 0
    assert "mine is this config of this library already" in capsys.readouterr().out


def test_a_run_that_fails_leaves_the_board_as_it_was(page, tmp_path, monkeypatch, capsys):
    def fails(config, seed, profile):
        raise LaunchError("The loss is nan at step 12.")

    monkeypatch.setattr(board, "run_seed", fails)
    (tmp_path / "mine.json").write_text("{}", encoding="utf-8")
    assert append_row(row(), page) and board.main([str(tmp_path / "mine.json")]) == 1
    assert "loss is nan at step 12.\nNo row is appended" in capsys.readouterr().err
    assert len(read_board(page)) == 1


def test_the_library_is_named_by_its_last_commit_and_a_change_is_seen(monkeypatch, tmp_path):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    monkeypatch.setattr(board, "LIBRARY", tmp_path / "lib")
    assert board.library_commit() == "unknown+"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.py").write_text("1\n")
    for what in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *what], check=True)
    one = board.library_commit()
    (tmp_path / "page.md").write_text("beside the library\n")
    assert board.library_commit() == one and len(one) == 7
    (tmp_path / "lib/a.py").write_text("2\n")
    assert board.library_commit() == one + "+"


# ---- docs/board.md, as CI checks it


def test_every_row_of_the_page_has_its_form_and_keeps_to_the_budget():
    rows = read_board(ROOT / "docs/board.md")
    trials = [(r.library, r.data, settle(r.config)) for r in rows]
    assert all(trial not in trials[:n] for n, trial in enumerate(trials)), "a trial stands twice"


def test_the_newest_config_of_the_page_trains_and_sits_its_exam_at_ci_size(tmp_path):
    rows = read_board(ROOT / "docs/board.md")
    newest = rows[-1].config if rows else {}
    (tmp_path / "newest.json").write_text(json.dumps(newest), encoding="utf-8")
    command = ["-m", "tinyllm_lib.course.board", str(tmp_path / "newest.json"), "--seeds", "1"]
    env = {**os.environ, "TINYLLM_WORKSPACE": str(tmp_path), "TINYLLM_PROFILE": "ci"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, text=True,
                          capture_output=True, encoding="utf-8")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| newest |")]
    trained = parse_row(line.replace("+ |", " |"))
    assert trained.config == newest and 1 < trained.bits[0] < 8 and trained.right[3] >= 20
    (run,) = (tmp_path / "ci/board").glob("*/seed_0/pretrain/config.json")
    assert read_json(run)["steps"] == -(-settle(newest)["pretrain"]["steps"] // 100)
