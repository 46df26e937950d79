"""The training bench, on a CPU and on a GPU: every case does the work it says. Nothing here looks
at a speed.
"""

import pytest

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.world import write_sample_corpus
from tools.bench import data, train
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
