"""The benches: pairs in turn, a process for each run, medians, and what is stored. Nothing here
looks at a speed.
"""

import json
import os
import sys
from functools import partial

import pytest
import torch
from helpers.tiny import start_python

from tinyllm_lib.course.world import write_sample_corpus
from tools.bench import data, gpu, gpu_rows, harness
from tools.bench.harness import Case, bench_folder, compare, run_alone, table


def work_of(amount, log=None):
    """A setup whose work writes its amount into a file, with the process it ran in."""

    def work():
        if log:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{amount} {os.getpid()}\n")
        return amount

    return work


def broken():
    raise ValueError("no corpus")


def holding(megabytes):
    return lambda: len(b"x" * (megabytes * 10**6))


def test_ours_and_the_peer_take_turns_each_in_a_process_of_its_own(tmp_path, capsys):
    log = tmp_path / "log"
    result = compare(
        Case("count", "M/s", partial(work_of, 1, log), partial(work_of, 2, log), "peer library"),
        runs=3,
    )
    runs = [line.split() for line in log.read_text().splitlines()]
    assert [amount for amount, _ in runs] == ["1", "2", "2", "1", "1", "2"]
    assert len({process for _, process in runs} - {str(os.getpid())}) == 6
    assert (result["case"], result["peer_name"], result["unit"], result["runs"]) == (
        "count",
        "peer library",
        "M/s",
        3,
    )
    assert "count, run 3 of 3" in capsys.readouterr().out


def test_the_ratio_is_the_median_of_the_pairs(monkeypatch):
    # Seconds of ours, peer; peer, ours; ours, peer: the pairs' ratios are 2, 4 and 0.5.
    seconds = iter([1, 2, 4, 1, 10, 5])
    monkeypatch.setattr(harness, "run_alone", lambda setup: (100, next(seconds), 7))
    result = compare(Case("count", "M/s", None, None, "peer"), runs=3)
    assert (result["ours"], result["peer"]) == (100, 25)
    assert (result["ratio"], result["spread"]) == (2, [0.5, 4])
    assert result["peak_mb"] == {"ours": 7, "peer": 7}


def test_a_busy_case_has_a_neighbour_on_both_sides_that_ends_with_it(monkeypatch):
    seen = []
    popen = harness.subprocess.Popen
    monkeypatch.setattr(
        harness.subprocess, "Popen", lambda *args: seen.append(popen(*args)) or seen[-1]
    )

    def run(setup):
        assert [process.poll() for process in seen[-1:]] == [None], "it runs meanwhile"
        return 100, 1, 7

    monkeypatch.setattr(harness, "run_alone", run)
    compare(Case("count", "M/s", None, None, "peer", busy=True), runs=1)
    assert len(seen) == 2 and None not in [process.poll() for process in seen]
    with harness.neighbour(busy=False) as process:
        assert process is None


@pytest.mark.skipif(
    harness.peak_memory_mb() is None, reason="peak memory is not known on this system"
)
def test_peak_memory_is_that_of_the_run_alone():
    ballast = b"x" * 800_000_000  # ours, not the run's
    small, large = (run_alone(partial(holding, megabytes))[2] for megabytes in (1, 200))
    assert len(ballast) == 800_000_000
    assert small < 600 and 195 < large - small < 220


def test_a_run_that_fails_ends_the_bench(capfd):
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_alone(broken)
    assert "ValueError: no corpus" in capfd.readouterr().err


def test_results_are_printed_and_stored_with_machine_date_and_versions(
    workspace_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(harness, "FIGURES", tmp_path / "figures")
    cases = [
        Case(name, "M/s", partial(work_of, 1), partial(work_of, 2), "peer")
        for name in ("one", "another")
    ]

    def bench(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", "--runs", "1", *arguments])
        return harness.main("count", lambda: cases, packages=["numpy"], hardware="one abacus")

    results = bench()
    stored = bench_folder() / "count.json"
    assert json.loads(stored.read_text("utf-8")) == results
    expected = {
        "case",
        "ours",
        "peer",
        "peer_name",
        "unit",
        "ratio",
        "runs",
        "spread",
        "hardware",
        "date",
        "versions",
    }
    assert all(expected <= row.keys() for row in results)
    assert results[0]["hardware"].endswith("one abacus") and set(results[0]["versions"]) == {
        "python",
        "numpy",
    }
    assert table(results) in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()

    bench("--save")
    assert (
        json.loads((tmp_path / "figures" / "count.json").read_text("utf-8"))[1]["case"] == "another"
    )
    stored.unlink()
    assert [row["case"] for row in bench("--only", "other")] == ["another"]
    assert not stored.exists()
    with pytest.raises(SystemExit):
        bench("--only", "missing")
    assert "no case has 'missing' in its name" in capsys.readouterr().err


def test_both_sides_of_every_case_do_the_same_amount_of_work(workspace_root, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "REAL_DATA", tmp_path)  # so that the sample corpus is taken
    monkeypatch.setattr(data, "write_sample_corpus", partial(write_small, write_sample_corpus))
    pytest.importorskip("rapidgzip")
    for case in data.cases():
        ours, peer = case.ours()(), case.peer()()
        # the reader leaves out copies
        assert 0 < ours == pytest.approx(peer, rel=0.5 if "read" in case.name else 1e-9), case.name


def write_small(write, folder, documents, dialogues):
    return write(folder, documents=400, dialogues=100)


def test_the_bench_is_a_command():
    process = start_python("-m", "tools.bench.data", "--help")
    assert "--save" in process.communicate()[0] and process.returncode == 0


SMALLEST = gpu.Size(documents=400, rows=(4, 2), steps=1, small_steps=2, tokens=4, prompts=2)


def run_gpu_bench(folder, *arguments):
    gpu.main(["--dry-run", "--out", str(folder), *arguments], SMALLEST)
    stored = folder / "gpu-dry-run.json"
    return json.loads(stored.read_text("utf-8")) if stored.exists() else []


def test_a_dry_run_of_the_gpu_bench_goes_through_every_kind_of_row(tmp_path, monkeypatch, capsys):
    def one_of_each_kind(*arguments, cases=gpu.cases):
        return {case[2].func: case for case in reversed(cases(*arguments))}.values()

    monkeypatch.setattr(gpu, "cases", one_of_each_kind)
    rows = {row["case"]: row for row in run_gpu_bench(tmp_path)}
    named = {"case", "ours", "peer", "peer_name", "unit", "ratio", "runs"}
    named |= {"hardware", "date", "versions", "commit"}
    assert all(named <= row.keys() and "error" not in row for row in rows.values())
    training = rows["training tiny, stream, 4 rows, compiled"]
    assert training["ratio"] == pytest.approx(training["ours"] / training["peer"], rel=0.01)
    assert {"mfu", "compiler_s", "memory_gb", "memory_computed_gb", "peer_compiler_s"} <= {
        *training
    }
    busy = rows["training tiny, stream, 4 rows, compiled, a busy process beside it"]
    assert busy["peer"] == training["ours"]
    assert rows["sampling tiny, stream, 1 at once"]["texts_as_without_cache"] == "1 of 1"
    assert rows["the same twice"]["ours"] == 2  # as on every CPU
    assert rows["losses in bf16, largest difference"]["ours"] < 0.01
    assert "training tiny, stream, 4 rows, compiled: " in capsys.readouterr().out


def test_the_gpu_bench_keeps_what_it_has_when_a_case_fails_or_time_runs_out(
    tmp_path, monkeypatch, capsys
):
    def fine():
        yield {"case": "fine", **gpu_rows.compared(3, None, "nobody", "tokens/s")}
        now[0] += 50
        yield {"case": "fine", **gpu_rows.compared(3, 2, "somebody", "tokens/s")}

    def failing():
        yield {"case": "half", **gpu_rows.compared(1, None, "nobody", "tokens/s")}
        raise RuntimeError("CUDA out of memory")

    now = [0.0]
    listed = [("fine", 10, fine), ("half", 1, failing), ("late", 3, fine)]
    monkeypatch.setattr(gpu, "cases", lambda *_: listed)
    monkeypatch.setattr(gpu, "prepare", lambda *_: None)
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now[0])
    rows = run_gpu_bench(tmp_path, "--minutes", "1")
    assert [row["case"] for row in rows] == ["fine", "half"]
    assert (rows[0]["ratio"], rows[1]["ours"], rows[1]["error"]) == (1.5, 1, "out of memory")
    assert "left out, for it takes 14 s and 10 s are left: late" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_bench_says_what_can_be_done(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--dry-run tries everything on a CPU" in capsys.readouterr().err
