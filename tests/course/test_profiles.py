"""Profiles: named sizes that change numbers and nothing else."""

import pytest
import torch

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.profiles import PROFILES
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.train import TrainConfig


def test_the_four_profiles():
    assert list(PROFILES) == ["ci", "laptop", "gpu", "full"]
    assert all(get_profile(name).name == name for name in PROFILES)


def test_the_profile_is_the_name_given_else_that_of_the_environment_else_laptop(monkeypatch):
    monkeypatch.setenv("TINYLLM_PROFILE", "gpu")
    assert get_profile("ci").name == "ci"
    assert get_profile().name == "gpu"
    for value in (None, ""):
        monkeypatch.delenv("TINYLLM_PROFILE", raising=False)
        if value is not None:
            monkeypatch.setenv("TINYLLM_PROFILE", value)
        assert get_profile().name == "laptop"


@pytest.mark.parametrize(
    ("misspelt", "near"),
    [
        ("latop", "laptop"),
        ("Laptop", "laptop"),
        ("fulll", "full"),
        ("cpu", "gpu"),
        ("CI", "ci"),
        ("GPU", "gpu"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_near_one(misspelt, near, monkeypatch):
    with pytest.raises(
        ValueError, match=f"no profile '{misspelt}'; did you mean '{near}'.* ci, laptop, gpu, full"
    ):
        get_profile(misspelt)
    monkeypatch.setenv("TINYLLM_PROFILE", misspelt)
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        get_profile()


@pytest.mark.parametrize(("name", "parameters"), [("gpu", 82_594_560), ("full", 215_127_040)])
def test_sizes_of_the_large_models(name, parameters):
    profile = get_profile(name)
    shape = {key: profile.pretrain[key] for key in ("dim", "n_layers", "n_heads", "n_kv_heads")}
    with torch.device("meta"):
        model = Transformer(
            ModelConfig(**shape, vocab_size=profile.vocab_size, max_seq_len=profile.max_length)
        )
    assert model.num_parameters() == parameters


@pytest.mark.parametrize("name", PROFILES)
def test_the_numbers_of_a_profile_make_training_configs(name):
    profile = get_profile(name)
    for numbers in (profile.pretrain, profile.sft):
        TrainConfig(max_seq_len=profile.max_length, **numbers)
    assert profile.vocab_size <= 2**16  # token ids are stored as uint16


def test_a_profile_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        get_profile("ci").vocab_size = 1
