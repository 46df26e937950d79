"""Old checkpoints in: a `.pth` state dict of the earlier scripts -> an ordinary checkpoint folder.

The earlier scripts named their tensors as llama2.c does and rotated **adjacent** pairs of numbers,
(0, 1), (2, 3), … of each head. This library, as transformers does, rotates number i with number i +
d/2. Both are the same model: only the order of the rows of `wq` and `wk` differs, so importing
moves rows about and changes no number.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from tinyllm_lib.data import atomic_path
from tinyllm_lib.model import ModelConfig, Transformer, seal, write_model
from tinyllm_lib.tokenizer import check_size, load_tokenizer

PREFIX = re.compile(
    r"^(?:_orig_mod\.|module\.)+"
)  # left by torch.compile and by DistributedDataParallel
OUTSIDE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def to_half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a query or key matrix from adjacent pairs to half-split: in each head row 2i goes to
    i, row 2i+1 to i + d/2.

    Args:
        weight: (n_heads * d, dim), d even.
    """
    return weight.view(n_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def to_adjacent_pairs(weight: Tensor, n_heads: int) -> Tensor:
    """The way back: rows from half-split to adjacent pairs, which is also how llama.cpp rotates a
    Llama.
    """
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
    """Writes a checkpoint folder from an old `.pth` state dict and the tokenizer it was trained
    with.

    Width, depth and vocabulary are read off the shapes. What shapes cannot tell is asked for: the
    head counts and the context. RMSNorm's eps is 1e-5 and RoPE's base 10000, as all of these models
    had. fp16 and bf16 become fp32, exactly.

    Args:
        path: names as in `OUTSIDE` and `IN_LAYER`, with or without `_orig_mod.` and `module.`
            before them. `output.weight` may be missing or equal to the embedding (the two are tied)
            or be a matrix of its own.
        out_dir: a new folder; `TextGenerator`, `TrainConfig.init_from` and transformers load it.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such file, or no tokenizer.  FileExistsError: `out_dir` has something
            in it.
        ValueError: a file that wants to run code, a key missing or left over, a shape or a
            tokenizer that does not fit.
    """
    path, out_dir = Path(path), Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(
            f"{out_dir} exists already: name a new folder, or remove that one first."
        )
    old = read_state_dict(path)
    config = config_of(old, n_heads, n_kv_heads, max_seq_len, path.name)
    state = renamed(old, config, path.name)
    tokenizer = load_tokenizer(tokenizer_dir)
    check_size(tokenizer, config.vocab_size, tokenizer_dir)

    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if tokenizer.pad_token == "<|im_end|>":  # then other programs would never learn it
        tokenizer.pad_token = tokenizer.unk_token
    with atomic_path(out_dir) as temporary:
        write_model(temporary, model, tokenizer)
        seal(temporary, step=0)
    return out_dir


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, prefixes taken off; nothing in the file is executed.

    Raises:
        FileNotFoundError; ValueError: code in the file, a damaged file, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected the .pth file that the earlier training script wrote."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"would run {found[1]}" if found else "holds more than tensors"
        raise ValueError(
            f"{path.name} is refused: unpickling it {what}, and a file of weights has no need to"
            " run code. If you trust whoever made it, save the plain weights there:"
            " torch.save(model.state_dict(), 'weights.pth')."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path.name} cannot be read as a .pth file, it is damaged or something else: {error}"
        ) from error
    if (
        not isinstance(content, dict)
        or not all(isinstance(value, Tensor) for value in content.values())
        or not content
    ):
        found = (
            ", ".join(map(str, list(content)[:6]))
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise ValueError(
            f"{path.name} is no state dict (found: {found or 'nothing'}); expected names with"
            " tensors, tok_embeddings.weight first. Where the weights lie under a key of their"
            " own, save them alone: torch.save(torch.load(…)['model'], 'weights.pth')."
        )
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if (short := PREFIX.sub("", name)) in state:
            raise ValueError(
                f"{path.name} holds {short} twice, with and without a prefix: which of the two is"
                " meant?"
            )
        state[short] = tensor
    return state


def config_of(
    old: dict[str, Tensor], n_heads: int, n_kv_heads: int, max_seq_len: int, where: str
) -> ModelConfig:
    """The ModelConfig that fits the shapes of an old state dict; `where` begins error messages.

    Raises:
        ValueError: shapes that contradict each other or the head counts.
    """
    for name in (
        "tok_embeddings.weight",
        "layers.0.attention.wk.weight",
        "layers.0.feed_forward.w1.weight",
    ):
        if name not in old or old[name].dim() != 2:
            shape = (
                f"of shape {tuple(old[name].shape)}, expected a matrix"
                if name in old
                else "missing"
            )
            raise ValueError(
                f"{where}: {name} is {shape}. The names found begin with"
                f" {', '.join(list(old)[:4])}."
            )
    vocab_size, dim = old["tok_embeddings.weight"].shape
    kv_dim = old["layers.0.attention.wk.weight"].shape[0]
    n_layers = 1 + max(
        int(found[1]) for name in old if (found := re.match(r"layers\.(\d+)\.", name))
    )
    hidden_dim = old["layers.0.feed_forward.w1.weight"].shape[0]
    output = old.get("output.weight")
    tied = output is None or torch.equal(output, old["tok_embeddings.weight"])
    try:
        config = ModelConfig(
            dim,
            n_layers,
            n_heads,
            n_kv_heads,
            vocab_size,
            max_seq_len,
            tie_embeddings=tied,
            hidden_dim=hidden_dim,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if kv_dim != n_kv_heads * config.head_dim:
        fits = kv_dim / config.head_dim
        hint = (
            f"with {n_heads} heads it has {fits:.0f} key/value heads"
            if fits.is_integer()
            else "neither head count may be right"
        )
        raise ValueError(
            f"{where}: attention.wk has {kv_dim} rows, but {n_kv_heads} key/value heads of"
            f" {dim}/{n_heads} = {config.head_dim} numbers make {n_kv_heads * config.head_dim}:"
            f" {hint}. Shapes cannot tell the head count; pass n_heads and n_kv_heads as the model"
            " was trained."
        )
    return config


def renamed(old: dict[str, Tensor], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """Old names and row order -> the names and rows of `Transformer`, in fp32, every key and shape
    checked.

    Raises:
        ValueError: a key missing, left over, of another shape or of another kind; all of a sort are
            counted, the first is named.
    """
    names = {f"{a}.weight": f"{b}.weight" for a, b in OUTSIDE.items()}
    for i in range(config.n_layers):
        names |= {
            f"layers.{i}.{a}.weight": f"model.layers.{i}.{b}.weight" for a, b in IN_LAYER.items()
        }
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    optional = {"output.weight"} if config.tie_embeddings else set()
    problems = [
        ("missing", [n for n in names if n not in old and n not in optional]),
        ("left over", [n for n in old if n not in names]),
        ("of another shape", [f"{n} {tuple(t.shape)} instead of {tuple(wanted[names[n]])}" for n, t in old.items()
                              if n in names and t.shape != wanted[names[n]]]),
        ("not floating point", [f"{n} ({t.dtype})" for n, t in old.items() if not t.is_floating_point()]),
        ("not finite", [n for n, t in old.items() if t.is_floating_point() and not t.isfinite().all()]),
    ]  # fmt: skip
    if found := [f"{len(keys)} {what}, first {keys[0]}" for what, keys in problems if keys]:
        raise ValueError(
            f"{where} is not a model of {config.n_layers} layers and width {config.dim}:"
            f" {'; '.join(found)}."
        )
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}
    state = {}
    for name, tensor in old.items():
        tensor, matrix = tensor.float(), name.split(".")[-2]
        state[names[name]] = to_half_split(tensor, heads[matrix]) if matrix in heads else tensor
    state["lm_head.weight"] = (
        state["model.embed_tokens.weight"] if config.tie_embeddings else state["lm_head.weight"]
    )
    return state
