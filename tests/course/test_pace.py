"""Minutes and steps: how long the course takes here, and what fits into the time one has."""

import json
import math
from dataclasses import replace

import pytest

from tinyllm_lib.course import get_profile, pace
from tinyllm_lib.course.pace import course_minutes, fit_to_minutes
from tinyllm_lib.data import write_json
from tinyllm_lib.train import TrainConfig, get_lr

LAPTOP = get_profile("laptop")


@pytest.mark.parametrize(("rate", "minutes"), [(7300, 15), (7300, 25), (16200, 8)])
def test_the_steps_that_fit_take_the_minutes_that_there_are(rate, minutes):
    fitted = fit_to_minutes(LAPTOP, rate, minutes)
    assert fitted.minutes == minutes
    assert course_minutes(fitted, rate) == pytest.approx(minutes, rel=0.01)
    assert fitted.pretrain["steps"] < LAPTOP.pretrain["steps"]


def test_pretraining_and_sft_keep_the_same_share_of_their_steps():
    fitted = fit_to_minutes(LAPTOP, 7300, 20)
    share = fitted.pretrain["steps"] / LAPTOP.pretrain["steps"]
    assert fitted.sft["epochs"] == pytest.approx(share * LAPTOP.sft["epochs"], rel=0.01)
    same = replace(fitted, minutes=None, pretrain=LAPTOP.pretrain, sft=LAPTOP.sft)
    assert same == LAPTOP, "nothing else changes: corpus, model and tokenizer stay"


def test_more_time_never_means_more_steps_than_the_profile_has():
    fitted = fit_to_minutes(LAPTOP, 16200, 1000)
    assert (fitted.pretrain, fitted.sft) == (LAPTOP.pretrain, LAPTOP.sft)


def test_too_little_time_leaves_a_few_steps_and_the_true_minutes():
    fitted = fit_to_minutes(LAPTOP, 1000, 1)
    assert fitted.pretrain["steps"] == int(pace.LEAST_SHARE * LAPTOP.pretrain["steps"])
    assert course_minutes(fitted, 1000) > 1


def test_the_learning_rate_rises_and_falls_within_the_steps_there_are():
    config = TrainConfig(**fit_to_minutes(LAPTOP, 1000, 1).pretrain)
    assert config.warmup_steps <= config.steps / 10
    lowest = config.min_lr_share * config.learning_rate
    assert get_lr(config.steps - 1, config) == pytest.approx(lowest, rel=0.02)


def test_minutes_that_are_none_and_profiles_that_nobody_has_measured_are_refused():
    with pytest.raises(ValueError, match="take -3 minutes: expected more than 0"):
        fit_to_minutes(LAPTOP, 7300, -3)
    with pytest.raises(ValueError, match="for the profile laptop.* not for full"):
        fit_to_minutes(get_profile("full"), 7300, 12)


@pytest.fixture
def rates(workspace_root, monkeypatch):
    """The rates that this machine will be found to have, one for each time it is measured."""
    rates = [7000, 3000, 1000]
    monkeypatch.setenv("TINYLLM_PROFILE", "laptop")
    monkeypatch.setattr(pace, "measure_rate", lambda profile: rates.pop(0))
    return rates


def test_the_same_minutes_are_the_same_steps_whatever_the_machine_does_meanwhile(
    rates, workspace_root, monkeypatch
):
    monkeypatch.setenv("TINYLLM_MINUTES", "15")
    first = get_profile()
    assert first == fit_to_minutes(LAPTOP, 7000, 15) and get_profile() == first
    assert rates == [3000, 1000], "measured once"
    monkeypatch.setenv("TINYLLM_MINUTES", "15.0")
    assert get_profile() == first
    monkeypatch.setenv("TINYLLM_MINUTES", "20")
    assert get_profile() == fit_to_minutes(LAPTOP, 3000, 20)
    kept = json.loads((workspace_root / "laptop" / "pace.json").read_text(encoding="utf-8"))
    assert kept == {"15": 7000, "20": 3000}


@pytest.mark.parametrize("kept", ["abc", -5, math.nan, math.inf, None, True, 10**400])
def test_a_kept_rate_that_is_none_is_measured_anew(rates, workspace_root, monkeypatch, kept):
    monkeypatch.setenv("TINYLLM_MINUTES", "15")
    write_json(workspace_root / "laptop" / "pace.json", {"15": kept})
    assert get_profile() == fit_to_minutes(LAPTOP, 7000, 15)


def test_warm_ups_are_a_tenth_at_most_be_it_of_a_quarter_of_the_steps():
    least = fit_to_minutes(LAPTOP, 1000, 1)
    assert least.pretrain["warmup_steps"] <= least.pretrain["steps"] / 10
    assert least.sft["warmup_steps"] == 1
    assert fit_to_minutes(LAPTOP, 10**6, 99).sft["warmup_steps"] == LAPTOP.sft["warmup_steps"]


def test_without_minutes_or_by_name_a_profile_is_as_it_is(rates, monkeypatch):
    assert get_profile() == LAPTOP
    monkeypatch.setenv("TINYLLM_MINUTES", "15")
    assert get_profile("laptop") == LAPTOP and len(rates) == 3
    monkeypatch.setenv("TINYLLM_MINUTES", "soon")
    with pytest.raises(ValueError, match="TINYLLM_MINUTES is 'soon': expected a number"):
        get_profile()


def test_the_forecast_says_minutes_and_what_fewer_steps_cost(rates, monkeypatch, capsys):
    pace.print_forecast(get_profile())
    said = " ".join(capsys.readouterr().out.split())
    assert "7,000 tokens/s" in said and "about 27 minutes" in said and "MINUTES=12" in said
    monkeypatch.setenv("TINYLLM_MINUTES", "35")
    pace.print_forecast(get_profile())
    said = " ".join(capsys.readouterr().out.split())
    assert "3,000 tokens/s" in said and "about 35 minutes" in said
    assert "of 1,900 steps" in said and pace.COST in said
    assert "pace.json to measure anew" in said and "not enough" not in said
    monkeypatch.setenv("TINYLLM_MINUTES", "9")
    pace.print_forecast(replace(fit_to_minutes(LAPTOP, 1000, 9)))
    said = " ".join(capsys.readouterr().out.split())
    assert "With 5% of the steps expect far less." in said and "9 minutes are not enough" in said
    pace.print_forecast(get_profile("ci"))
    assert not capsys.readouterr().out, "nobody has measured it"


def test_the_rate_is_that_of_a_launched_run_of_the_profile_s_shape(capsys):
    assert pace.measure_rate(get_profile("ci")) > 0
    assert capsys.readouterr().out == "Measuring this machine: 20 steps of training.\n"


def test_positions_count_with_their_padding_and_the_first_steps_do_not_count(tmp_path):
    (tmp_path / "config.json").write_text('{"batch_size": 2, "max_seq_len": 8}')
    rows = [{"tokens": 10, "tokens_per_second": 0.1}, {"tokens": 20, "tokens_per_second": 5},
            {"tokens": 30, "tokens_per_second": 5}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pace.positions_per_second(tmp_path, warm=1) == 2 * 16 / 4
