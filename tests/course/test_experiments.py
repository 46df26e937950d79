"""Notebook 09: short runs are the trainer's, each variant differs in what it says, and exercises
tell what is off.
"""

import math
from dataclasses import replace

import pytest
import torch

from tinyllm_lib.course import experiments, get_profile, get_workspace
from tinyllm_lib.course.exercises import SETUPS, check_exercise
from tinyllm_lib.dataset import PackedDataset, collate
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(pretrain_tokens, tokenizer):
    rows = [PackedDataset(pretrain_tokens / split, 32) for split in ("train", "val")]
    return experiments.Data(*rows, tokenizer)


@pytest.fixture
def config(tiny_config, tmp_path):
    return tiny_config(tmp_path / "run", eval_rows=8)


def forward(data, model):
    """Logits of two rows."""
    batch = collate([data.train[0], data.train[1]])
    with torch.no_grad():
        return model(batch.X, position_ids=batch.position_ids, document_ids=batch.document_ids)


# ---- short runs


def test_a_short_run_has_the_losses_of_the_trainer(data, config):
    rows = read_metrics(train(config))
    found = experiments.short_run(data, config)
    assert found.losses == pytest.approx([row["loss"] for row in rows], abs=2e-5)
    assert found.val_loss == pytest.approx(rows[-1]["val_loss"], abs=2e-5)
    assert experiments.short_run(data, config).losses == found.losses
    assert experiments.short_run(data, replace(config, seed=1)).losses != found.losses


def test_it_validates_at_intervals_and_reads_only_the_rows_it_is_given(data, config):
    found = experiments.short_run(data, replace(config, eval_interval=5), rows=[3, 4])
    assert list(found.validation) == [5, 10, 12] and found.val_loss == found.validation[12]
    assert found.losses[-1] < experiments.short_run(data, config).losses[-1]


def test_it_goes_on_from_a_model_that_stays_as_it_is(data, config):
    first = experiments.short_run(data, config)
    before = [p.clone() for p in first.model.parameters()]
    second = experiments.short_run(data, config, start=first.model)
    assert second.losses[0] < first.losses[0] - 1
    assert all(torch.equal(a, b) for a, b in zip(before, first.model.parameters(), strict=True))


# ---- parts


@pytest.mark.parametrize("name", experiments.PARTS)
def test_a_part_taken_out_changes_what_it_says_and_the_model_still_learns(name, data, config):
    plain = experiments.make_model(data, config)
    model = experiments.make_model(data, config, experiments.PARTS[name])
    more = {
        "no norm": -(2 * config.n_layers + 1) * config.dim,
        "untied head": config.dim * len(data.tokenizer),
    }
    assert model.num_parameters() - plain.num_parameters() == more.get(name, 0)
    assert torch.equal(forward(data, plain), forward(data, model)) == (name == "as it is")
    losses = experiments.short_run(data, config, change=experiments.PARTS[name]).losses
    assert losses[-1] < losses[0] - 0.05  # without norms it begins slowly


def test_without_position_a_layer_reads_a_bag_of_words(data, config):
    ids = torch.tensor([[7, 30, 50, 90], [50, 7, 30, 90]])
    config = replace(config, n_layers=1)
    for name, alike in (("no position", True), ("as it is", False)):
        with torch.no_grad():
            last = experiments.make_model(data, config, experiments.PARTS[name])(ids)[:, -1]
        assert torch.allclose(last[0], last[1], atol=1e-6) == alike


def test_without_residual_scaling_the_written_vectors_are_larger(data, config):
    models = [
        experiments.make_model(data, config, experiments.PARTS[name])
        for name in ("as it is", "no residual scaling")
    ]
    stds = [model.model.layers[1].mlp.down_proj.weight.std().item() for model in models]
    assert stds[1] == pytest.approx(stds[0] * math.sqrt(2 * config.n_layers))


# ---- what seeds say


def test_the_interval_is_student_s_of_the_paired_differences():
    mean, low, high = experiments.compare([1.0, 2.0, 3.0], [1.1, 2.2, 3.3])
    assert mean == pytest.approx(0.2)
    assert high - mean == pytest.approx(4.303 * 0.1 / math.sqrt(3)) == mean - low
    assert experiments.compare([1.0, 2.0, 3.0], [1.1, 2.2, 3.3]).verdict == "not told apart"
    assert experiments.compare([1.0, 2.0, 3.0], [1.2, 2.2, 3.21]).verdict == "worse"
    assert experiments.compare([1.0, 2.0], [0.8, 1.801]).verdict == "better"


@pytest.mark.parametrize("after", [[1.0], [1.0, 2.0], [1.0] * 9])
def test_one_seed_or_other_seeds_are_no_comparison(after):
    with pytest.raises(ValueError, match="expected the same seeds in both, from 2 to 8"):
        experiments.compare([1.0] * (9 if len(after) == 9 else 1), after)


# ---- the gallery


def test_each_sick_run_has_its_fault(data, config):
    config = replace(config, steps=30, eval_interval=15)
    healthy = experiments.short_run(data, config)
    found = experiments.sick_runs(data, config, healthy)
    assert set(found) == set(experiments.ANSWERS)
    assert sorted(experiments.ANSWERS.values()) == sorted(experiments.CAUSES)
    last = {letter: run.losses[-1] for letter, run in found.items()}
    assert last["A"] > healthy.losses[-1] + 0.5  # too low a rate
    begins = [math.isnan(loss) for loss in found["B"].losses].index(True)
    assert begins == 10 and math.isnan(last["B"]) and math.isnan(found["B"].val_loss)
    assert found["C"].val_loss < healthy.val_loss  # copies
    assert last["E"] > healthy.losses[-1] + 0.5  # too high a rate
    assert found["F"].losses[0] > healthy.losses[0]  # knows less than nothing
    assert found["G"].losses != healthy.losses


def test_other_ids_are_one_to_one_and_leave_special_tokens(data):
    batch = collate([data.train[0]])._replace(X=torch.arange(400)[None])
    found = experiments.permuted_ids(400)(batch, 0).X[0]
    assert sorted(found.tolist()) == list(range(400)) and found[:5].tolist() == [0, 1, 2, 3, 4]
    assert (found == torch.arange(400)).float().mean() < 0.1


# ---- scale


def test_a_budget_pays_for_as_many_steps_as_it_has_flops(config):
    for flops in (1e9, 5e9):
        found = experiments.steps_within(config, 400, flops)
        _, per_token = experiments.shape_of(config, 400)
        step = per_token * config.batch_size * config.max_seq_len
        assert abs(found.steps * step - flops) <= step / 2
    assert experiments.steps_within(config, 400, 1.0).steps == 2


@pytest.mark.parametrize("name", ["ci", "laptop", "gpu", "full"])
def test_every_profile_has_numbers(name):
    profile = get_profile(name)
    assert len(experiments.numbers_of(profile).seeds) >= 2
    config = experiments.base_config(profile, learning_rate=1e-3)
    assert config.warmup_steps < config.steps and config.learning_rate == 1e-3


# ---- exercises


def repaired_but_for(*faults):
    """The solution of 09.1 with some of the three faults left in."""
    from tinyllm_lib.course.exercises import EXERCISES

    code = EXERCISES["09.1"].cell("solution").rsplit("check_exercise", 1)[0]
    mended = {
        "targets": ("batch.X, batch.Y, weights", "batch.X, batch.X, weights"),
        "zero_grad": ("        optimizer.zero_grad()  #", "        #"),
        "rate": ("get_lr(step, config)", "config.learning_rate * (step + 1)"),
    }
    for fault in faults:
        right, wrong = mended[fault]
        assert right in code
        code = code.replace(right, wrong)
    names = {}
    exec(SETUPS["09"] + code, names)
    return names["repaired"]


def same_without_weights(model):
    """An MLP with too few weights in every block."""
    for block in model.model.layers:
        block.mlp.gate_proj = torch.nn.Identity()
        block.mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())


MISTAKES = {
    "targets left": ("09.1", lambda: repaired_but_for("targets"), "What are its targets?"),
    "zero_grad left": ("09.1", lambda: repaired_but_for("zero_grad"), "Something is left"),
    "rate left": ("09.1", lambda: repaired_but_for("rate"), "Something is left"),
    "nothing trained": ("09.1", lambda: lambda *_: [], "does the loop step its optimiser?"),
    "no names": ("09.2", lambda: same_without_weights, "has no up_proj"),
    "GELU": ("09.2", lambda: experiments.PARTS["GELU for SwiGLU"], "not down(relu(up(x))²)"),
    "too much": ("09.3", lambda: {"steps": 40, "batch_size": 16}, "2.00 times the compute"),
    "not open": ("09.3", lambda: {"max_seq_len": 8}, "max_seq_len is not open"),
    "no gain": ("09.3", lambda: {"weight_decay": 0.2}, "0.3 on each is asked for"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_exercise(mistake, capsys):
    number, answer, told = MISTAKES[mistake]
    check_exercise(number, answer(), record=False)
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.startswith(f"{number} not yet: ") and told in out


def test_the_data_of_a_workspace_is_made_where_it_is_missing():
    profile = get_profile()
    data = experiments.load_data(get_workspace(profile), profile)
    assert len(data.train) > 100 and len(data.val) > 10
    assert len(set(experiments.epoch_rows(data, 10))) == 10
