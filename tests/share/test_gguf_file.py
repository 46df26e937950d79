"""GGUF: the right tensors under llama.cpp's names, a tokenizer that gives the same ids or is
refused, and llama.cpp itself.
"""

import os
import sys

import numpy as np
import pytest
import torch
from helpers.tiny import DIALOGUES, ROOT, TEXTS, foreign, random_model
from tokenizers import AddedToken, normalizers, pre_tokenizers

from tinyllm_lib.generate import generate
from tinyllm_lib.model import ModelConfig, Transformer, model_folder, save_checkpoint
from tinyllm_lib.share import check_tokenizer, export_gguf, to_half_split
from tinyllm_lib.tokenizer import encode_chat, encode_text, load_tokenizer, train_tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is not installed: make setup")
pytest_plugins = ["helpers.tiny_fixtures"]

SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 128}
DATA = ROOT.parent / "shared" / "data"


def make_model(vocab_size, tied=True):
    return random_model(
        ModelConfig(vocab_size=vocab_size, tie_embeddings=tied, **SHAPE), norm_spread=0.1
    )


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "a head of its own"])
def run(request, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, 3, make_model(len(tokenizer), request.param), tokenizer, {})
    return folder


def modelfile_path(file):
    return file.with_suffix(".Modelfile")


def read(path):
    """(fields as plain values, tensors in fp32 with their type) of a GGUF file."""
    reader = gguf.GGUFReader(path)
    tensors = {
        t.name: (
            t.tensor_type.name,
            torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)),
        )
        for t in reader.tensors
    }
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


# ---- what is in the file


@pytest.mark.parametrize(
    ("dtype", "error"), [("f32", 0.0), ("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3)]
)
def test_every_tensor_is_there_once_with_its_numbers(dtype, error, run, tmp_path):
    model = Transformer.from_pretrained(model_folder(run))
    _, tensors = read(export_gguf(run, tmp_path / "m.gguf", dtype))
    assert len(tensors) == len(list(model.parameters()))
    assert ("output.weight" in tensors) == (not model.config.tie_embeddings)
    layer = model.model.layers[1]
    expected = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "blk.1.attn_v.weight": layer.self_attn.v_proj.weight,
        "blk.1.attn_output.weight": layer.self_attn.o_proj.weight,
        "blk.1.ffn_gate.weight": layer.mlp.gate_proj.weight,
        "blk.1.ffn_up.weight": layer.mlp.up_proj.weight,
        "blk.1.ffn_down.weight": layer.mlp.down_proj.weight,
        "blk.1.attn_norm.weight": layer.input_layernorm.weight,
        "blk.1.ffn_norm.weight": layer.post_attention_layernorm.weight,
    }
    for name, weight in expected.items():
        kind, tensor = tensors[name]
        assert kind == ("F32" if weight.dim() == 1 else dtype.upper()), name
        assert (tensor - weight).abs().max() <= error * weight.abs().max(), name
    if dtype == "f32":  # the permutation of import undoes that of export
        assert torch.equal(
            to_half_split(tensors["blk.1.attn_q.weight"][1], 4), layer.self_attn.q_proj.weight
        )
        assert torch.equal(
            to_half_split(tensors["blk.1.attn_k.weight"][1], 2), layer.self_attn.k_proj.weight
        )


def test_the_fields_say_what_the_model_and_the_tokenizer_are(run, tokenizer, tmp_path):
    fields, _ = read(export_gguf(run, tmp_path / "m.gguf", "f16"))
    config = Transformer.from_pretrained(model_folder(run)).config
    expected = {
        "general.architecture": "llama",
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 400,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(400))
    assert fields["tokenizer.ggml.token_type"] == [3] * 5 + [1] * 395  # control, normal
    assert len(fields["tokenizer.ggml.merges"]) == 400 - 261


def test_the_chat_template_in_the_file_writes_the_same_text(run, tokenizer, tmp_path):
    from jinja2 import Environment

    fields, _ = read(export_gguf(run, tmp_path / "m.gguf"))
    template = fields["tokenizer.chat_template"]
    assert "generation %}" not in template
    for add in (False, True):
        rendered = (
            Environment()
            .from_string(template)
            .render(messages=DIALOGUES[1], add_generation_prompt=add)
        )
        assert rendered == tokenizer.apply_chat_template(
            DIALOGUES[1], tokenize=False, add_generation_prompt=add
        )


def test_a_model_of_other_widths_a_longer_rope_and_unused_rows(tokenizer_folder, tmp_path):
    """Head size and hidden width of its own, Llama 3's rope, 5 rows more than tokens; ids are the
    foreign tokenizer's.
    """
    theirs = load_tokenizer(
        foreign(tokenizer_folder, tmp_path / "theirs", eos_token="</s>", pad_token="<unk>")
    )
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 32
    shape = {**SHAPE, "hidden_dim": 96, "head_dim": 24, "rope_scaling": rope, "rope_base": 100.0}
    save_checkpoint(
        tmp_path / "run", 1, random_model(ModelConfig(vocab_size=405, **shape)), theirs, {}
    )
    fields, tensors = read(export_gguf(tmp_path / "run", tmp_path / "m.gguf", "f16"))
    assert [
        fields[f"llama.{name}"]
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    ] == [24] * 3
    assert fields["llama.feed_forward_length"] == 96 and tensors["blk.1.attn_q.weight"][
        1
    ].shape == (96, 64)
    kind, slower = tensors["rope_freqs.weight"]  # what llama.cpp divides each frequency by
    assert kind == "F32" and slower.shape == (12,) and slower[0] == 1 and slower[-1] == 8
    assert fields["llama.vocab_size"] == 405 == len(fields["tokenizer.ggml.tokens"])
    assert fields["tokenizer.ggml.token_type"][400:] == [5] * 5  # unused
    ids = [
        fields.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos", "eot", "padding", "unknown")
    ]
    assert ids == [None, 58, 60, 56, None]


def test_a_modelfile_for_ollama_lies_beside_it(run, tmp_path):
    export_gguf(run, tmp_path / "我的 模型" / "chat f16.gguf")
    text = (tmp_path / "我的 模型" / "chat f16.Modelfile").read_text(encoding="utf-8")
    for line in (
        '# ollama create NAME -f "chat f16.Modelfile", then ollama run NAME',
        "FROM ./chat f16.gguf",
        "PARAMETER stop <|im_end|>",
        "PARAMETER stop </s>",
        "PARAMETER num_ctx 128",
    ):
        assert line in text.splitlines()
    # Ollama's template language, carried out by hand for one message and the generation prompt
    template = text.split('TEMPLATE """')[1].split('"""')[0]
    body = template.removeprefix("{{- range .Messages }}").split("{{ end }}")
    message = body[0].replace("{{ .Role }}", "user").replace("{{ .Content }}", "你好")
    assert message + body[1] == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert sorted(p.name for p in (tmp_path / "我的 模型").iterdir()) == [
        "chat f16.Modelfile",
        "chat f16.gguf",
    ]


def test_an_edited_modelfile_is_never_replaced(run, tmp_path, capsys):
    one, two = export_gguf(run, tmp_path / "a.gguf"), export_gguf(run, tmp_path / "b.gguf", "q8_0")
    first, second = modelfile_path(one), modelfile_path(two)
    assert "FROM ./a.gguf\n" in first.read_text(
        encoding="utf-8"
    ) and "FROM ./b.gguf\n" in second.read_text(encoding="utf-8")
    first.write_text(
        first.read_text(encoding="utf-8").replace("temperature 0.7", "temperature 0.2"),
        encoding="utf-8",
    )
    (tmp_path / "c.Modelfile").write_text("FROM ./c.gguf\n", encoding="utf-8")  # somebody's own
    assert capsys.readouterr().out == ""
    export_gguf(run, one), export_gguf(run, tmp_path / "c.gguf")
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" was edited")[0] for line in out] == [
        str(first),
        str(tmp_path / "c.Modelfile"),
    ]
    assert "temperature 0.2" in first.read_text(encoding="utf-8")
    assert (tmp_path / "c.Modelfile").read_text(encoding="utf-8") == "FROM ./c.gguf\n"
    export_gguf(run, two, "q8_0")  # says the same: nothing to tell
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_both_files_have_the_mode_of_other_files(umask, run, tmp_path):
    before = os.umask(umask)
    try:
        file = export_gguf(run, tmp_path / "m.gguf")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (file, modelfile_path(file))] == [
        0o666 & ~umask
    ] * 2


# ---- what is refused


def test_what_cannot_be_exported_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="dtype is 'q4', expected one of f32, f16, bf16, q8_0"):
        export_gguf(run, tmp_path / "m.gguf", "q4")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_gguf(tmp_path / "nowhere", tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="gguf"):
        export_gguf(run, tmp_path / "m.gguf")


def test_q8_0_needs_rows_of_32(tokenizer, tmp_path):
    model = Transformer(
        ModelConfig(dim=48, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=len(tokenizer))
    )
    save_checkpoint(tmp_path / "run", 1, model, tokenizer, {})
    with pytest.raises(ValueError, match="multiples of 32: take f16"):
        export_gguf(tmp_path / "run", tmp_path / "m.gguf", "q8_0")
    assert not list(tmp_path.glob("*.gguf"))
    model = Transformer(
        ModelConfig(vocab_size=len(tokenizer), hidden_dim=200, head_dim=12, **SHAPE)
    )
    save_checkpoint(tmp_path / "other", 1, model, tokenizer, {})
    with pytest.raises(ValueError, match="multiples of 32: take f16"):
        export_gguf(tmp_path / "other", tmp_path / "m.gguf", "q8_0")


def altered(folder, change):
    tokenizer = load_tokenizer(folder)
    change(tokenizer.backend_tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: setattr(t, "normalizer", normalizers.NFKC()),
            r"a normalizer \(NFKC\)",
        ),
        (
            lambda t: setattr(
                t,
                "pre_tokenizer",
                pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]),
            ),
            "another pre-tokenizer than ByteLevel .*Sequence.*Digits",
        ),
        (
            lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "another pre-tokenizer than ByteLevel .*'add_prefix_space': True",
        ),
        (
            lambda t: setattr(
                t,
                "pre_tokenizer",
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ),
            "another pre-tokenizer than ByteLevel with its own pattern",
        ),
        (lambda t: setattr(t.model, "dropout", 0.1), r"BPE with \(\['dropout'\]\)"),
        (lambda t: setattr(t.model, "ignore_merges", True), r"BPE with \(\['ignore_merges'\]\)"),
        (lambda t: t.add_tokens(["词"]), r"added tokens that are not special.* \(\['词'\]\)"),
        (
            lambda t: t.add_special_tokens([AddedToken("<x>", lstrip=True)]),
            r"swallow spaces beside them \(\['<x>'\]\)",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_express_is_refused_by_name(
    change, message, tokenizer_folder
):
    with pytest.raises(ValueError, match=message):
        check_tokenizer(altered(tokenizer_folder, change), "here")


def test_a_tokenizer_trained_with_nfkc_is_refused(tmp_path):
    tokenizer = train_tokenizer(TEXTS, tmp_path, vocab_size=300, nfkc=True)
    with pytest.raises(ValueError, match="nfkc=False"):
        check_tokenizer(tokenizer, "here")


def test_a_tokenizer_of_this_library_passes(tokenizer):
    check_tokenizer(tokenizer, "here")


# ---- llama.cpp itself


@pytest.fixture(scope="module")
def llama_cpp():
    reason = (
        "llama-cpp-python is not installed (make setup EXTRAS=llama compiles it in some minutes,"
        " make test-slow compares with it)"
    )
    return pytest.importorskip("llama_cpp", reason=reason)


@pytest.fixture(scope="module")
def real_texts():
    if not (DATA / "dialogues.json").is_file():
        pytest.skip("needs ../shared/data: real texts, not part of the repository")
    from tinyllm_lib.data import read_dialogues, read_texts

    documents = [
        text
        for text, _ in zip(
            read_texts(DATA / "pretrain_corpus.jsonl.tar.bz2"), range(600), strict=False
        )
    ]
    dialogues = [
        m["content"]
        for d, _ in zip(read_dialogues(DATA / "dialogues.json"), range(200), strict=False)
        for m in d[1:]
    ]
    return documents + dialogues[:400]


@pytest.fixture(scope="module")
def real(real_texts, tmp_path_factory):
    """A tokenizer of real text and a model of random weights, as a run."""
    folder = tmp_path_factory.mktemp("real")
    tokenizer = train_tokenizer(real_texts, folder / "tokenizer", vocab_size=4096)
    save_checkpoint(folder / "run", 1, make_model(len(tokenizer)), tokenizer, {})
    return folder / "run"


@pytest.mark.slow
def test_llama_cpp_gives_the_same_ids(llama_cpp, real, real_texts, tmp_path):
    tokenizer = load_tokenizer(model_folder(real))
    llama = llama_cpp.Llama(
        str(export_gguf(real, tmp_path / "m.gguf")), vocab_only=True, verbose=False
    )
    assert len(real_texts) == 1000
    odd = [
        "",
        " ",
        "  a",
        "a  b",
        "\n\n a\n",
        "don't we'll I'd 's",
        "<|im_end|> 也只是文字",
        "１² ＡＢＣ\u3000e\u0301",
        "👩‍🚀😀",
        "\u200b\u00a0\x85",
    ]
    for text in real_texts + odd:
        assert llama.tokenize(text.encode(), add_bos=True, special=False) == encode_text(
            tokenizer, text
        ), text
    for messages in DIALOGUES[:20]:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        assert (
            llama.tokenize(rendered.encode(), add_bos=True, special=True)
            == encode_chat(tokenizer, messages).ids
        )


@pytest.mark.slow
def test_llama_cpp_writes_the_same_greedy_tokens(llama_cpp, real, real_texts, tmp_path):
    folder = model_folder(real)
    model, tokenizer = Transformer.from_pretrained(folder), load_tokenizer(folder)
    # its KV cache is f16 by default
    f32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    llama = llama_cpp.Llama(
        str(export_gguf(real, tmp_path / "m.gguf", "f32")), n_ctx=128, verbose=False, **f32
    )
    prompts = [
        encode_text(tokenizer, text)[: 1 + i % 40] for i, text in enumerate(real_texts[:1000:20])
    ]
    ours = generate(model, prompts, max_new_tokens=64, temperature=0, stop_ids=())
    assert len(prompts) == 50
    for prompt, expected in zip(prompts, ours, strict=True):
        llama.reset()
        stream = llama.generate(prompt, temp=0.0, repeat_penalty=1.0)
        assert [token for token, _ in zip(stream, range(64), strict=False)] == expected.ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "error"), [("f32", 1e-3), ("f16", 1e-2), ("bf16", 5e-2), ("q8_0", 5e-2)]
)
def test_llama_cpp_reads_every_dtype_and_both_kinds_of_head(dtype, error, llama_cpp, run, tmp_path):
    """Its logits are ours but for the rounding of the weights; the error is relative."""
    ids = encode_text(load_tokenizer(model_folder(run)), TEXTS[0])[:32]
    with torch.no_grad():
        ours = Transformer.from_pretrained(model_folder(run))(torch.tensor([ids]))[0]
    llama = llama_cpp.Llama(
        str(export_gguf(run, tmp_path / "m.gguf", dtype)), n_ctx=128, logits_all=True, verbose=False
    )
    llama.eval(ids)
    theirs = torch.tensor(llama.scores[: len(ids)])
    assert (theirs - ours).norm() / ours.norm() < error


def test_llama_cpp_knows_the_end_of_a_reply(llama_cpp, run, tmp_path):
    """The one quick test of its kind: where llama.cpp is missing, plain CI says so here."""
    llama = llama_cpp.Llama(
        str(export_gguf(run, tmp_path / "m.gguf")), vocab_only=True, verbose=False
    )
    assert (llama.token_bos(), llama.token_eos()) == (3, 4)
    assert llama.metadata["tokenizer.ggml.pre"] == "gpt-2"
