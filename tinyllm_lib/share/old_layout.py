"""Old checkpoints in: a `.pth` state dict of the earlier scripts -> a checkpoint folder."""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from tinyllm_lib.data import atomic_path
from tinyllm_lib.model import ModelConfig, Transformer, seal, write_model
from tinyllm_lib.share.layouts import IN_LAYER, OUTSIDE, to_half_split
from tinyllm_lib.tokenizer import check_size, load_tokenizer

PREFIX = re.compile(r"^(?:_orig_mod\.|module\.)+")  # of torch.compile, DistributedDataParallel


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
        FileNotFoundError: no such file, or no tokenizer.  FileExistsError: `out_dir` is not empty.
        ValueError: code in the file, a key missing or left over, a shape or tokenizer that does
            not fit.
    """
    path, out_dir = Path(path), Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(f"{out_dir} exists already: name a new folder, or remove that first.")
    old = read_state_dict(path)
    config = _config(old, n_heads, n_kv_heads, max_seq_len, path.name)
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(_renamed(old, model, path.name), assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    tokenizer = load_tokenizer(tokenizer_dir)
    check_size(tokenizer, config.vocab_size, tokenizer_dir)
    if tokenizer.pad_token == "<|im_end|>":  # then other programs would never learn it
        tokenizer.pad_token = tokenizer.unk_token
    with atomic_path(out_dir) as temporary:
        write_model(temporary, model, tokenizer)
        seal(temporary, step=0)
    return out_dir


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, prefixes taken off; nothing in the file is executed."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the .pth file of an old script.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"would run {code[1]}" if code else "holds more than tensors"
        raise ValueError(
            f"{path.name} is refused: unpickling it {what}, and a file of weights has no need to"
            " run code. If you trust whoever made it, save the plain weights there:"
            " torch.save(model.state_dict(), 'weights.pth')."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read as a .pth file: {error}") from error
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        found = ", ".join(map(str, list(tensors)[:6])) or type(content).__name__
        raise ValueError(
            f"{path.name} is no state dict (found: {found}), names with tensors. Where the weights"
            " lie under a key, save them alone: torch.save(torch.load(…)['model'], 'weights.pth')."
        )
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (short := PREFIX.sub("", name)) in state:
            raise ValueError(f"{path.name} holds {short} twice, with and without a prefix.")
        state[short] = tensor
    return state


def _config(
    old: dict[str, Tensor], n_heads: int, n_kv_heads: int, max_seq_len: int, where: str
) -> ModelConfig:
    """What the shapes of an old state dict say; `where` begins error messages."""
    shapes = []
    for name in ("tok_embeddings", "layers.0.feed_forward.w1", "layers.0.attention.wk"):
        tensor = old.get(f"{name}.weight")
        if tensor is None or tensor.dim() != 2:
            what = "missing" if tensor is None else f"no matrix, but of shape {tuple(tensor.shape)}"
            names = ", ".join(list(old)[:4])
            raise ValueError(f"{where}: {name}.weight is {what}. The names begin with {names}.")
        shapes.append(tensor.shape)
    (vocab_size, dim), (hidden_dim, _), (kv_dim, _) = shapes
    layers = [int(found[1]) for name in old if (found := re.match(r"layers\.(\d+)\.", name))]
    head = old.get("output.weight")
    try:
        config = ModelConfig(
            dim=dim,
            n_layers=1 + max(layers),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            tie_embeddings=head is None or torch.equal(head, old["tok_embeddings.weight"]),
            hidden_dim=hidden_dim,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if kv_dim != n_kv_heads * config.head_dim:
        raise ValueError(
            f"{where}: attention.wk has {kv_dim} rows: with {n_heads} heads it has"
            f" {kv_dim / config.head_dim:g} key/value heads, not {n_kv_heads}. Shapes cannot tell"
            " the head count; pass n_heads and n_kv_heads as the model was trained."
        )
    return config


def _renamed(old: dict[str, Tensor], model: Transformer, where: str) -> dict[str, Tensor]:
    """The names and rows of `model`, in fp32, every key and shape checked."""
    c = model.config
    names = {f"{a}.weight": f"{b}.weight" for a, b in OUTSIDE.items()}
    for i in range(c.n_layers):
        for a, b in IN_LAYER.items():
            names[f"layers.{i}.{a}.weight"] = f"model.layers.{i}.{b}.weight"
    expected = model.state_dict()
    wanted = {name: expected[ours].shape for name, ours in names.items()}
    optional = {"output.weight"} if c.tie_embeddings else set()
    floats = {n: t for n, t in old.items() if t.is_floating_point()}
    problems = {
        "missing": [n for n in names if n not in old and n not in optional],
        "left over": [n for n in old if n not in names],
        "of another shape": [
            f"{n} {tuple(t.shape)} instead of {tuple(wanted[n])}"
            for n, t in old.items()
            if n in wanted and t.shape != wanted[n]
        ],
        "not floating point": [n for n in old if n not in floats],
        "not finite": [n for n, t in floats.items() if not t.isfinite().all()],
    }
    if found := [f"{len(of)} {what}, first {of[0]}" for what, of in problems.items() if of]:
        size = f"{c.n_layers} layers and width {c.dim}"
        raise ValueError(f"{where} is not a model of {size}: {'; '.join(found)}.")
    heads = {"wq": c.n_heads, "wk": c.n_kv_heads}
    state = {}
    for name, tensor in old.items():
        rows, matrix = tensor.float(), name.split(".")[-2]
        state[names[name]] = to_half_split(rows, heads[matrix]) if matrix in heads else rows
    if c.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state
