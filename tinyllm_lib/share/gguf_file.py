"""A checkpoint -> one GGUF file for llama.cpp and what is built on it (Ollama, LM Studio, …), with
Ollama's Modelfile beside it.

Two things need care. llama.cpp rotates adjacent pairs (`layouts`). And it cuts text into words by
rules of its own, which have names: ours is the one called `gpt-2`. A tokenizer that no name fits is
refused, for with other ids the model would read another text than the one written.
"""

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
from tinyllm_lib.share.layouts import LAYER, to_adjacent_pairs
from tinyllm_lib.tokenizer import check_size, load_tokenizer, stop_ids, token_ids

DTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
Q8_BLOCK = 32  # numbers that share a scale in q8_0
WEIGHTS_KEY = "tinyllm.weights"  # of the metadata: whose weights these are
PRE_TOKENIZER = "gpt-2"  # the name of ByteLevel's own pattern
# What a BPE model may have and llama.cpp's has not.
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
SWITCHES = ("dropout", "unk_token", *AFFIXES, "byte_fallback", "ignore_merges")
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
    """Writes `out` (….gguf) from a run or checkpoint folder, and Ollama's Modelfile beside it;
    returns `out`.

    Args:
        dtype: of the matrices: "f32" (the same numbers), "f16", "bf16", or "q8_0" (8 bits and a
            scale for each 32 numbers). Norms stay f32.

    Raises:
        ImportError: the gguf library is missing.  FileNotFoundError: no checkpoint there.
        ValueError: a dtype, width or tokenizer that llama.cpp does not have.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    try:
        import gguf
    except ImportError as error:
        needed = "make setup, or pip install gguf"
        raise ImportError(f"Writing GGUF needs the gguf library ({error}): {needed}.") from error
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
        writer.add_name(f"tinyllm {folder.name}")
        writer.add_string(WEIGHTS_KEY, weights_fingerprint(folder))
        writer.add_file_type(getattr(gguf.LlamaFileType, DTYPES[dtype]))
        _add_model(writer, model.config)
        _add_tokenizer(writer, tokenizer, model.config.vocab_size, gguf.TokenType)
        for name, tensor in tensors.items():
            kind = gguf.GGMLQuantizationType[dtype.upper() if tensor.dim() == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    write_modelfile(out, model.config.max_seq_len, tokenizer)
    return out


def other_weights(file: str | Path, folder: str | Path) -> str:
    """Why a GGUF file is not the model of this run; "" if it is, or nobody can tell."""
    import gguf

    name, anew = Path(file).name, "export_gguf writes it anew."
    try:
        record = gguf.GGUFReader(file).get_field(WEIGHTS_KEY)
    except (ValueError, IndexError) as error:
        return f"{name} cannot be read as GGUF ({error}): {anew}"
    was, now = record and record.contents(), weights_fingerprint(model_folder(folder))
    if was in (None, now):
        return ""
    return f"{name} holds other weights ({was}) than {Path(folder).name} ({now}): {anew}"


def gguf_tensors(model: Transformer) -> dict[str, Tensor]:
    """The tensors under llama.cpp's names, fp32, queries and keys in adjacent pairs; a tied head
    has no entry of its own.
    """
    c = model.config
    state = {name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()}
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
        for ours, (_, theirs) in LAYER.items():
            tensor = state[f"model.layers.{i}.{ours}.weight"]
            if theirs in heads:
                tensor = to_adjacent_pairs(tensor, heads[theirs])
            tensors[f"blk.{i}.{theirs}.weight"] = tensor
    return tensors


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Passes a tokenizer whose ids llama.cpp gives too; a ValueError, beginning with `where`, tells
    all that a GGUF file cannot say.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model, before, added = spec["model"], spec["pre_tokenizer"] or {}, spec["added_tokens"]
    byte_level = before.get("type") == "ByteLevel" and before.get("use_regex", True)
    plain = byte_level and not before.get("add_prefix_space", True)
    switches = [name for name in SWITCHES if model.get(name)]
    greedy = [t["content"] for t in added if t["lstrip"] or t["rstrip"] or t["single_word"]]
    unknown = [t["content"] for t in added if not t["special"]]
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    normalizer = (
        f"the normalizer {_kind(spec['normalizer'])}, and llama.cpp reads text as it stands"
        " (train_tokenizer leaves it out by default, nfkc=False)"
    )
    pre_tokenizer = (
        f"the pre-tokenizer {_kind(before)}, and llama.cpp knows pre-tokenizers by name only;"
        f" {PRE_TOKENIZER} is ByteLevel alone, with its own pattern and no space put in front"
    )
    problems: list[tuple[object, str]] = [
        (spec["normalizer"], normalizer),
        (model["type"] != "BPE", f"a {model['type']} model (only BPE)"),
        (switches, f"BPE with {', '.join(switches)}"),
        (not plain, pre_tokenizer),
        (greedy, f"tokens that swallow the spaces beside them: {', '.join(greedy)}"),
        (unknown, f"added tokens that are not special: {', '.join(unknown)}"),
        (tokenizer("a")["input_ids"] != alone, "tokens put around every text"),
        (not isinstance(tokenizer.chat_template, str), "more than one chat template"),
    ]
    if found := "; ".join(text for bad, text in problems if bad):
        raise ValueError(f"{where}: this tokenizer cannot be written as GGUF, it has {found}.")


def _kind(part: dict | None) -> str:
    if not part:
        return "none"
    inner = part.get("pretokenizers") or part.get("normalizers")
    return f"{part['type']} of {', '.join(map(_kind, inner))}" if inner else part["type"]


def _add_model(writer, c: ModelConfig) -> None:
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.norm_eps)


def _add_tokenizer(writer, tokenizer: PreTrainedTokenizerFast, vocab_size: int, kinds) -> None:
    size, special = len(tokenizer), set(tokenizer.all_special_ids)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    names = [tokenizer.convert_ids_to_tokens(i) for i in range(size)]
    types = [kinds.CONTROL if i in special else kinds.NORMAL for i in range(size)]
    unused = range(size, vocab_size)  # rows of the matrix that no token has
    writer.add_tokenizer_model("gpt2")  # llama.cpp's word for byte-level BPE
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([*names, *(f"[unused {i}]" for i in unused)])
    writer.add_token_types(types + [kinds.UNUSED] * len(unused))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    ids = {"unk_token_id": tokenizer.unk_token_id, "eot_token_id": stop_ids(tokenizer)[0]}
    for name, token_id in (token_ids(tokenizer) | ids).items():
        if token_id is not None:
            getattr(writer, f"add_{name}")(token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def modelfile_path(gguf: str | Path) -> Path:
    """chat-f16.gguf -> chat-f16.Modelfile: each GGUF file has its own."""
    return Path(gguf).with_suffix(".Modelfile")


def write_modelfile(gguf: Path, context: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a GGUF file's Modelfile: ChatML, what stops, the context. One that somebody edited
    stays, and that is said.
    """
    path, stops = modelfile_path(gguf), tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))
    text = MODELFILE.format(
        file=gguf.name,
        name=path.name,
        context=context,
        system=SYSTEM_PROMPT,
        stops="\n".join(f"PARAMETER stop {token}" for token in stops),
    )
    if path.exists():
        found = path.read_text(encoding="utf-8", errors="replace")
        if found != _sealed("".join(found.splitlines(keepends=True)[:-1])):
            print(
                f"{path} was edited: it stays. (Move it away for a new one at the next export.)",
                flush=True,
            )
            return
    with atomic_path(path) as temporary:
        temporary.write_text(_sealed(text), encoding="utf-8")


def _sealed(text: str) -> str:
    """With a sum of the text as last line: while it holds, nobody has edited it."""
    total = blake2b(text.encode(), digest_size=8).hexdigest()
    note = "the sum of the lines above. Edit them, and no export touches this file again."
    return f"{text}# {total}: {note}\n"
