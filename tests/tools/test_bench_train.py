"""The training bench, on a CPU and on a GPU: every case does the work it says. Nothing here looks
at a speed.
"""

import json

import pytest
from helpers.tiny import start_python

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.world import write_sample_corpus
from tools.bench import data, gpu, train
from tools.bench.harness import bench_folder


def write_small(folder, documents, dialogues):
    return write_sample_corpus(folder, documents=400, dialogues=100)


@pytest.fixture(scope="module")
def small_training(tmp_path_factory):
    """The cases of the training bench, on a small corpus and with the ci profile's model for every
    preset.
    """
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLLM_WORKSPACE", str(folder))
        patch.setattr(data, "REAL_DATA", folder)
        patch.setattr(data, "write_sample_corpus", write_small)
        patch.setattr(
            train, "PRESETS", {name: (get_profile("ci"), (4, 2), 2) for name in train.PRESETS}
        )
        patch.setattr(train.shutil, "which", lambda name: None)  # compiling takes a minute
        patch.setattr(train, "TRAIN_CHARS", 10_000)
        patch.setattr(train, "GOAL_STEPS", 2)
        train.plain_recipe.cache_clear()
        yield {case.name: case for case in train.cases()}
    train.plain_recipe.cache_clear()


def test_every_case_of_the_training_bench_runs(small_training):
    for name, case in small_training.items():
        assert case.ours()() > 0 and case.peer()() > 0, name


def test_all_positions_are_counted_with_their_padding_and_useful_ones_without(small_training):
    every, useful = (
        small_training[f"laptop, pretrain, {count} positions"] for count in ("all", "useful")
    )
    assert every.ours()() == 2 * 4 * 128 / 1e3 and every.peer()() == 2 * 2 * 511 / 1e3
    assert (
        0.5 * every.ours()() < useful.ours()() < every.ours()()
        and useful.peer()() < 0.5 * every.peer()()
    )


def test_the_plain_recipe_has_as_many_parameters_as_ours(small_training, tmp_path):
    config = train.our_config(bench_folder() / "train", "laptop", "pretrain", str(tmp_path / "run"))
    ours = train.build(
        train.prepare_run(config, train.Processes.join(config))
    ).model.num_parameters()
    assert ours == sum(p.numel() for p in train.plain_recipe("laptop", 1e-3)[0].parameters())


def test_the_gpu_script_is_tried_on_a_cpu(tmp_path):
    process = start_python("-m", "tools.bench.gpu", "--dry-run", "--out", str(tmp_path))
    output = process.communicate()[0]
    assert process.returncode == 0, output
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["dry_run"] and all(
        row["tokens_per_second"] > 0 and row["dtype"] == "bfloat16" for row in found["sweep"]
    )
    assert 0 < found["loss_against_fp32"] < 0.05  # bf16 rounds, and no more than that
    assert all(
        min(row["plain"], row["static"], row["memory_bound"]) > 0 and row["same_tokens"] > 0.5
        for row in found["sampling"]
    )
    samples = found["model"]["samples"]
    assert all(text.startswith(prompt) for text, prompt in zip(samples, gpu.PROMPTS, strict=True))
    assert gpu.table(found["sweep"]) in output


def test_the_gpu_script_says_that_there_is_no_gpu(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU was found" in capsys.readouterr().err
