"""The course runner: progress lines, executed copies, and what it says when a notebook stops."""

import os
import re
import shutil
import signal
import sys
import threading
from itertools import dropwhile
from pathlib import Path

import nbformat
import pytest
from helpers.tiny import start_python

from tinyllm_lib.course import Workspace, progress
from tinyllm_lib.course import run as course
from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]


def write_notebook(path, *sources):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# title"), *map(nbformat.v4.new_code_cell, sources)],
        metadata={
            "kernelspec": {"name": "no-such-kernel", "display_name": "x", "language": "python"}
        },
    )
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(
        folder / "01_fine.ipynb",
        "import os, sys\nprint(sys.executable)",
        "print(os.getcwd()); import tinyllm_lib",
    )
    write_notebook(
        folder / "02_broken.ipynb",
        "print('so far')",
        "\n".join(f"line_{n} = {n}" for n in range(8)) + "\nraise ValueError('too few cats')",
        "print('never')",
    )
    write_notebook(folder / "03_after.ipynb", "print('never')")
    (folder / "scratch.ipynb").write_text("not a notebook of the course")
    return folder


@pytest.fixture
def executed(tmp_path):
    return tmp_path / "executed"


def printed_by(path):
    return "".join(
        output.get("text", "")
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
    )


def test_runs_in_order_and_stops_at_the_failing_notebook(notebooks, executed, capsys):
    ok = course.run_notebooks(course.find_notebooks(notebooks), executed)
    out = capsys.readouterr().out
    assert not ok
    assert re.search(r"^\[1/3\] 01_fine  + +\d+\.\d min$", out, flags=re.MULTILINE)
    assert re.search(r"^\[2/3\] 02_broken +\d+\.\d min$", out, flags=re.MULTILINE)
    assert "03_after" not in out

    assert "02_broken.ipynb stopped in cell 3" in out
    assert "    line_0 = 0\n" in out and "    ...\n" in out and "line_7" not in out
    assert "ValueError: too few cats" in out
    assert str(executed / "02_broken.ipynb") in out
    assert "make lab" in out and "make course FROM=02" in out

    assert printed_by(executed / "01_fine.ipynb").split() == [sys.executable, str(notebooks)]
    assert "so far" in printed_by(executed / "02_broken.ipynb")
    assert "too few cats" in (executed / "02_broken.html").read_text(encoding="utf-8")
    assert not (executed / "03_after.ipynb").exists()
    assert printed_by(notebooks / "02_broken.ipynb") == ""  # the notebook itself stays as it was


def test_without_a_terminal_a_line_a_minute_says_where_it_is(
    tmp_path, executed, monkeypatch, capsys
):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 1)
    code = (
        "import json, pathlib, time\n"
        f"run = pathlib.Path({str(tmp_path / 'runs' / 'pretrain')!r})\n"
        "run.mkdir(parents=True)\n"
        "(run / 'config.json').write_text(json.dumps({'steps': 1900}))\n"
        "for step in range(30):\n"
        "    row = json.dumps({'step': 1000 + step})\n"
        "    with open(run / 'metrics.jsonl', 'a') as file: print(row, file=file)\n"
        "    time.sleep(0.1)"
    )
    assert course.run_notebooks([write_notebook(tmp_path / "01_long.ipynb", code)], executed)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "after" in line]
    told = list(dropwhile(lambda line: "cell" not in line, told))  # a kernel may be slow to start
    assert told and all(re.match(r" +after \d+ min: cell 2 of 2", line) for line in told)
    assert re.search(r"cell 2 of 2, pretrain at step 1,0\d\d of 1,900$", told[-1])
    assert re.fullmatch(r"\[1/1\] 01_long +\d+\.\d min", lines[-1])


def test_a_run_that_rests_is_not_named(tmp_path):
    run = tmp_path / "pretrain"
    run.mkdir()
    (run / "config.json").write_text('{"steps": 5}')
    (run / "metrics.jsonl").write_text('{"step": 5}\n')
    assert progress.newest_step(tmp_path, 60) == "pretrain at step 5 of 5"
    os.utime(run / "metrics.jsonl", (0, 0))
    assert progress.newest_step(tmp_path, 60) == progress.newest_step(run, 60) == ""


def test_minutes_reach_the_kernels_and_what_cannot_be_is_said_first(
    notebooks, workspace_root, monkeypatch, capsys
):
    monkeypatch.setenv("TINYLLM_MINUTES", "")  # so that it is gone after the test
    assert course.main(["--notebooks", str(notebooks), "--minutes", "12"]) == 2
    assert "can be given for the profile laptop" in capsys.readouterr().err
    assert os.environ["TINYLLM_MINUTES"] == "12"


def test_a_kernel_that_dies_is_told_as_such(tmp_path, executed, capsys):
    path = write_notebook(tmp_path / "01_dies.ipynb", "import os\nos._exit(9)")
    assert not course.run_notebooks([path], executed)
    out = capsys.readouterr().out
    assert "stopped in cell 2" in out and "kernel died" in out and "memory" in out


def test_widgets_of_another_run_are_left_out(tmp_path, executed, capsys):
    path = write_notebook(
        tmp_path / "01_widgets.ipynb",
        "import ipywidgets\nprint('so far')",
        "ipywidgets.IntSlider()",
    )
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {
        "application/vnd.jupyter.widget-state+json": {"version_major": 2, "version_minor": 0}
    }
    nbformat.write(notebook, path)
    assert course.run_notebooks([path], executed)
    assert "so far" in (executed / "01_widgets.html").read_text(encoding="utf-8")
    assert "no HTML copy" not in capsys.readouterr().out


def test_formulas_of_the_html_copy_need_no_network(tmp_path, executed):
    path = write_notebook(tmp_path / "01_formula.ipynb", "1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell(r"A coin toss costs $\ln 2$ nats."))
    nbformat.write(notebook, path)
    assert course.run_notebooks([path], executed)
    html = (executed / "01_formula.html").read_text(encoding="utf-8")
    assert "<math" in html and "mathjax" not in html.lower() and r"\ln" not in html


def test_an_html_copy_that_cannot_be_made_stops_nothing(tmp_path, executed, capsys, monkeypatch):
    monkeypatch.setattr(
        "nbconvert.HTMLExporter.from_notebook_node", lambda *args, **kwargs: {}["state"]
    )
    path = write_notebook(tmp_path / "01_fine.ipynb", "print('so far')")
    assert course.run_notebooks([path], executed)
    assert "no HTML copy of 01_fine.ipynb (KeyError: 'state')" in capsys.readouterr().out
    assert printed_by(executed / "01_fine.ipynb") == "so far\n"


def test_a_kernel_that_does_not_come_up_is_told_as_such(tmp_path, executed, capsys, monkeypatch):
    async def no_kernel(self, **kwargs):
        raise OSError("no room for the kernel")

    monkeypatch.setattr("nbclient.NotebookClient.async_start_new_kernel", no_kernel)
    assert not course.run_notebooks([write_notebook(tmp_path / "01_fine.ipynb", "1")], executed)
    out = capsys.readouterr().out
    assert (
        "01_fine.ipynb stopped before its first cell" in out
        and "OSError: no room for the kernel" in out
    )


def test_a_home_that_is_there_stays_and_one_that_is_not_is_lent(tmp_path, monkeypatch):
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    course.ensure_home()
    assert Path.home() == tmp_path
    nowhere = {"HOME": str(tmp_path / "none"), "USERPROFILE": str(tmp_path / "none")}
    code = "from pathlib import Path; from tinyllm_lib.course.run import ensure_home;"
    code += "ensure_home(); (Path.home() / 'x').touch(); print(Path.home())"
    lent = Path(start_python("-c", code, **nowhere).communicate()[0].strip())
    assert lent.name.startswith("tinyllm-home-") and not lent.exists(), "gone with the process"


@pytest.mark.skipif(sys.platform == "win32", reason="other systems have other homes")
def test_the_course_runs_without_a_home_in_any_locale(tmp_path):
    folder = tmp_path / "空 间"
    folder.mkdir()
    write_notebook(
        folder / "01_fine.ipynb",
        "from pathlib import Path; print('北京', Path.cwd().name);"
        " Path.home().joinpath('x').touch()",
        "raise ValueError('南京')",
    )
    strange = {
        "HOME": "/proc/nobody",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "TMPDIR": "/nowhere",
        "TINYLLM_WORKSPACE": str(tmp_path / "工 作"),
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    process = start_python("-m", "tinyllm_lib.course", "--notebooks", folder, **strange)
    assert "stopped in cell 3" in process.communicate()[0] and process.returncode == 1
    executed = tmp_path / "工 作" / "ci" / "executed"
    assert printed_by(executed / "01_fine.ipynb") == "北京 空 间\n"
    assert "南京" in (executed / "01_fine.html").read_text(encoding="utf-8")


def test_a_workspace_of_somebody_else_is_named_before_anything_runs(
    notebooks, workspace_root, monkeypatch, capsys
):
    workspace_root.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(workspace_root))
    assert course.main(["--notebooks", str(notebooks)]) == 2
    assert f"the folder {workspace_root} is closed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a test cannot press Ctrl-C there")
def test_ctrl_c_stops_the_cell_and_the_course(tmp_path, executed):
    path = write_notebook(
        tmp_path / "01_long.ipynb", "import time\ntime.sleep(120)", "print('never')"
    )
    main_process = os.getpid()

    def press(cell, cells):
        threading.Timer(1.0, os.kill, (main_process, signal.SIGINT)).start()

    failure = course.execute_notebook(path, executed, press)
    assert failure.cell == 2 and failure.error == "Stopped with Ctrl-C."
    assert "KeyboardInterrupt" in (executed / "01_long.ipynb").read_text(encoding="utf-8")
    assert "never" not in printed_by(executed / "01_long.ipynb")


def test_code_cells_are_told_before_they_run_and_text_cells_are_not(tmp_path, executed):
    told = []
    path = write_notebook(tmp_path / "01_two.ipynb", "1", "2")
    assert (
        course.execute_notebook(path, executed, lambda cell, cells: told.append((cell, cells)))
        is None
    )
    assert told == [(2, 3), (3, 3)]


def test_notebooks_are_numbered_ones_from_the_first_wanted(notebooks):
    assert [path.stem for path in course.find_notebooks(notebooks)] == [
        "01_fine",
        "02_broken",
        "03_after",
    ]
    assert [path.stem for path in course.find_notebooks(notebooks, "02")] == [
        "02_broken",
        "03_after",
    ]
    with pytest.raises(ValueError, match="no notebook starts with '07'. There are: 01_fine"):
        course.find_notebooks(notebooks, "07")
    with pytest.raises(FileNotFoundError, match="runs from a clone"):
        course.find_notebooks(notebooks / "elsewhere")


def test_experiments_run_only_where_they_are_asked_for(notebooks):
    write_notebook(notebooks / "09_experiments.ipynb", "1")
    assert course.find_notebooks(notebooks)[-1].stem == "03_after"
    assert course.find_notebooks(notebooks, "02")[-1].stem == "03_after"
    assert [path.stem for path in course.find_notebooks(notebooks, "09")] == ["09_experiments"]


def test_exam_table_shows_both_models():
    from tinyllm_lib.evaluate import Answer, ExamResult

    def result(kind, *answers):
        return ExamResult(kind, "step_000001", "exam.jsonl", 0.1, list(answers))

    right, wrong = (Answer("greeting", "你好", "你好", "…", is_right) for is_right in (True, False))
    base = result("base", wrong, right)
    chat = result("chat", right, right, Answer("sum_unseen", "1+1等于多少？", "2", "2", True))
    header, _, greeting, sums = course.exam_table(base, chat).splitlines()
    assert re.split(r"  +", header) == ["class", "base model", "chat model", "what it shows"]
    assert re.split(r"  +", greeting)[:3] == ["greeting", "50% (1/2)", "100% (2/2)"]
    assert re.split(r"  +", sums)[:3] == ["sum_unseen", "-", "100% (1/1)"]


def test_a_saved_exam_is_taken_again_when_it_is_of_other_weights_or_another_exam(
    tmp_path, tiny_config, one_thread, capsys
):
    workspace = Workspace(tmp_path)
    exam = workspace.raw / "exam.jsonl"
    exam.parent.mkdir(parents=True)
    exam.write_text('{"question": "法国的首都是哪里？", "answer": "巴黎"}\n', encoding="utf-8")
    train(tiny_config(workspace.run("chat"), steps=1))
    first = course.exam_result(workspace, "chat")
    assert "chat takes the exam now: " in capsys.readouterr().out
    saved = (workspace.run("chat") / "exam.json").read_bytes()
    assert (
        course.exam_result(workspace, "chat").made_from == first.made_from
        and capsys.readouterr().out == ""
    )

    shutil.rmtree(workspace.run("chat") / "checkpoints")  # another model, of the same step
    train(tiny_config(workspace.run("chat"), steps=1, seed=1))
    (workspace.run("chat") / "exam.json").write_bytes(saved)
    second = course.exam_result(workspace, "chat")
    assert "not the exam of these weights, weights (was " in capsys.readouterr().out
    assert (
        second.checkpoint == first.checkpoint
        and second.made_from["weights"] != first.made_from["weights"]
    )

    exam.write_text('{"question": "日本的首都是哪里？", "answer": "东京"}\n', encoding="utf-8")
    assert course.exam_result(workspace, "chat").answers[0].expected == "东京"


def test_main_ends_with_answers_exam_and_time(notebooks, workspace_root, monkeypatch, capsys):
    (notebooks / "02_broken.ipynb").unlink()
    asked = []
    monkeypatch.setattr(course, "print_results", asked.append)
    assert course.main(["--notebooks", str(notebooks)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 notebooks at the ci profile")
    assert asked[0].root == workspace_root / "ci"
    assert (workspace_root / "ci" / "executed" / "03_after.html").exists()
    assert "Where to go next" in out and re.search(r"The course took \d+\.\d minutes", out)


def test_main_stops_with_exit_code_1_at_a_failing_notebook(
    notebooks, workspace_root, monkeypatch, capsys
):
    monkeypatch.setattr(
        course, "print_results", lambda workspace: pytest.fail("not after a failure")
    )
    assert course.main(["--notebooks", str(notebooks), "--from", "02"]) == 1
    assert "[1/2] 02_broken" in capsys.readouterr().out


def test_what_is_left_undone_is_told_in_a_sentence(notebooks, workspace_root, monkeypatch, capsys):
    """No chat model yet; minutes that the next call needs, too; Ctrl-C before a notebook runs."""
    assert course.main(["--notebooks", str(notebooks), "--from", "03"]) == 0
    assert "no chat model yet" in capsys.readouterr().out

    monkeypatch.setenv("TINYLLM_MINUTES", "12")
    failure = course.Failure(cell=1, source="1 / 0", error="ZeroDivisionError")
    told = course._explain(notebooks / "02_broken.ipynb", failure, workspace_root)
    assert told.endswith("make course FROM=02 MINUTES=12")

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "get_profile", interrupted)
    assert course.main(["--notebooks", str(notebooks)]) == 1
    assert "Stopped with Ctrl-C" in capsys.readouterr().out


def test_a_misspelt_profile_is_named_before_anything_runs(notebooks, monkeypatch, capsys):
    monkeypatch.setenv("TINYLLM_PROFILE", "labtop")
    assert course.main(["--notebooks", str(notebooks)]) == 2
    assert "laptop" in capsys.readouterr().err


def test_peak_memory_is_plausible():
    memory = course.peak_memory_gb()
    assert memory is None or 0.01 < memory < 1000
