"""Old checkpoints: the same logits before and after, every key and shape checked, and no code
executed.
"""

import os

import pytest
import torch
from helpers.old_model import OldModel
from helpers.tiny import TEXTS

from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import Transformer
from tinyllm_lib.share import import_checkpoint, to_adjacent_pairs, to_half_split
from tinyllm_lib.tokenizer import encode_text, train_tokenizer
from tinyllm_lib.tokenizer.encoding import CHAT_TEMPLATE

HEADS = {"n_heads": 8, "n_kv_heads": 2}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, folder, vocab_size=300)
    return folder


@pytest.fixture
def old():
    torch.manual_seed(0)
    return OldModel(300).eval()


@pytest.fixture
def bring(tokenizer_dir, tmp_path):
    """Saves a state dict as the old scripts did and imports it; further options as in
    import_checkpoint.
    """

    def bring(state, **options):
        torch.save(state, tmp_path / "old.pth")
        return import_checkpoint(
            tmp_path / "old.pth", tokenizer_dir, tmp_path / "new", **HEADS | options
        )

    return bring


def assert_same_logits(old, folder):
    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = old(ids), Transformer.from_pretrained(folder)(ids)
    assert before.std() > 0.5
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


# ---- the same model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "a head of its own"])
@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]
)
def test_the_logits_are_the_same_before_and_after(prefix, tied, bring):
    torch.manual_seed(2)
    old = OldModel(300, tied=tied).eval()
    folder = bring({prefix + name: tensor for name, tensor in old.state_dict().items()})
    assert_same_logits(old, folder)
    assert Transformer.from_pretrained(folder).config.tie_embeddings == tied


def test_without_an_output_matrix_the_head_is_the_embedding(old, bring):
    state = old.state_dict()
    del state["output.weight"]
    assert_same_logits(old, bring(state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(dtype, old, bring):
    rounded = {name: tensor.to(dtype) for name, tensor in old.state_dict().items()}
    folder = bring(rounded)
    old.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
    assert_same_logits(old, folder)
    assert all(p.dtype == torch.float32 for p in Transformer.from_pretrained(folder).parameters())


def test_importing_the_plain_order_would_give_other_logits(old, bring):
    """So the test above can fail: without the permutation the model is another one."""
    model = Transformer.from_pretrained(bring(old.state_dict()))
    for block in model.model.layers:
        block.self_attn.q_proj.weight.data = to_adjacent_pairs(
            block.self_attn.q_proj.weight.data, 8
        )
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert (model(ids) - old(ids)).abs().max() > 0.1


def test_the_permutation_says_where_each_row_goes():
    rows = torch.arange(12.0)[:, None]  # two heads of six: pairs (0, 1), (2, 3), (4, 5)
    assert to_half_split(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(to_adjacent_pairs(to_half_split(rows, 2), 2), rows)


# ---- the folder


def test_the_result_is_an_ordinary_checkpoint_folder(old, bring, tokenizer_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bring(old.state_dict(), max_seq_len=64)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits, old(ids), rtol=1e-5, atol=1e-5
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template) == (
        "<unk>",
        "<|im_end|>",
        CHAT_TEMPLATE,
    )
    generator = TextGenerator(folder)
    assert generator.context == 64
    assert isinstance(generator.complete("法国", max_new_tokens=4), str)
    assert encode_text(generator.tokenizer, TEXTS[0]) == encode_text(tokenizer, TEXTS[0])
    from tinyllm_lib.model.checkpoint import find_damage

    assert find_damage(folder) is None


def test_a_folder_with_something_in_it_is_left_alone(old, bring, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="name a new folder"):
        bring(old.state_dict())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["notes.txt"]


# ---- what does not fit


def changed(state, change):
    state = dict(state)
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("layers.1.ffn_norm.weight"),
            r"Missing key.*layers.1.post_attention_layernorm",
        ),
        (
            lambda s: s.update({"layers.0.attention.bias": torch.ones(3)}),
            "Unexpected key.*layers.0.attention.bias",
        ),
        (
            lambda s: s.update({"norm.weight": torch.ones(63)}),
            r"size mismatch for model.norm.weight: .*\[63\].*\[64\]",
        ),
        (
            lambda s: s.update({"norm.weight": torch.ones(64, dtype=torch.int8)}),
            "norm.weight is not floating point",
        ),
        (
            lambda s: s.update({"norm.weight": torch.full((64,), torch.nan)}),
            "norm.weight is not floating point, or not finite",
        ),
        (lambda s: s.pop("tok_embeddings.weight"), "no matrix tok_embeddings.weight"),
        (
            lambda s: s.update({"layers.0.feed_forward.w1.weight": torch.ones(128, 64)}),
            r"down_proj.weight: .*\[64, 192\].*\[64, 128\]",
        ),
        (lambda s: s.update({"module.norm.weight": torch.ones(64)}), "holds a name twice"),
        (lambda s: s.update({"lm_head.weight": torch.ones(300, 64)}), "Unexpected key.*lm_head"),
        (lambda s: s.update({"model.norm.weight": torch.ones(64)}), "Unexpected key.*model.norm"),
        (lambda s: s.clear(), "no matrix tok_embeddings.weight"),
        (lambda s: s.update({"epoch": 3}), "no state dict"),
    ],
)
def test_keys_and_shapes_that_do_not_fit_are_named(change, message, old, bring, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        bring(changed(old.state_dict(), change))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"n_heads": 16, "n_kv_heads": 8}, "(?s)Shapes cannot tell n_heads .*k_proj.weight"),
        ({"n_heads": 7}, "dim=64 is not a multiple of n_heads=7"),
    ],
)
def test_head_counts_that_contradict_the_shapes_are_refused(heads, message, old, bring):
    with pytest.raises(ValueError, match=message):
        bring(old.state_dict(), **heads)


def test_the_tokenizer_must_be_the_model_s(old, tmp_path):
    train_tokenizer(TEXTS, tmp_path / "other", vocab_size=280)
    torch.save(old.state_dict(), tmp_path / "old.pth")
    with pytest.raises(
        ValueError, match="other: the tokenizer has 280 tokens, the model was made for 300"
    ):
        import_checkpoint(tmp_path / "old.pth", tmp_path / "other", tmp_path / "new", **HEADS)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_file_that_wants_to_run_code_is_refused_with_a_sentence(old, bring, tmp_path):
    target = tmp_path / "hacked"
    with pytest.raises(
        ValueError,
        match=r"old.pth is refused: unpickling it would run \w+.mkdir, and a file of weights",
    ) as caught:
        bring({**old.state_dict(), "norm.weight": Malicious(str(target))})
    assert not target.exists()
    assert "\n" not in str(caught.value)


def test_a_whole_pickled_model_is_refused_too(old, bring):
    with pytest.raises(
        ValueError, match=r"helpers.old_model.OldModel, and .* torch.save\(model.state_dict\(\)"
    ):
        bring(old)


def test_a_damaged_file_is_told_as_such(old, tokenizer_dir, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(old.state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match="cannot be read as a .pth file"):
        import_checkpoint(path, tokenizer_dir, tmp_path / "new", **HEADS)
    with pytest.raises(OSError, match="No such file"):
        import_checkpoint(tmp_path / "no.pth", tokenizer_dir, tmp_path / "new", **HEADS)
