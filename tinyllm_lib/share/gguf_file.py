"""A checkpoint -> one GGUF file for llama.cpp and what is built on it (Ollama, LM Studio, …), with
Ollama's Modelfile beside it.

Two things need care. llama.cpp rotates adjacent pairs, so the rows of the query and key matrices
change places. And it cuts text into words by rules of its own, which have names: ours is the one
called `gpt-2`. A tokenizer that no name fits is refused, for with other ids the model would read
another text than the one written.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import SYSTEM_PROMPT, atomic_path
from tinyllm_lib.model import (
    ModelConfig,
    Transformer,
    model_folder,
    rope_frequencies,
    weights_fingerprint,
)
from tinyllm_lib.share.old_layout import to_adjacent_pairs
from tinyllm_lib.tokenizer import check_size, load_tokenizer, plain_template, stop_ids, token_ids

DTYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}  # with the names of GGUF's file types
Q8_BLOCK = 32  # numbers that share a scale in q8_0
WEIGHTS_KEY = (  # of the metadata: the fingerprint of the weights that the file was made from
    "tinyllm.weights"
)
# 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, which is ByteLevel's
# own pattern
PRE_TOKENIZER = "gpt-2"
TENSORS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
MODELFILE = '''\
# ollama create NAME -f "{name}", then ollama run NAME
FROM ./{file}
TEMPLATE """{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
"""
SYSTEM {system}
{stops}
PARAMETER num_ctx {context}
PARAMETER temperature 0.7
PARAMETER top_k 50
'''


def export_gguf(folder: str | Path, out: str | Path, dtype: str = "f16") -> Path:
    """Writes `out` (….gguf) for llama.cpp from a run or checkpoint folder, and Ollama's Modelfile
    beside it (`modelfile_path`).

    A Modelfile that somebody edited is left as it is, and that is said.

    Args:
        dtype: of the matrices: "f32" (the same numbers), "f16", "bf16", or "q8_0" (8 bits and a
            scale for each 32 numbers). Norms stay f32.

    Returns:
        The GGUF file.

    Raises:
        ImportError: the gguf library is missing.  FileNotFoundError: no checkpoint there.
        ValueError: an unknown dtype, a width that q8_0 cannot cut into blocks, or a tokenizer that
            llama.cpp cannot express.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            f"Writing GGUF needs the gguf library ({error}): make setup, or pip install gguf."
        ) from error
    folder, out = model_folder(folder), Path(out)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, str(folder))
    model = Transformer.from_pretrained(folder)
    check_size(tokenizer, model.config.vocab_size, folder)
    tensors = gguf_tensors(model)
    rows = {tensor.shape[1] for tensor in tensors.values() if tensor.dim() == 2}
    if dtype == "q8_0" and (odd := [str(n) for n in sorted(rows) if n % Q8_BLOCK]):
        raise ValueError(
            f"q8_0 cuts rows into blocks of {Q8_BLOCK}, and rows here have {' and '.join(odd)}"
            " numbers: take f16."
        )

    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _add_model(writer, model.config, folder, getattr(gguf.LlamaFileType, DTYPES[dtype]))
        _add_tokenizer(writer, tokenizer, model.config.vocab_size, gguf.TokenType)
        kind = gguf.GGMLQuantizationType[dtype.upper()]
        for name, tensor in tensors.items():
            one = kind if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), one), raw_dtype=one)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    write_unless_edited(
        modelfile_path(out), modelfile(out.name, model.config.max_seq_len, tokenizer)
    )
    return out


def other_weights(file: str | Path, folder: str | Path) -> str:
    """Why a GGUF file is not the model of this run or checkpoint; "" if it is, or has no record of
    ours and nobody can tell.
    """
    import gguf

    try:
        found = gguf.GGUFReader(file).get_field(WEIGHTS_KEY)
    except (ValueError, IndexError) as error:
        return f"{Path(file).name} cannot be read as GGUF ({error}): export_gguf writes it anew."
    was, now = found and found.contents(), weights_fingerprint(model_folder(folder))
    if was in (None, now):
        return ""
    return (
        f"{Path(file).name} holds other weights ({was}) than {Path(folder).name} ({now}):"
        " export_gguf writes it anew."
    )


def gguf_tensors(model: Transformer) -> dict[str, Tensor]:
    """The tensors under llama.cpp's names, fp32, queries and keys in adjacent pairs; a tied head
    has no entry of its own.
    """
    c = model.config
    state = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not c.tie_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    if c.rope_scaling:
        tensors["rope_freqs.weight"] = 1 / rope_frequencies(c)[1]
    heads = {"attn_q": c.n_heads, "attn_k": c.n_kv_heads}
    for i in range(c.n_layers):
        for ours, theirs in TENSORS.items():
            tensor = state[f"model.layers.{i}.{ours}.weight"]
            tensors[f"blk.{i}.{theirs}.weight"] = (
                to_adjacent_pairs(tensor, heads[theirs]) if theirs in heads else tensor
            )
    return tensors


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Passes a tokenizer whose ids llama.cpp gives too.

    Raises:
        ValueError: anything that a GGUF file cannot say, all of it named at once; `where` begins
            the message.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model, before = spec["model"], spec["pre_tokenizer"] or {}
    switches = [n for n in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
                if model.get(n)]  # fmt: skip
    byte_level = (
        before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and not before.get("add_prefix_space", True)
    )
    sloppy = [
        t["content"] for t in spec["added_tokens"] if t["lstrip"] or t["rstrip"] or t["single_word"]
    ]
    unknown = [t["content"] for t in spec["added_tokens"] if not t["special"]]
    problems = [
        (spec["normalizer"], f"the normalizer {_kind(spec['normalizer'])}, and llama.cpp reads text as it stands (train_tokenizer "
                             f"leaves it out by default, nfkc=False)"),
        (model["type"] != "BPE", f"a {model['type']} model (only BPE)"),
        (switches, f"BPE with {', '.join(switches)}"),
        (not byte_level, f"the pre-tokenizer {_kind(before)}, and llama.cpp knows pre-tokenizers by name only; {PRE_TOKENIZER} is "
                         f"ByteLevel alone, with its own pattern and no space put in front"),
        (sloppy, f"tokens that swallow the spaces beside them: {', '.join(sloppy)}"),
        (unknown, f"added tokens that are not special: {', '.join(unknown)}"),
        (tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"], "tokens put around every text"),
        (not isinstance(tokenizer.chat_template, str), "more than one chat template"),
    ]  # fmt: skip
    if found := [text for bad, text in problems if bad]:
        raise ValueError(
            f"{where}: this tokenizer cannot be written as GGUF, it has {'; '.join(found)}."
        )


def _kind(part: dict | None) -> str:
    inner = (part or {}).get("pretokenizers") or (part or {}).get("normalizers")
    return (
        f"{part['type']} of {', '.join(map(_kind, inner))}"
        if inner
        else (part or {}).get("type", "none")
    )


def modelfile_path(gguf: str | Path) -> Path:
    """chat-f16.gguf -> chat-f16.Modelfile: each GGUF file has its own."""
    return Path(gguf).with_suffix(".Modelfile")


def modelfile(
    file: str, context: int, tokenizer: PreTrainedTokenizerFast, system: str = SYSTEM_PROMPT
) -> str:
    """What `ollama create` reads: the GGUF file's name (to the end of its line, spaces too),
    ChatML, what stops, the context.
    """
    stops = "\n".join(
        f"PARAMETER stop {token}" for token in tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))
    )
    return MODELFILE.format(
        file=file, name=modelfile_path(file).name, context=context, system=system, stops=stops
    )


def write_unless_edited(path: Path, text: str) -> None:
    """Writes a text file that its reader may edit. The last line is a sum of the others: while it
    holds, the text is ours to replace.
    """

    def sealed(text: str) -> str:
        total = blake2b(text.encode(), digest_size=8).hexdigest()
        return (
            f"{text}# {total}: the sum of the lines above. Edit them, and no export touches this"
            " file again.\n"
        )

    if path.exists():
        found = path.read_text(encoding="utf-8", errors="replace")
        if found != sealed("".join(found.splitlines(keepends=True)[:-1])):
            print(
                f"{path} was edited: it stays as it is. (Move it away, and the next export writes a"
                " new one.)",
                flush=True,
            )
            return
    with atomic_path(path) as temporary:
        temporary.write_text(sealed(text), encoding="utf-8")


def _add_model(writer, config: ModelConfig, folder: Path, file_type: int) -> None:
    writer.add_name(f"tinyllm {folder.name}")
    writer.add_string(WEIGHTS_KEY, weights_fingerprint(folder))
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_tokenizer(writer, tokenizer: PreTrainedTokenizerFast, vocab_size: int, kinds) -> None:
    special, unused = set(tokenizer.all_special_ids), range(len(tokenizer), vocab_size)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's word for byte-level BPE
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(
        [
            *tokenizer.convert_ids_to_tokens(range(len(tokenizer))),
            *(f"[unused {i}]" for i in unused),
        ]
    )
    kind = [kinds.CONTROL if i in special else kinds.NORMAL for i in range(len(tokenizer))]
    writer.add_token_types([*kind, *(kinds.UNUSED for _ in unused)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    ids = {
        **token_ids(tokenizer),
        "unk_token_id": tokenizer.unk_token_id,
        "eot_token_id": stop_ids(tokenizer)[0],
    }
    for name, token_id in ids.items():
        if token_id is not None:
            getattr(writer, f"add_{name}")(token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(plain_template(tokenizer.chat_template))
