"""A checkpoint -> a GGUF file for llama.cpp and what is built on it, and Ollama's Modelfile.
llama.cpp rotates adjacent pairs (`old_layout`), and cuts text into words by rules that have names:
ours is `gpt-2`.
"""

import json
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import SYSTEM_PROMPT, atomic_path
from tinyllm_lib.model import Transformer, model_folder, rope_frequencies, weights_fingerprint
from tinyllm_lib.share.old_layout import to_adjacent_pairs
from tinyllm_lib.tokenizer import check_size, load_tokenizer, stop_ids, token_ids

DTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
SWITCHES = ("dropout", "unk_token", *AFFIXES, "byte_fallback", "ignore_merges")  # not in llama.cpp
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


def export_gguf(folder: str | Path, out: str | Path | None = None, dtype: str = "f16") -> Path:
    """Writes `out` (….gguf) from a run or checkpoint folder, and Ollama's Modelfile beside it;
    returns `out`.

    Args:
        out: default: <name>-<dtype>.gguf in the folder.
        dtype: of the matrices: "f32" (the same numbers), "f16", "bf16", or "q8_0" (8 bits and a
            scale for each 32 numbers). Norms stay f32.

    Raises:
        ImportError: pip install gguf.  FileNotFoundError: no checkpoint there.
        ValueError: a dtype, width or tokenizer that llama.cpp does not have.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    import gguf

    out = Path(out or Path(folder) / f"{Path(folder).name}-{dtype}.gguf")
    folder = model_folder(folder)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, str(folder))
    model = Transformer.from_pretrained(folder)
    c = model.config
    check_size(tokenizer, c.vocab_size, folder)
    if dtype == "q8_0" and any(n % 32 for n in (c.dim, c.hidden_dim, c.n_heads * c.head_dim)):
        raise ValueError("q8_0 needs widths that are multiples of 32: take f16.")
    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_name(f"tinyllm {folder.name}")
        writer.add_string("tinyllm.weights", weights_fingerprint(folder))
        writer.add_file_type(getattr(gguf.LlamaFileType, DTYPES[dtype]))
        _add_model(writer, model)
        _add_tokenizer(writer, tokenizer, c.vocab_size, gguf.TokenType)
        for name, tensor in gguf_tensors(model).items():
            kind = gguf.GGMLQuantizationType[dtype.upper() if tensor.dim() == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    _write_modelfile(out, c.max_seq_len, tokenizer)
    return out


def gguf_tensors(model: Transformer) -> dict[str, Tensor]:
    """The tensors under llama.cpp's names, fp32, queries and keys in adjacent pairs; a tied head
    has no entry of its own.
    """
    import gguf

    c = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.n_layers)
    tensors = {"rope_freqs.weight": 1 / rope_frequencies(c)[1]} if c.rope_scaling else {}
    heads = {"q_proj": c.n_heads, "k_proj": c.n_kv_heads}
    for name, weight in model.named_parameters():  # each once, under its first name
        n = heads.get(name.split(".")[-2])
        tensor = to_adjacent_pairs(weight.detach(), n) if n else weight.detach()
        tensors[f"{names.get_name(name.removesuffix('.weight'))}.weight"] = tensor
    return tensors


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Passes a tokenizer whose ids llama.cpp gives too; a ValueError, beginning with `where`, tells
    all that a GGUF file cannot say.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model, before, added = spec["model"], spec["pre_tokenizer"] or {}, spec["added_tokens"]
    greedy = ("lstrip", "rstrip", "single_word")
    plain_text = [t["content"] for t in added if not t["special"] or any(t[k] for k in greedy)]
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    byte_level = before.get("type") == "ByteLevel" and not before["add_prefix_space"]
    plain = byte_level and before.get("use_regex", True)
    found = {
        "a normalizer": spec["normalizer"] and spec["normalizer"]["type"],
        "another pre-tokenizer than ByteLevel with its own pattern": not plain and str(before),
        "BPE with": [name for name in SWITCHES if model.get(name)],
        "added tokens that are not special, or swallow spaces beside them": plain_text,
        "tokens put around every text": tokenizer("a")["input_ids"] != alone,
    }
    if problems := [f"{name} ({value})" for name, value in found.items() if value]:
        raise ValueError(
            f"{where}: llama.cpp would give other ids than this tokenizer, it has"
            f" {', '.join(problems)}. train_tokenizer(…, nfkc=False) makes one that fits."
        )


def _add_model(writer, model: Transformer) -> None:
    c = model.config
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
    writer.add_tokenizer_pre("gpt-2")  # the name of ByteLevel's own pattern
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


def _write_modelfile(gguf: Path, context: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """ChatML, what stops, the context; a Modelfile that says something else stays."""
    path = gguf.with_suffix(".Modelfile")
    stops = tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))
    text = MODELFILE.format(
        file=gguf.name,
        name=path.name,
        context=context,
        system=SYSTEM_PROMPT,
        stops="\n".join(f"PARAMETER stop {token}" for token in stops),
    )
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8", errors="replace") != text:
        print(f"{path} was edited: it stays. (Move it away for a new one.)", flush=True)
