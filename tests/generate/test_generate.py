"""Sampling and TextGenerator: transformers' tokens, the same whatever stands beside, and only whole
characters.
"""

import itertools
import json
import random
import shutil
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.small_model import TEXTS, make_model
from safetensors.torch import load_file, save_file

from tinyllm_lib.generate import (
    ContextWarning,
    Sampling,
    TextGenerator,
    TextStream,
    decoding,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    rows_of,
    scale_temperature,
)
from tinyllm_lib.generate.decoding import decode, window_start
from tinyllm_lib.generate.generator import usual_dtype
from tinyllm_lib.generate.sampling import penalise_repetition
from tinyllm_lib.model import save_checkpoint
from tinyllm_lib.tokenizer import encode_chat, encode_text, train_tokenizer

GREEDY = {"temperature": 0.0}
MIXED = {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}


def some_prompts(n, longest, vocab_size=300, seed=0):
    rng = random.Random(seed)
    return [
        [rng.randrange(5, vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(n)
    ]


@pytest.fixture(scope="module")
def model():
    return make_model(300)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


@pytest.fixture(scope="module")
def generator(tokenizer):
    return TextGenerator.from_model(make_model(len(tokenizer), context=96), tokenizer)


@pytest.fixture(scope="module")
def folder(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    generator.model.save_pretrained(folder)
    generator.tokenizer.save_pretrained(str(folder))
    return folder


# ---- filters


def processors():
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    for t in (0.1, 0.7, 1.0, 3.0):
        yield (
            f"temperature {t}",
            TemperatureLogitsWarper(t),
            lambda x, _, t=t: scale_temperature(x, t),
        )
    for k in (1, 5, 50, 500):
        yield f"top_k {k}", TopKLogitsWarper(k), lambda x, _, k=k: keep_top_k(x, k)
    for p in (1e-12, 0.01, 0.5, 0.9, 0.999):
        yield f"top_p {p}", TopPLogitsWarper(p), lambda x, _, p=p: keep_top_p(x, p)
    for p in (0.01, 0.2, 1.0):
        yield f"min_p {p}", MinPLogitsWarper(p), lambda x, _, p=p: keep_min_p(x, p)
    for p in (0.5, 1.3, 2.0):
        yield (
            f"penalty {p}",
            RepetitionPenaltyLogitsProcessor(p),
            lambda x, ids, p=p: penalise_repetition(x, ids, p),
        )


@pytest.mark.parametrize(
    ("theirs", "ours"), [c[1:] for c in processors()], ids=[c[0] for c in processors()]
)
def test_each_filter_equals_transformers(theirs, ours):
    torch.manual_seed(0)
    # the last four: many ties
    logits = torch.cat([torch.randn(6, 200) * 3, torch.randint(-3, 3, (4, 200)).float()])
    ids = torch.randint(0, 200, (10, 30))
    before = logits.clone()
    result = ours(logits, ids.tolist())
    assert torch.equal(logits, before), "a filter must not change its input"
    torch.testing.assert_close(result, theirs(ids, logits))


@pytest.mark.parametrize(
    "settings", [{"top_k": 20, "top_p": 0.8}, MIXED, {"temperature": 0.3, "min_p": 0.1}], ids=str
)
def test_all_filters_together_equal_transformers(model, settings):
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = GenerationConfig(do_sample=True, **({"temperature": 1.0, "top_k": 0} | settings))
    small = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=200,
    )
    theirs = LlamaForCausalLM(small)._get_logits_processor(config, input_ids_seq_length=30)
    logits, ids = torch.randn(5, 200) * 3, torch.randint(0, 200, (5, 30))
    ours = Sampling(**settings).probabilities(logits, ids.tolist())
    torch.testing.assert_close(ours, theirs(ids, logits).double().softmax(-1))


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    sampling, rngs = Sampling(temperature=0.8), [np.random.default_rng(0)]
    drawn = torch.tensor([sampling.choose(logits, [[1]], rngs)[0] for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, (logits[0] / 0.8).softmax(0), rtol=0, atol=0.025)
    assert shares[3] == 0


# ---- generate


@pytest.mark.parametrize(
    "shape", [{}, {"n_kv_heads": 4, "tie_embeddings": False}], ids=["grouped", "untied"]
)
def test_greedy_equals_transformers_token_by_token(tmp_path, shape):
    from transformers import AutoModelForCausalLM

    model = make_model(300, **shape)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = some_prompts(100, 20)  # 200 with the other shape
    ours = generate(model, prompts, max_new_tokens=24, **GREEDY)
    assert {"stop", "length"} == {result.finish for result in ours}, (
        "the prompts should reach both ends"
    )
    for prompt, result in zip(prompts, ours, strict=True):
        reference = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[4, 2],
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        if result.finish == "stop":
            assert reference.pop() in (4, 2)
        assert result.ids == reference


@pytest.mark.parametrize("settings", [GREEDY, {}, MIXED], ids=["greedy", "sampled", "all filters"])
@pytest.mark.parametrize(
    ("context", "new"), [(64, 30), (24, 70)], ids=["in the context", "past the context"]
)
def test_alone_and_without_a_cache_the_text_is_the_same(context, new, settings):
    model, prompts = make_model(300, context), some_prompts(12, 24)
    together = generate(model, prompts, max_new_tokens=new, **settings)
    alone = [generate(model, [p], max_new_tokens=new, **settings)[0] for p in prompts]
    uncached = generate(model, prompts, max_new_tokens=new, use_cache=False, **settings)
    for a, b, c in zip(together, alone, uncached, strict=True):
        assert a.ids == b.ids == c.ids
        assert (a.finish, a.note) == (b.finish, b.note) == (c.finish, c.note)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3) and a.logprobs == pytest.approx(
            c.logprobs, abs=1e-3
        )
    assert any(result.note for result in together) == (context == 24)


@pytest.mark.parametrize("settings", [GREEDY, MIXED], ids=["greedy", "all filters"])
@pytest.mark.parametrize(
    ("context", "new"), [(64, 30), (24, 70)], ids=["in the context", "past the context"]
)
def test_steps_of_one_shape_write_the_same_text(context, new, settings, monkeypatch):
    model = make_model(300, context)
    prompts = some_prompts(7, 16)
    limits = [new - 3 * number for number in range(7)]  # rows end at different steps
    expected = generate(model, prompts, limits=limits, **settings)
    made = record_on_a_cpu(monkeypatch)
    assert generate(model, prompts, limits=limits, **settings) == expected
    assert made and sum(made.values()) >= 20, "nothing was replayed"


def record_on_a_cpu(monkeypatch):
    """Steps are recorded as on a GPU: tensor by tensor, without Python. How often each is replayed.

    torch.fx keeps what a CUDA graph keeps: kernels and the places of their tensors. Whatever Python
    decides from one step to the next, other than by writing into these tensors, is lost.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    made = {}

    def recorded(step, device):
        reader = step.func.__self__

        def once():
            step()
            return reader.logits

        for _ in range(2):  # warm-up
            step()
        with monkeypatch.context() as as_on_a_gpu:  # there ids are not looked at
            as_on_a_gpu.setattr(type(reader.model), "_check_input", lambda *_: None)
            graph, number = make_fx(once)(), len(made)
        reader.logits, made[number] = torch.empty(0), 0

        def replay():
            reader.logits = graph()
            made[number] += 1

        return replay

    monkeypatch.setattr(decoding, "recorded", recorded)
    monkeypatch.setattr(decoding, "RECORDED_ON", ("cpu",))
    return made


def test_a_recording_is_used_again_where_shapes_fit(model, monkeypatch):
    conversations = [(some_prompts(n, longest, seed=n), new) for n, longest, new in SHAPES]
    expected = [generate(model, p, max_new_tokens=new, **MIXED) for p, new in conversations]
    made, kept = record_on_a_cpu(monkeypatch), {}
    for number, (prompts, new) in enumerate(conversations):
        found = generate(model, prompts, max_new_tokens=new, kept=kept, **MIXED)
        assert found == expected[number]
        assert len(made) == (1, 1, 1, 2, 2, 2)[number]
    assert made[1] >= 15, "a short text takes a recording that is there"


SHAPES = [(4, 9, 20), (4, 12, 30), (4, 20, 40), (1, 20, 40), (1, 12, 30), (1, 5, 6)]


def test_a_recording_stays_right_while_training_and_goes_when_the_model_moves(monkeypatch):
    model, prompts = make_model(300), some_prompts(2, 9)
    settings = {"max_new_tokens": 20, "stop_ids": (), **GREEDY}
    made, kept = record_on_a_cpu(monkeypatch), {}
    before = generate(model, prompts, kept=kept, **settings)
    with torch.no_grad():  # as optimisers do
        for p in model.parameters():
            p.mul_(1.3).add_(0.01)
    after = generate(model, prompts, kept=kept, **settings)
    assert after == generate(model, prompts, use_cache=False, **settings) != before
    assert len(made) == 1
    with torch.inference_mode():  # of a time when the weights were broken
        kept["reader"].cache.values.fill_(torch.nan)
    assert generate(model, prompts, kept=kept, **settings) == after and len(made) == 1
    model.double().float()
    assert generate(model, prompts, kept=kept, **settings) == after
    assert len(made) == 2
    assert generate(make_model(300), prompts, kept=kept, **settings) == before and len(made) == 3


def test_two_who_write_at_once_do_not_share_a_recording(generator, monkeypatch):
    expected = [generator.chat(text, max_new_tokens=20) for text in ("你好", "小猫")]
    made = record_on_a_cpu(monkeypatch)
    streams = [generator.stream(text, max_new_tokens=20) for text in ("你好", "小猫")]
    texts = ["", ""]
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == expected and len(made) == 2
    assert generator.chat("你好", max_new_tokens=20) == expected[0] and len(made) == 2
    abandoned = generator.stream("你好", max_new_tokens=20)
    next(abandoned)
    abandoned.close()
    assert generator.chat("小猫", max_new_tokens=20) == expected[1] and len(made) == 2


def test_on_a_gpu_weights_have_16_bits_and_decoding_does_without_cudnn(folder, model, monkeypatch):
    for capability, dtype in (((9, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert usual_dtype(torch.device("cuda")) == dtype
    loaded = TextGenerator(folder, device="cpu")
    assert loaded.model.lm_head.weight.dtype == usual_dtype(torch.device("cpu")) == torch.float32
    half = TextGenerator(folder, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.model.lm_head.weight is half.model.model.embed_tokens.weight
    assert half.model.rope_cos.dtype == torch.float32
    assert half.chat("你好", max_new_tokens=3) is not None
    allowed, forward = [], model.hidden_states

    def watched(*ids, **options):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return forward(*ids, **options)

    monkeypatch.setattr(model, "hidden_states", watched)
    generate(model, [[5, 6]], max_new_tokens=3, stop_ids=())
    assert allowed == [False] * 3 and torch.backends.cuda.cudnn_sdp_enabled()


def test_one_seed_one_text_another_seed_another_text(model):
    prompts = some_prompts(5, 10)
    texts = [
        [r.ids for r in generate(model, prompts, max_new_tokens=20, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1]
    assert all(a != b for a, b in zip(texts[0], texts[2], strict=True))


def test_copies_of_a_prompt_are_different_samples(model):
    samples = [r.ids for r in generate(model, [[7, 8]] * 6, max_new_tokens=20)]
    assert len({tuple(s) for s in samples}) == 6
    among_others = generate(model, [[9], [7, 8], [10, 11, 12], [7, 8]], max_new_tokens=20)
    assert [among_others[1].ids, among_others[3].ids] == samples[:2]


def test_limits_stop_ids_and_who_reads_along(model):
    prompts = some_prompts(4, 10)
    plain = generate(model, prompts, max_new_tokens=12, stop_ids=(), **GREEDY)
    assert [len(r.ids) for r in plain] == [12] * 4
    limited = generate(model, prompts, limits=[3, 0, 12, 1], stop_ids=(), **GREEDY)
    assert [r.ids for r in limited] == [
        r.ids[:n] for r, n in zip(plain, [3, 0, 12, 1], strict=True)
    ]
    stop = plain[0].ids[5]
    stopped = generate(model, prompts, max_new_tokens=12, stop_ids=(stop,), **GREEDY)[0]
    assert stopped.ids == plain[0].ids[: plain[0].ids.index(stop)] and stopped.finish == "stop"
    seen = []
    told = rows_of(prompts, [12] * 4, seed=0)
    for row in decode(model, told, Sampling(**GREEDY), stop_ids=()):
        seen.append((row is told[1], row.ids[-1]))
        if row is told[2]:
            row.finish = "stop"
    assert [len(r.ids) for r in told] == [12, 12, 1, 12] and told[2].finish == "stop"
    assert [token for second, token in seen if second] == told[1].ids
    assert generate(model, [], max_new_tokens=5) == []


def test_logprobs_are_the_models_own(model):
    result = generate(model, [[7, 8, 9]], max_new_tokens=10, stop_ids=(), **MIXED)[0]
    with torch.no_grad():
        logs = model(torch.tensor([[7, 8, 9, *result.ids]]))[0, 2:-1].log_softmax(-1)
    assert result.logprobs == pytest.approx(logs[range(10), result.ids].tolist(), abs=1e-4)


def test_the_window_slides_by_quarters():
    assert [window_start(n, 16) for n in (1, 16, 17, 20, 21, 24, 25)] == [0, 0, 4, 4, 8, 8, 12]
    for context in (1, 2, 3, 7, 16, 512):
        for n in range(1, 5 * context):
            assert 0 < n - window_start(n, context) <= context


def test_a_slid_window_reads_what_it_says():
    model = make_model(300, context=16)
    result = generate(model, [[7] * 10], max_new_tokens=30, stop_ids=(), **GREEDY)[0]
    text = [7] * 10 + result.ids
    for n in range(10, 40):
        with torch.no_grad():
            logits = model(torch.tensor([text[window_start(n, 16) : n]]))[0, -1]
        assert logits.argmax().item() == text[n]
    assert (
        result.note
        == "the text outgrew the context of 16 tokens: its end was written without its first 24."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -1.0}, "min_p is -1.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"prompts": [[5], []]}, "prompt 2 has 0 tokens, expected 1 to 64"),
        ({"prompts": [[5] * 65]}, "prompt 1 has 65 tokens, expected 1 to 64"),
        ({"prompts": [[5, 300]]}, "another tokenizer"),
    ],
)
def test_settings_out_of_range_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **({"prompts": [[5]], "max_new_tokens": 2} | settings))


def test_weights_that_are_not_numbers_are_told():
    model = make_model(300)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        generate(model, [[5]], max_new_tokens=2)


# ---- ids to text


def feed(tokenizer, ids, stop=()):
    stream = TextStream(tokenizer, stop)
    pieces = [stream.feed(i) for i in ids]
    return [*pieces, stream.close()], stream.stopped


def byte_ids(tokenizer, text):
    """A text as one token for each byte, as a model may write it."""
    return [
        i
        for b in text.encode()
        for i in [next(t for t in range(5, 261) if _byte(tokenizer, t) == b)]
    ]


def _byte(tokenizer, token):
    from tinyllm_lib.tokenizer import token_bytes

    return token_bytes(tokenizer, token)[0]


def test_a_character_waits_for_its_last_byte(tokenizer):
    text = "你好，👩‍🚀é!"
    pieces, _ = feed(tokenizer, byte_ids(tokenizer, text))
    assert "".join(pieces) == text
    assert [p for p in pieces if p] == list(text)


def test_bytes_that_form_no_character_give_no_text(tokenizer):
    you = byte_ids(tokenizer, "你")
    assert "".join(feed(tokenizer, you[:2])[0]) == ""
    assert "".join(feed(tokenizer, [*you[:2], *you, you[1], *byte_ids(tokenizer, "a")])[0]) == "你a"
    assert "".join(feed(tokenizer, [*you, 3, 0, *you])[0]) == "你你", "special tokens are no text"


def test_stop_strings_never_appear_not_even_in_part(tokenizer):
    ids = byte_ids(tokenizer, "一二三。\n问：")
    pieces, stopped = feed(tokenizer, ids, ["\n问"])
    assert "".join(pieces) == "一二三。" and stopped
    pieces, stopped = feed(tokenizer, ids, ["\n问：\n"])
    assert "".join(pieces) == "一二三。\n问：" and not stopped
    assert "".join(feed(tokenizer, ids, ["二三", "三。"])[0]) == "一"
    for bad in ("x", [""]):
        with pytest.raises(ValueError, match="expected a list of strings"):
            TextStream(tokenizer, bad)


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_is_whole_characters_and_equals_the_reply(generator, seed):
    settings = {"max_new_tokens": 40, "seed": seed, "temperature": 1.5, "top_k": None}
    pieces = list(generator.stream("你好", **settings))
    assert all(pieces) and "�" not in "".join(pieces)
    whole = generator.chat("你好", **settings)
    assert "".join(pieces).encode().decode() == whole == "".join(pieces)
    stop = whole[2:4]
    assert generator.chat("你好", stop=[stop], **settings) == whole[: whole.index(stop)]
    assert "".join(generator.stream("你好", stop=[stop], **settings)) == whole[: whole.index(stop)]


# ---- TextGenerator


def test_a_chat_prompt_is_the_chat_templates(generator):
    messages = [
        {"role": "system", "content": "你是一个AI助手"},
        {"role": "user", "content": "你好"},
    ]
    expected = encode_chat(generator.tokenizer, messages, add_generation_prompt=True).ids
    for prompt in ("你好", messages[1:], messages):
        assert generator.chat_prompt(prompt, 10) == (expected, 10, "")
    other = [{"role": "system", "content": "别的"}, messages[1]]
    assert generator.chat_prompt(other, 10)[0] != expected


def test_replies_are_those_of_chat_alone(generator, monkeypatch):
    questions = ["你好", "法国的首都是哪里？", "1", "天气", "小苗小苗小苗小苗"]
    alone = [generator.chat(q, temperature=0, max_new_tokens=16) for q in questions]
    for batch_size in (1, 2, 64):
        monkeypatch.setattr(generator, "batch_size", batch_size)
        assert generator.replies(questions, max_new_tokens=16) == alone
    assert generator.replies([]) == []


def test_samples(generator):
    texts = generator.pretrain_sample("法国", num_samples=3, max_new_tokens=12)
    assert len(set(texts)) == 3 and all(t.startswith("法国") for t in texts)
    assert texts[0] == "法国" + generator.complete("法国", max_new_tokens=12, top_k=300)
    replies = generator.sft_sample(
        "法国", num_samples=70, max_new_tokens=8, temperature=1.5, top_k=None
    )
    assert len(replies) == 70 and len(set(replies)) > 65, (
        "samples in different batches must differ, too"
    )


def test_completions_come_with_what_there_is_to_know(generator):
    short, long = generator.completions(["法国", "你好"], max_new_tokens=12)
    assert short.text == generator.complete("法国", temperature=0, max_new_tokens=12)
    assert len(short.logprobs) == len(short.ids) and len(long.logprobs) == len(long.ids)
    stop = short.text[2]
    cut = generator.completions(["法国"], max_new_tokens=12, stop=[stop])[0]
    assert cut.text == short.text[: short.text.index(stop)] and cut.finish == "stop"


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(generator):
    turn = [{"role": "user", "content": "天气很好"}, {"role": "assistant", "content": "小苗"}]
    ids, limit, note = generator.chat_prompt([*turn * 10, {"role": "user", "content": "再见"}], 50)
    assert "messages were left out" in note and len(ids) + limit <= 96 and limit >= 24
    kept = int(note.rsplit("oldest ")[1].split()[0])
    assert kept % 2 == 0, "turns go whole"
    with pytest.warns(ContextWarning, match=f"the oldest {kept} messages"):
        generator.chat([*turn * 10, {"role": "user", "content": "再见"}], max_new_tokens=50)
    with pytest.raises(ValueError, match="the last message does not fit: .* tokens too long"):
        generator.chat("巴黎" * 200)


def test_what_was_cut_at_the_contexts_end_is_said(generator):
    never_stops = {"temperature": 0, "max_new_tokens": 500}
    told = {}
    for name, write in (
        ("chat", generator.chat),
        ("stream", lambda *a, **k: "".join(generator.stream(*a, **k))),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            texts = [write("法" * n + "你好", **never_stops) for n in range(4)]
        told[name] = texts, ["context is full" in str(w.message) for w in caught]
    assert told["chat"] == told["stream"] and any(told["chat"][1]), "chat and stream say it, both"
    room = generator.context - generator.length("你好")
    told = [generator.completions(["你好"], max_new_tokens=room - n)[0] for n in range(-1, 4)]
    assert not any("cut" in row.note for row in told), "it has as many tokens as were asked for"
    with pytest.warns(ContextWarning, match="written without its first"):
        generator.pretrain_sample("你好", num_samples=5, max_new_tokens=150)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.chat(""), "the prompt is empty"),
        (lambda g: g.chat([]), "the prompt is empty"),
        (lambda g: [*g.stream(" \n")], "the prompt is empty"),
        (lambda g: g.complete(""), "the prompt is empty"),
        (lambda g: g.complete("巴" * 500), "tokens, the context holds 96"),
        (lambda g: g.chat(["x"]), "expected a text, or a list of .*'role'"),
        (lambda g: g.chat({"role": "user", "content": "x"}), "expected a text, or a list of"),
        (lambda g: g.chat([{"role": "robot", "content": "x"}]), "'robot'"),
        (
            lambda g: g.chat(
                [{"role": "system", "content": "长" * 200}, {"role": "user", "content": "x"}]
            ),
            "with the system prompt it is .* too long",
        ),
        (lambda g: g.replies(["x", "巴黎" * 200]), "prompt 2: the last message does not fit"),
        (lambda g: g.completions(["x", ""]), "prompt 2: the prompt is empty"),
        (lambda g: [*g.stream("x", temperature=-1)], "temperature is -1"),
        (lambda g: g.sft_sample("x", top_k=0), "top_k is 0"),
    ],
)
def test_prompts_that_cannot_be_answered(generator, call, message):
    with pytest.raises(ValueError, match=message):
        call(generator)


# ---- loading


def test_folders_and_what_is_wrong_with_them(folder, generator, tokenizer, tmp_path):
    loaded = TextGenerator(folder, device="cpu")
    assert loaded.chat("你好", max_new_tokens=8) == generator.chat("你好", max_new_tokens=8)
    for device in ("toaster", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            TextGenerator(folder, device=device)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TextGenerator(tmp_path / "nothing")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        TextGenerator(run)
    for step in (1, 2):
        save_checkpoint(run, step, generator.model, tokenizer, {})
    assert TextGenerator(run).folder.name == "step_000002"

    bare = tmp_path / "bare"
    generator.model.save_pretrained(bare)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        TextGenerator(bare)
    train_tokenizer(TEXTS, bare, vocab_size=270)
    with pytest.raises(
        ValueError, match=f"the tokenizer has 270 tokens, the model was made for {len(tokenizer)}"
    ):
        TextGenerator(bare)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        TextGenerator(broken)


def test_weights_in_several_files_chat_as_well(folder, generator, tmp_path):
    """As larger models from Hugging Face come."""
    shutil.copytree(folder, tmp_path / "parts")
    whole = tmp_path / "parts" / "model.safetensors"
    state = load_file(whole)
    names = {name: f"part{number % 2}.safetensors" for number, name in enumerate(state)}
    for part in set(names.values()):
        save_file({n: t for n, t in state.items() if names[n] == part}, whole.with_name(part))
    index = json.dumps({"weight_map": names})
    whole.with_name("model.safetensors.index.json").write_text(index, encoding="utf-8")
    whole.unlink()
    assert TextGenerator(tmp_path / "parts").chat("小猫", **GREEDY) == generator.chat(
        "小猫", **GREEDY
    )


@pytest.mark.parametrize("settings", [GREEDY, MIXED], ids=["greedy", "all filters"])
def test_a_token_is_asked_for_once(model, monkeypatch, settings):
    """On a GPU every question waits for all that was asked before."""
    asked = Counter()

    def watch(name):
        really = getattr(torch.Tensor, name)
        watched = lambda *a, **k: asked.update([name]) or really(*a, **k)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, watched)

    monkeypatch.setattr(type(model), "_check_input", lambda *_: None)  # not done on a GPU
    for name in ("any", "all", "item", "tolist", "numpy", "__bool__", "__int__", "__float__"):
        watch(name)
    generate(model, some_prompts(3, 8), max_new_tokens=9, stop_ids=(), **settings)
    assert asked == {"tolist": 9}


def test_a_tokenizer_from_elsewhere_ends_replies_with_its_own_id(folder, generator, tmp_path):
    """Hugging Face tokenizers that speak ChatML have <|im_end|> at any id, and at 4 a token like
    any other.
    """
    shutil.copytree(folder, tmp_path / "other")
    ids = encode_text(generator.tokenizer, "法国")
    written = generate(generator.model, [ids], max_new_tokens=12, **GREEDY)[0].ids
    at = next(n for n in range(1, 12) if written[n] not in (*ids, *written[:n]))
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    name = next(token for token, number in vocabulary.items() if number == written[at])
    vocabulary[name], vocabulary["<|im_end|>"] = 4, written[at]
    for token in content["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    other = TextGenerator(tmp_path / "other")
    assert sorted(other.stop_ids) == [2, written[at]] and sorted(generator.stop_ids) == [2, 4]
    reply = other.completions(["法国"], max_new_tokens=12)[0]
    assert (len(reply.ids), reply.finish) == (at, "stop")
    pieces = other.pieces(rows_of([ids], [12], seed=0), Sampling(temperature=0))
    assert "".join(text for _, text in pieces) == reply.text


def test_rows_that_no_token_has_are_never_text(tokenizer):
    """Some models round their vocabulary up; such an id may be drawn, and transformers writes
    nothing for it either.
    """
    model = make_model(len(tokenizer) + 4, context=96)
    with torch.no_grad():
        model.model.embed_tokens.weight[-4:] *= 3
    bot = TextGenerator.from_model(model, tokenizer)
    written = generate(
        model, [encode_text(tokenizer, "法国")], max_new_tokens=24, stop_ids=bot.stop_ids, **GREEDY
    )[0].ids
    assert max(written) >= len(tokenizer)
    real = [i for i in written if i < len(tokenizer)]
    assert bot.complete("法国", max_new_tokens=24, temperature=0) == tokenizer.decode(
        real, errors="ignore"
    ).replace("\ufffd", "")
    with pytest.raises(
        ValueError, match="the tokenizer has 300 tokens, the model was made for 320.*take that one"
    ):
        TextGenerator.from_model(make_model(320, context=96), tokenizer)
