"""The sampling bench: every case writes the tokens it says, ours the same ones as the peer. Nothing
here looks at a speed.
"""

import pytest
import torch

from tinyllm_lib.course import get_profile
from tools.bench import sample


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The bench's cases on the ci profile's model, few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLLM_WORKSPACE", str(tmp_path_factory.mktemp("bench")))
        patch.setattr(sample, "get_profile", lambda name: get_profile("ci"))
        patch.setattr(sample, "NEW", 6)
        patch.setattr(sample, "CHAT_NEW", 5)
        patch.setattr(sample, "LONG_PROMPT", 100)
        patch.setattr(sample, "CACHELESS_PROMPTS", (16, 100))
        yield sample.cases()


def test_every_case_does_the_work_that_it_says(cases):
    assert len({case.name for case in cases}) == len(cases) == 8
    assert [case.busy for case in cases] == 7 * [False] + [True]
    expected = [6, 16 * 6, 6, 6, 6, 10, 5, 5]
    for case, amount in zip(cases, expected, strict=True):
        assert case.ours()() == case.peer()() == amount, case.name


def test_both_sides_hold_the_same_weights(cases):
    from transformers import LlamaForCausalLM

    folder = cases[0].ours.args[0]
    ids = torch.tensor(sample.prompts_of([12], get_profile("ci").vocab_size))
    ours, theirs = sample.our_model(folder), LlamaForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)
