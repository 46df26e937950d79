"""What is shown of a run, rebuilt from its files; tests/test_launch.py looks at it in a real
kernel.
"""

import json
import threading
import time

import pytest

from tinyllm_lib.launch import View, progress_html, read_metrics, watch
from tinyllm_lib.launch.progress import progress_text


def rows(last, every=1, evaluated=5):
    """metrics.jsonl up to step `last`."""
    made = []
    for step in range(every, last + 1, every):
        made.append(
            {
                "step": step,
                "tokens": 100 * step,
                "loss": 8 / step,
                "lr": 1e-3,
                "tokens_per_second": 50.0,
                "mfu": 0.25,
            }
        )
        if step % evaluated == 0:
            made[-1] |= {"val_loss": 9 / step, "val_bits_per_byte": 3 / step}
    return made


def test_progress_as_html_shows_bar_curves_numbers_and_log():
    html = progress_html(rows(6), 12, ["first", "a < b", "third", "fourth", "fifth"])
    assert 'aria-valuenow="50%"' in html
    assert (
        "step 6 of 12 · loss 1.333 · learning rate 0.001 · 50 tokens/s · MFU 25% · about 0:00:12"
        " left" in html
    )
    assert "validation 0.600 bits/byte" in html
    assert html.count("<polyline") == 2 and html.count("<circle") == 1, (
        "loss, learning rate, one evaluation"
    )
    assert "loss falls from 8.00 to 1.33" in html
    assert "a &lt; b" in html and "first" not in html, "the last four lines of the log, as text"
    assert "finished" in progress_html(rows(12), 12, [])


def test_progress_before_the_first_step():
    html = progress_html([], 100, ["43,680 parameters"])
    assert (
        "step 0 of 100" in html
        and "43,680 parameters" in html
        and "<svg" not in html
        and "left" not in html
    )


def test_a_long_run_is_drawn_with_few_points_and_its_time_left_in_hours():
    html = progress_html(rows(20_000), 100_000, [])
    assert len(html) < 60_000 and "100,000" in html
    assert "about 1 day, 20:26:40 left" in progress_text(rows(20_000), 100_000)


def test_an_evaluation_between_two_lines_and_rows_that_lack_a_number():
    last = {"step": 7, "tokens": 700, "val_loss": 1.2, "val_bits_per_byte": 0.4}
    first = {"step": 1, "tokens": 100, "loss": 2.0, "tokens_per_second": 50.0}
    assert progress_text([first, last], 12) == [
        "step 7 of 12",
        "loss 2.000",
        "50 tokens/s",
        "about 0:00:10 left",
        "validation 0.400 bits/byte",
    ]
    assert progress_html([*rows(2), last], 12, []).count("<circle") == 1


def test_a_half_written_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]


def write_log(run, lines):
    with (run / "train.log").open("a", encoding="utf-8") as f:
        f.writelines(f"2026-11-25 06:25:33  {line}\n" for line in lines)


def test_a_run_is_followed_line_by_line_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tinyllm_lib.launch.live.REFRESH_SECONDS", 0.05)
    (tmp_path / "config.json").write_text(json.dumps({"steps": 500}))
    write_log(tmp_path, ["43,680 parameters", *(f"step {n}" for n in range(100))])

    def train_on():
        for start in range(100, 500, 100):  # far more at once than are shown of the past
            time.sleep(0.1)
            write_log(tmp_path, [f"step {n}" for n in range(start, start + 100)])
        write_log(tmp_path, ["Finished: run, 500 steps."])

    trainer = threading.Thread(target=train_on)
    trainer.start()
    watch(tmp_path)
    trainer.join()
    assert capsys.readouterr().out.splitlines() == [
        *(f"step {n}" for n in range(70, 500)),
        "Finished: run, 500 steps.",
    ]


def test_whole_lines_are_shown_and_a_log_that_is_replaced_from_its_start(tmp_path, capsys):
    view = View(tmp_path)
    write_log(tmp_path, ["step 1"])
    with (tmp_path / "train.log").open("ab") as log:
        log.write("2026-11-25 06:25:34  step 2 一".encode()[:-1])  # half a character, too
        log.flush()
        view.update()
        log.write("一".encode()[-1:] + b"\n")
    view.update()
    view.update()
    (tmp_path / "train.log").unlink()
    write_log(tmp_path, ["step 1 of another run", "step 2", "step 3"])
    view.update()
    View(tmp_path, skip=True).update()
    shown = ["step 1", "step 2 一", "step 1 of another run", "step 2", "step 3"]
    assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize(
    "last", ["Stopped after step 3", "Failed after step 3: the loss is not finite"]
)
def test_a_run_that_has_ended_is_shown_and_not_waited_for(tmp_path, capsys, last):
    (tmp_path / "config.json").write_text(json.dumps({"steps": 500}))
    write_log(tmp_path, ["step 3", last])
    watch(tmp_path)
    assert capsys.readouterr().out.splitlines() == ["step 3", last]


def test_a_run_that_was_killed_is_followed_if_it_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tinyllm_lib.launch.live.REFRESH_SECONDS", 0.05)
    (tmp_path / "config.json").write_text(json.dumps({"steps": 500}))
    write_log(tmp_path, ["step 3"])
    threading.Timer(1.0, write_log, (tmp_path, ["step 4", "Finished: run, 500 steps."])).start()
    watch(tmp_path)
    assert capsys.readouterr().out.splitlines() == ["step 3", "step 4", "Finished: run, 500 steps."]


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "llama"}', "[]", "{"])
def test_a_folder_without_a_run_cannot_be_watched(tmp_path, config):
    if config:  # of a model, or torn
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(FileNotFoundError, match="is no run folder: no config.json in it says"):
        watch(tmp_path)
