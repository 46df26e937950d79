"""Old checkpoints in: a `.pth` state dict with llama2.c's names -> a checkpoint folder.
transformers, and so this library, rotates number i of a head with number i + d/2 (half-split), old
scripts and llama.cpp adjacent pairs (0, 1), (2, 3), …: rows of q and k change places.
"""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from tinyllm_lib.data import atomic_path
from tinyllm_lib.model import ModelConfig, Transformer, seal, write_model
from tinyllm_lib.tokenizer import check_size, load_tokenizer

PREFIX = re.compile(r"^(?:_orig_mod\.|module\.)+")  # of torch.compile, DistributedDataParallel
OUTSIDE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}


def to_half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a query or key matrix (n_heads * d, dim) from adjacent pairs to half-split: in each
    head row 2i goes to i, row 2i+1 to i + d/2.
    """
    return weight.view(n_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def to_adjacent_pairs(weight: Tensor, n_heads: int) -> Tensor:
    """The way back: rows from half-split to adjacent pairs."""
    return weight.view(n_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def import_checkpoint(
    path: str | Path,
    tokenizer_dir: str | Path,
    out_dir: str | Path,
    n_heads: int = 16,
    n_kv_heads: int = 8,
    *,
    max_seq_len: int = 512,
) -> Path:
    """Writes a checkpoint folder from an old `.pth` state dict and its tokenizer, and returns it.

    Width, depth and vocabulary are read off the shapes; head counts and context cannot be. eps is
    1e-5 and RoPE's base 10000, as in all of these models. fp16 and bf16 become fp32, exactly.

    Args:
        path: names as in `OUTSIDE` and `IN_LAYER`, perhaps after `_orig_mod.` or `module.`; without
            `output.weight`, or with one equal to the embedding, the two are tied.
        out_dir: a new folder; `TextGenerator`, `TrainConfig.init_from` and transformers load it.

    Raises:
        OSError: no such file, or a damaged one; no tokenizer; `out_dir` is not empty.
        ValueError: code in it, a key missing or left over, a shape or tokenizer that does not fit.
    """
    path, out_dir = Path(path), Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(f"{out_dir} exists already: name a new folder, or remove that first.")
    old = read_state_dict(path)
    matrices = ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight")
    if missing := [name for name in matrices if name not in old or old[name].dim() != 2]:
        raise ValueError(f"{path.name} has no matrix {missing[0]}, but {', '.join(list(old)[:4])}.")
    (vocab_size, dim), (hidden_dim, _) = (old[name].shape for name in matrices)
    head = old.setdefault("output.weight", old["tok_embeddings.weight"])
    config = ModelConfig(
        dim=dim,
        n_layers=1 + max(int(name.split(".")[1]) for name in old if name.startswith("layers.")),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        tie_embeddings=torch.equal(head, old["tok_embeddings.weight"]),
        hidden_dim=hidden_dim,
    )
    tokenizer = load_tokenizer(tokenizer_dir)
    check_size(tokenizer, vocab_size, tokenizer_dir)
    if tokenizer.pad_token == "<|im_end|>":  # then other programs would never learn it
        tokenizer.pad_token = tokenizer.unk_token
    model = _filled(config, old, path.name)
    with atomic_path(out_dir) as temporary:
        write_model(temporary, model, tokenizer)
        seal(temporary, step=0)
    return out_dir


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file in fp32, prefixes taken off; nothing in it is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"would run {code[1]}" if code else "holds more than tensors"
        raise ValueError(
            f"{path.name} is refused: unpickling it {what}, and a file of weights has no need to"
            " run code. If you trust its maker, torch.save(model.state_dict(), 'weights.pth')."
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise OSError(f"{path.name} cannot be read as a .pth file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{path.name} is no state dict: torch.save(content['model'], …) saves it.")
    for name, tensor in content.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{path.name}: {name} is not floating point, or not finite.")
    tensors = {PREFIX.sub("", name): tensor.float() for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise ValueError(f"{path.name} holds a name twice, with and without a prefix.")
    return tensors


def _filled(config: ModelConfig, old: dict[str, Tensor], where: str) -> Transformer:
    """A model with the tensors of an old state dict; every key and shape must fit."""
    names = {f"{a}.weight": f"{b}.weight" for a, b in OUTSIDE.items()}
    for i in range(config.n_layers):
        for a, b in IN_LAYER.items():
            names[f"layers.{i}.{a}.weight"] = f"model.layers.{i}.{b}.weight"
    with torch.device("meta"):
        model = Transformer(config)
    try:
        model.load_state_dict({names.get(n, f"?{n}"): old[n] for n in old}, assign=True)
    except RuntimeError as error:
        advice = "Shapes cannot tell n_heads and n_kv_heads: pass those it was trained with."
        raise ValueError(f"{where} does not fit. {advice} {error}") from None
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    for name, weight in model.named_parameters():
        if n := heads.get(name.split(".")[-2]):
            weight.data = to_half_split(weight.data, n)
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model
