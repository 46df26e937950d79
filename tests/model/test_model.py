"""The model: as large as promised, equal to transformers' Llama, careful about what it loads."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import random_model
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tinyllm_lib.model import KVCache, ModelConfig, Transformer, rope_frequencies, weight_files
from tinyllm_lib.model.layers import HeadLoss, RMSNorm

TINY = ModelConfig(dim=64, n_layers=3, n_heads=8, n_kv_heads=2, vocab_size=97, max_seq_len=48)
UNUSUAL = replace(TINY, hidden_dim=200, head_dim=12)
LLAMA3 = {
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "grouped queries, tied": TINY,
    "grouped queries, untied": replace(TINY, tie_embeddings=False),
    "as many keys as queries": replace(TINY, n_kv_heads=8),
    "one key head": replace(TINY, n_kv_heads=1),
    "another base and eps": replace(TINY, rope_base=500_000.0, norm_eps=1e-3),
    "other widths": UNUSUAL,
    "a longer context, as Llama 3.2 has it": replace(TINY, rope_base=100.0, rope_scaling=LLAMA3),
}


def make_model(config=TINY, seed=0, scale=5.0):
    """Random weights, larger than at the start of training, so that logits differ and attention is
    not even.
    """
    return random_model(config, seed=seed, scale=scale, norm_spread=0.1)


def some_ids(*shape, seed=1):
    return torch.randint(5, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return make_model(request.param)


# ---- size and start


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ModelConfig(), 215_127_040),
        (ModelConfig(dim=768, n_layers=12), 82_594_560),
        (ModelConfig(dim=768, n_layers=12, tie_embeddings=False), 82_594_560 + 768 * 6144),
    ],
)
def test_parameter_counts(config, parameters):
    with torch.device("meta"):
        assert Transformer(config).num_parameters() == parameters


def test_weights_start_small_and_those_that_write_into_the_residual_stream_smaller():
    config = ModelConfig(dim=256, n_layers=8, n_heads=4, n_kv_heads=2, vocab_size=1024)
    torch.manual_seed(0)
    for name, p in Transformer(config).named_parameters():
        if p.dim() == 1:
            assert bool((p == 1).all())
            continue
        std = (
            0.02 / math.sqrt(2 * 8)
            if name.endswith(("o_proj.weight", "down_proj.weight"))
            else 0.02
        )
        assert p.std().item() == pytest.approx(std, rel=0.03), name
        assert abs(p.mean().item()) < 0.05 * std


def test_untrained_loss_is_that_of_a_fair_die():
    torch.manual_seed(0)
    model = Transformer(replace(TINY, vocab_size=1000))
    ids = torch.randint(0, 1000, (16, 40))
    loss = model.weighted_nll(ids, ids.roll(-1, 1), torch.full(ids.shape, 1 / ids.numel()))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 65, "head_dim": 0}, "dim=65 is not a multiple of n_heads=8"),
        ({"n_kv_heads": 3}, "n_heads=8 is not a multiple of n_kv_heads=3"),
        ({"dim": 72, "head_dim": 0}, "is odd"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "width"),
    [(1024, 0, 2752), (64, 0, 192), (4096, 0, 10944), (4096, 11008, 11008)],
)
def test_the_hidden_width_is_a_field_that_prints_as_it_is(dim, hidden_dim, width):
    config = ModelConfig(dim=dim, n_heads=8, hidden_dim=hidden_dim)
    assert (
        config.hidden_dim == width
        and f"hidden_dim={width}" in str(config)
        and f"head_dim={dim // 8}" in str(config)
    )


@pytest.mark.parametrize("c", [TINY, UNUSUAL], ids=["as usual", "other widths"])
def test_flops_are_those_of_the_structure(c):
    model = make_model(c)
    in_blocks = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n
    )
    expected = (
        6 * (in_blocks + c.vocab_size * c.dim) + 12 * c.n_layers * c.n_heads * c.head_dim * 32
    )
    assert (
        model.flops_per_token(32)
        == make_model(replace(c, tie_embeddings=False)).flops_per_token(32)
        == expected
    )


# ---- equal to transformers


def test_logits_equal_transformers(model, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert isinstance(theirs, LlamaForCausalLM)
    assert sum(p.numel() for p in theirs.parameters()) == model.num_parameters()
    ids = some_ids(4, TINY.max_seq_len)
    with torch.no_grad():
        ours, reference = model(ids), theirs(ids).logits
    assert ours.std() > 0.5
    close(ours, reference)


# ---- the same text, shown in another way


def test_cache_gives_the_logits_of_one_pass(model):
    ids = some_ids(3, 40)
    with torch.no_grad():
        whole = model(ids)
        for pieces in ([40], [1] * 40, [7, 1, 1, 20, 11]):
            cache = KVCache(model.config, 3, 40)
            parts = [model(part, kv_cache=cache) for part in ids.split(pieces, dim=1)]
            assert cache.length == 40
            close(torch.cat(parts, 1), whole)


def test_padding_on_the_left_changes_nothing(model):
    lengths = [1, 5, 12, 30]
    ids = some_ids(4, 30)
    real = torch.arange(30) >= 30 - torch.tensor(lengths)[:, None]
    positions = (real.cumsum(1) - 1).clamp(min=0)
    cache = KVCache(model.config, 4, 31)
    with torch.no_grad():
        logits = model(ids.where(real, 0), position_ids=positions, key_mask=real, kv_cache=cache)
        following = some_ids(4, 1, seed=2)
        mask = torch.cat([real, torch.ones(4, 1, dtype=torch.bool)], 1)
        step = model(following, position_ids=positions[:, -1:] + 1, key_mask=mask, kv_cache=cache)
        assert logits.isfinite().all()
        for row, length in enumerate(lengths):
            alone = model(
                torch.cat([ids[row : row + 1, 30 - length :], following[row : row + 1]], 1)
            )[0]
            close(logits[row, 30 - length :], alone[:-1])
            close(step[row, 0], alone[-1])


def test_documents_in_a_pack_do_not_see_each_other(model):
    lengths = [9, 1, 20, 14]
    documents = [some_ids(1, n, seed=n) for n in lengths]
    numbers = torch.cat([torch.full((1, n), i) for i, n in enumerate(lengths)], 1)
    positions = torch.cat([torch.arange(n)[None] for n in lengths], 1)
    with torch.no_grad():
        packed = model(torch.cat(documents, 1), position_ids=positions, document_ids=numbers)
        for logits, document in zip(packed.split(lengths, 1), documents, strict=True):
            close(logits, model(document))


def test_no_position_sees_a_later_one():
    model, ids = make_model(), some_ids(1, 20)
    changed = ids.clone()
    changed[0, 12] += 1
    with torch.no_grad():
        a, b = model(ids), model(changed)
    assert torch.equal(a[:, :12], b[:, :12])
    assert (a[:, 12:] - b[:, 12:]).abs().amax(-1).min() > 0


# ---- loss


def reference_nll(model, ids, targets, weights):
    return (F.cross_entropy(model(ids).transpose(1, 2), targets, reduction="none") * weights).sum()


def test_a_score_computes_no_gradient(model, monkeypatch):
    monkeypatch.setattr(torch, "mul", None)  # where the gradient of a chunk begins
    x, ones = torch.randn(1, 9, model.config.dim), torch.ones(1, 9)
    with torch.no_grad():
        assert model.head_nll(x, ones.long(), ones).isfinite()
    with pytest.raises(TypeError):
        model.head_nll(x, ones.long(), ones)


@pytest.mark.parametrize("supervised", ["all", "some", "one"])
def test_the_loss_equals_cross_entropy_with_its_gradients(model, supervised):
    ids, targets = some_ids(3, 40), some_ids(3, 40, seed=2)
    weights = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    weights *= {"all": 1, "some": weights > 0.6, "one": weights == weights.max()}[supervised]
    results = []
    for weighted_nll in (model.weighted_nll, lambda *a: reference_nll(model, *a)):
        model.zero_grad()
        loss = weighted_nll(ids, targets, weights)
        (3 * loss).backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_the_loss_goes_through_the_head_in_pieces(monkeypatch):
    model, ids, weights = make_model(), some_ids(3, 40), torch.rand(3, 40)
    whole = model.weighted_nll(ids, ids, weights)
    monkeypatch.setattr(HeadLoss, "ROWS_CPU", 7)
    close(model.weighted_nll(ids, ids, weights), whole)


def test_the_loss_is_exact_where_the_target_is_as_good_as_impossible():
    x, weight = torch.tensor([[1.0], [-1.0]]), torch.tensor([[9000.0], [0.0], [-9000.0], [8990.0]])
    x.requires_grad_(), weight.requires_grad_()
    targets, weights = torch.tensor([2, 1]), torch.tensor([0.5, 0.25])
    results = []
    for loss in (
        HeadLoss.apply(x, weight, targets, weights),
        F.cross_entropy(x @ weight.T, targets, reduction="none") @ weights,
    ):
        results.append([loss, *torch.autograd.grad(loss, (x, weight))])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)


def head_inputs():
    """Of a head that is nearly sure of its targets: gradients are smaller than fp16 can hold."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 32, generator=generator)
    targets = torch.randint(0, 40, (24,), generator=generator)
    return 0.5 * weight[targets], weight, targets, torch.full((24,), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "scale", "off"), [(torch.float16, 2.0**30, 0.01), (torch.bfloat16, 1.0, 0.05)]
)
def test_the_loss_in_half_precision_has_the_gradients_of_fp32(dtype, scale, off):
    x, weight, targets, weights = head_inputs()
    x, weight = x.to(dtype).float().requires_grad_(), weight.to(dtype).float().requires_grad_()
    loss = HeadLoss.apply(x, weight, targets, weights)
    exact = [loss, *torch.autograd.grad(loss, (x, weight))]
    with torch.autocast("cpu", dtype):
        loss = HeadLoss.apply(x.to(dtype), weight, targets, weights * scale)
    assert loss.dtype == torch.float32
    rounded = [loss, *torch.autograd.grad(loss, (x, weight))]
    for ours, reference in zip(rounded, exact, strict=True):
        assert (ours / scale - reference).abs().max() < off * reference.abs().max()


class Operations(TorchDispatchMode):
    """Lists the operations that run and the number formats of what they give."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.append((function.overloadpacket.__name__, tuple(result.shape), result.dtype))
        return result


def test_the_head_casts_its_matrix_once_and_its_products_are_in_autocasts_format(monkeypatch):
    monkeypatch.setattr(HeadLoss, "ROWS_CPU", 8)
    model, ids = make_model(), some_ids(1, 24)
    with torch.autocast("cpu", torch.bfloat16):
        x = model.hidden_states(ids)
        with Operations() as operations:
            model.head_nll(x, ids, torch.ones(1, 24))
    assert x.dtype == torch.bfloat16
    casts = [shape for name, shape, _ in operations.seen if name == "_to_copy"]
    assert casts.count((97, 64)) == 1 and (24, 64) not in casts
    assert {dtype for name, _, dtype in operations.seen if name == "mm"} == {torch.bfloat16}


@pytest.fixture
def autocast_of_an_imagined_gpu():
    """Tensors that are "cuda" to whoever asks, on a machine without; nothing is computed."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    with FakeTensorMode():
        yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_too_a_norm_stays_in_the_format_of_its_input(dtype, autocast_of_an_imagined_gpu):
    norm = RMSNorm(32, device="meta")
    del norm.weight  # a plain tensor in its place: torch without CUDA has no gradients of it
    norm.weight = torch.empty(32, device="cuda")
    assert norm(torch.empty(4, 32, dtype=dtype, device="cuda")).dtype == dtype


def test_the_loss_of_nothing_is_zero_and_harmless():
    model, ids = make_model(), some_ids(2, 10)
    loss = model.weighted_nll(ids, ids, torch.zeros(2, 10))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def test_the_loss_of_a_pack_is_that_of_its_documents():
    model, (a, b) = make_model(), (some_ids(1, 15), some_ids(1, 20, seed=2))
    packed = model.weighted_nll(
        torch.cat([a, b], 1),
        torch.cat([a, b], 1).flip(1),
        torch.ones(1, 35),
        position_ids=torch.cat([torch.arange(15), torch.arange(20)])[None],
        document_ids=torch.tensor([[0] * 15 + [1] * 20]),
    )
    targets = torch.cat([a, b], 1).flip(1)
    alone = model.weighted_nll(a, targets[:, :15], torch.ones(1, 15)) + model.weighted_nll(
        b, targets[:, 15:], torch.ones(1, 20)
    )
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-4)


# ---- input that does not fit


def test_more_positions_than_the_context_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="49 positions do not fit the context of 48"):
        model(some_ids(1, 49))
    cache = KVCache(TINY, 1, 10)
    model(some_ids(1, 8), kv_cache=cache)
    with pytest.raises(ValueError, match="11 positions do not fit the context of 10"):
        model(some_ids(1, 3), kv_cache=cache)


@pytest.mark.parametrize("bad", [-1, 97])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(
        ValueError, match="the model knows 0 to 96: was the text encoded with another tokenizer"
    ):
        make_model()(torch.tensor([[5, bad]]))


# ---- on disk


def test_saved_and_loaded_is_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    ids = some_ids(2, 30)
    with torch.no_grad():
        assert torch.equal(loaded(ids), model(ids))
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == model.config.tie_embeddings
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())


def test_a_folder_that_transformers_saved_loads(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden = 192  # 64 * ceil((8 * 64 // 3) / 64)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=48,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    model = Transformer.from_pretrained(tmp_path)
    ids = some_ids(2, 30)
    with torch.no_grad():
        close(model(ids), theirs(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "rope scaling .* lacks one of .*low_freq_factor",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope scaling",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}},
            "rope scaling .*yarn.* \\(only 'llama3'\\)",
        ),
        (
            {"intermediate_size": 100},
            r"mlp.gate_proj.weight: .*\[192, 64\].* current model is .*\[100, 64\]",
        ),
        ({"head_dim": 32}, r"q_proj.weight: .*\[64, 64\].* current model is .*\[256, 64\]"),
        ({"intermediate_size": None}, "no intermediate_size"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
        ({"vocab_size": None}, "no vocab_size"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, change, message):
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"(?s){tmp_path}.*{message}"):
        Transformer.from_pretrained(tmp_path)


# What stands in these models' config.json, and how many parameters their pages say they have.
LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False}
SHAPES = {
    "Llama-2-7B": (
        {
            **{"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000},
            **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
            **{"max_position_embeddings": 4096, "rope_scaling": None, "torch_dtype": "float16"},
            "tie_word_embeddings": False,
        },
        6_738_415_616,
    ),
    "TinyLlama-1.1B": (
        {
            **{"hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32000},
            **{"num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4},
            **{"max_position_embeddings": 2048, "rope_scaling": None, "torch_dtype": "bfloat16"},
        },
        1_100_048_384,
    ),
    "Llama-3.2-1B": (
        {
            **{"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256},
            **{"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
            **{"max_position_embeddings": 131072, "head_dim": 64, "tie_word_embeddings": True},
            "rope_theta": 500000.0,
            "rope_scaling": {
                **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0},
                **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
            },
        },
        1_235_814_400,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_of_known_llamas_load(name):
    """All of them on the meta device, which allocates nothing; the turning of their rope as
    transformers computes it.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    hf, parameters = SHAPES[name]
    config = ModelConfig.from_hf(LLAMA | hf)
    with torch.device("meta"):
        assert Transformer(config).num_parameters() == parameters
    frequencies, share = rope_frequencies(config)
    torch.testing.assert_close(
        frequencies * share,
        LlamaRotaryEmbedding(LlamaConfig(**LLAMA | hf)).inv_freq,
        rtol=1e-6,
        atol=0,
    )
    written = config.to_hf()
    assert {
        key: written[key] for key in hf if key not in ("torch_dtype", "rope_scaling")
    }.items() <= hf.items()
    assert ModelConfig.from_hf(written) == config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_llama_in_several_files_and_half_precision_gives_transformers_logits(
    dtype, shards, tmp_path
):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        **{"hidden_size": 64, "intermediate_size": 200, "head_dim": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 97},
        **{"max_position_embeddings": 48, "initializer_range": 0.1},
    }
    rope = {
        **{"rope_type": "llama3", "rope_theta": 100.0, "original_max_position_embeddings": 16},
        **{"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    }
    theirs = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope)).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="10GB" if shards == 1 else "60KB")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config.pop("tie_word_embeddings")  # then they are not
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert len(weight_files(tmp_path)) >= shards and (
        (tmp_path / "model.safetensors").exists() == (shards == 1)
    )
    ours = Transformer.from_pretrained(tmp_path)
    ids = some_ids(2, 48)
    with torch.no_grad():
        close(
            ours(ids),
            AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits,
        )
    if shards > 1:
        (tmp_path / weight_files(tmp_path)[-1]).unlink()
        with pytest.raises(FileNotFoundError, match="model-000"):
            Transformer.from_pretrained(tmp_path)
        (tmp_path / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
        with pytest.raises(KeyError, match="weight_map"):
            Transformer.from_pretrained(tmp_path)


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_an_additional_and_a_misshapen_tensor_are_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tmp_path, lambda s: s.pop(name))
    with pytest.raises(ValueError, match=rf"(?s)Missing key.*{name}"):
        Transformer.from_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda s: s.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)}))
    with pytest.raises(ValueError, match=r"(?s)Unexpected key.*q_proj\.bias"):
        Transformer.from_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda s: s.update({name: torch.zeros(3, 64)}))
    with pytest.raises(ValueError, match=rf"{name}.*\[3, 64\]"):
        Transformer.from_pretrained(tmp_path)


def test_a_damaged_file_and_an_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Transformer.from_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        Transformer.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        Transformer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        Transformer.from_pretrained(tmp_path)
