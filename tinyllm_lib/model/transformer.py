"""The model: a LLaMA-2-shaped decoder that a student reads in one sitting.

ids (B, T) -> embedding -> n_layers x [x + attention(norm(x)); x + swiglu(norm(x))] -> norm ->
logits (B, T, V)

Shapes in comments: B batch, T positions, S keys (cached + new), D dim, H heads, K key/value heads,
d numbers a head, V vocab. Parameter names are those of transformers' `LlamaForCausalLM`, so that a
saved folder is an ordinary Hugging Face model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)  # what a `config.json` must say
WEIGHTS, INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
)  # one file, or the list of several


@dataclass(frozen=True)
class Llama3Rope:
    """How Llama 3.1 and 3.2 reach further than they were pretrained: pairs that turn slowly are
    slowed by `factor`.

    Pairs that turn more than `high_freq_factor` times within the original context stay, those that
    turn less than `low_freq_factor` times are slowed, and between the two the one passes into the
    other.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of the model. `dim=1024, n_layers=18` is the 215M model.

    `hidden_dim` is the width of the SwiGLU: two thirds of 4*dim, rounded up to a multiple of 64,
    unless it is given. `head_dim` is dim/n_heads, unless it is given. (`dataclasses.replace` keeps
    both; 0 has them worked out anew.)
    """

    dim: int = 1024
    n_layers: int = 18
    n_heads: int = 16
    n_kv_heads: int = 8
    vocab_size: int = 6144
    max_seq_len: int = 512
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    tie_embeddings: bool = True
    hidden_dim: int = 0
    head_dim: int = 0
    rope_scaling: Llama3Rope | None = None

    def __post_init__(self) -> None:
        if not self.head_dim and self.dim % self.n_heads:
            raise ValueError(
                f"dim={self.dim} is not a multiple of n_heads={self.n_heads}: choose dim = heads x"
                " head size."
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}."
            )
        object.__setattr__(self, "head_dim", self.head_dim or self.dim // self.n_heads)
        object.__setattr__(
            self, "hidden_dim", self.hidden_dim or 64 * math.ceil((8 * self.dim // 3) / 64)
        )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd: RoPE turns pairs of numbers, so it must be even."
            )

    def to_hf(self, token_ids: Mapping[str, int | None] | None = None) -> dict:
        """The `config.json` that transformers reads.

        Args:
            token_ids: bos_token_id, eos_token_id and pad_token_id, which are the tokenizer's
                (`tokenizer.token_ids`); without them the file says that none are known.
        """
        rope = (
            {"rope_type": "llama3", **asdict(self.rope_scaling)}
            if self.rope_scaling
            else {"rope_type": "default"}
        )
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_seq_len,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {
                **rope,
                "rope_theta": self.rope_base,
            },  # for transformers 5; 4 reads the two below
            "rope_theta": self.rope_base,
            **({"rope_scaling": rope} if self.rope_scaling else {}),
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "dtype": "float32",
            **(token_ids or dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))),
        }

    @classmethod
    def from_hf(cls, hf: dict, where: str = "config.json") -> ModelConfig:
        """Reads a Llama `config.json`; refuses by name what this model does not have. What it
        leaves out is as transformers has it.

        Raises:
            ValueError: another architecture, biases, rope scaling, activation or quantized weights,
                or a size that is missing.
        """
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        scaling = (
            {f.name: rope.get(f.name) for f in fields(Llama3Rope)} if kind == "llama3" else None
        )
        refused = [
            *(
                (not isinstance(hf.get(name), int), f"{name} {hf.get(name)!r}, no whole number")
                for name in SIZES
            ),
            (
                hf.get("model_type") != "llama",
                f"model_type {hf.get('model_type')!r} (only 'llama')",
            ),
            (hf.get("attention_bias") or hf.get("mlp_bias"), "biases in attention or MLP"),
            (
                hf.get("hidden_act", "silu") != "silu",
                f"activation {hf.get('hidden_act')!r} (only 'silu')",
            ),
            (kind not in ("default", "llama3"), f"rope scaling {rope} (only 'llama3')"),
            (
                scaling and None in scaling.values(),
                f"rope scaling {rope}, which lacks one of {', '.join(scaling or ())}",
            ),
            (hf.get("quantization_config"), "quantized weights (only fp32, fp16 and bf16)"),
        ]
        if reasons := [text for bad, text in refused if bad]:
            raise ValueError(f"{where}: cannot be loaded into Transformer: {'; '.join(reasons)}.")
        try:
            return cls(
                dim=hf["hidden_size"],
                n_layers=hf["num_hidden_layers"],
                n_heads=hf["num_attention_heads"],
                n_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
                vocab_size=hf["vocab_size"],
                max_seq_len=hf.get("max_position_embeddings", 2048),
                norm_eps=hf.get("rms_norm_eps", 1e-6),
                rope_base=hf.get("rope_theta") or rope.get("rope_theta") or 10000.0,
                tie_embeddings=hf.get("tie_word_embeddings", False),
                hidden_dim=hf["intermediate_size"],
                head_dim=hf.get("head_dim") or 0,
                rope_scaling=Llama3Rope(**scaling) if scaling else None,
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


class RMSNorm(nn.Module):
    """Divides each vector by its root mean square, then scales each coordinate (Zhang & Sennrich
    2019).
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """(head_dim/2,) how far each pair turns from one position to the next, base^(-2i/d), and
    `Llama3Rope`'s share of that.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_base**exponents
    if (scaling := config.rope_scaling) is None:
        return frequencies, torch.ones_like(frequencies)
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    ).clamp(0, 1)
    return frequencies, kept + (1 - kept) / scaling.factor


def rope_angles(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cos and sin of position x frequency, each (max_seq_len, head_dim/2)."""
    frequencies, share = rope_frequencies(config)
    angles = torch.outer(torch.arange(config.max_seq_len).float(), frequencies * share)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates coordinate pairs (i, i + d/2) of x (B, T, H, d) by the angles cos, sin (B or 1, T, 1,
    d/2): RoPE, half-split.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class KVCache:
    """Keys and values of the positions seen so far, (layers, B, K, capacity, d), written in place."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int | None = None,
        *,
        device=None,
        dtype=None,
    ):
        self.capacity = capacity or config.max_seq_len
        shape = (config.n_layers, batch_size, config.n_kv_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.slot: Tensor | None = (
            None  # (1,) place of the next position; set: shapes stay the same from step to step
        )

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v (B, K, T, d) behind the `length` cached positions; returns all (B, K, S, d),
        with `slot` the whole capacity.
        """
        if self.slot is not None:
            return self.keys[layer].index_copy_(2, self.slot, k), self.values[layer].index_copy_(
                2, self.slot, v
            )
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key/value heads, H/K queries to each."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(q_dim, config.dim, bias=False)

    def queries_keys_values(
        self, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X (B, T, D) -> rotated q (B, H, T, d), rotated k and plain v (B, K, T, d)."""
        B, T, _ = x.shape
        q, k, v = (
            proj(x).view(B, T, -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return (
            apply_rope(q, cos, sin).transpose(1, 2),
            apply_rope(k, cos, sin).transpose(1, 2),
            v.transpose(1, 2),
        )

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.queries_keys_values(x, cos, sin)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, d)
        if T == 1:  # the H/K queries that share a key head go through it together,
            q = q.reshape(B, k.shape[1], -1, self.head_dim)  # (B, K, H/K, d): each key is read once
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask
            )  # a single position sees every key
            return self.o_proj(out.reshape(B, T, -1))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
        )  # (B, H, T, d)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): one half decides how much of the other passes (Shazeer 2020)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each position
    alone.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and the last norm (transformers calls this part `model`)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)


class Transformer(nn.Module):
    """The language model.

    Weights start at std 0.02; the two projections that write into the residual stream (`o_proj`,
    `down_proj`) start at 0.02/sqrt(2*layers), so that the sum of all layers has the same size
    whatever the depth (GPT-2).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos, sin = rope_angles(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layers) if residual else 0.02)

    def hidden_states(
        self,
        ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads: (B, T, D) after the last norm. Arguments as in `forward`."""
        B, T = ids.shape
        past = kv_cache.length if kv_cache is not None else 0
        self._check_input(ids, past, kv_cache)
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=ids.device)[None]  # (1, T)
        x = self.model.embed_tokens(ids)  # (B, T, D)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos = self.rope_cos[position_ids][:, :, None].to(x.dtype)  # (B or 1, T, 1, d/2)
        sin = self.rope_sin[position_ids][:, :, None].to(x.dtype)
        static = (
            kv_cache is not None and kv_cache.slot is not None
        )  # then key_mask (B, capacity) says it all
        mask = (
            key_mask[:, None, None]
            if static
            else attention_mask(T, past, document_ids, key_mask, ids.device)
        )
        for i, block in enumerate(self.model.layers):
            x = block(x, cos, sin, mask, kv_cache, i)
        if kv_cache is not None:
            kv_cache.length += T
        return self.model.norm(x)

    def forward(
        self,
        ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """Next-token logits.

        Args:
            ids: (B, T) int64 token ids.
            position_ids: (B, T); default: counted from the cache's length.
            document_ids: (B, T); positions attend only within their own document (packed batches).
            key_mask: (B, S) True where a key is a real token, False where it is (left) padding.
            kv_cache: read and extended in place.

        Returns:
            (B, T, V) logits.

        Raises:
            ValueError: more positions than the context holds, or an id outside the vocabulary.
        """
        x = self.hidden_states(
            ids,
            position_ids=position_ids,
            document_ids=document_ids,
            key_mask=key_mask,
            kv_cache=kv_cache,
        )
        return self.lm_head(x)

    def nats(
        self,
        ids: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Weighted sum of the cross-entropy: sum over positions of weights * -log p(target), a
        scalar in nats.

        Args:
            ids, targets: (B, T); weights: (B, T) float, 0 where nothing is learned, e.g. loss_mask
            / supervised_tokens.
        """
        return self.head_nats(
            self.hidden_states(ids, position_ids=position_ids, document_ids=document_ids),
            targets,
            weights,
        )

    @torch.compiler.disable  # HeadLoss is fused by hand already
    def head_nats(self, x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """`nats` from hidden states x (B, T, D) on."""
        x, targets, weights = x.flatten(0, 1), targets.flatten(), weights.flatten()
        if x.device.type == "cpu":  # unsupervised positions need no logits; free to select on a CPU
            kept = weights.nonzero().squeeze(1)
            x, targets, weights = x[kept], targets[kept], weights[kept]
        return HeadLoss.apply(x, self.lm_head.weight, targets, weights)

    def attention_maps(self, ids: Tensor) -> Tensor:
        """Attention weights (layers, B, H, T, T) of `ids`, each row summing to 1: what SDPA
        computes but does not show.
        """
        B, T = ids.shape
        cos, sin = self.rope_cos[None, :T, None], self.rope_sin[None, :T, None]
        future = torch.ones(T, T, dtype=torch.bool, device=ids.device).triu(1)
        x, maps = self.model.embed_tokens(ids), []
        for i, block in enumerate(self.model.layers):
            q, k, _ = block.self_attn.queries_keys_values(block.input_layernorm(x), cos, sin)
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, T, d)
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(self.config.head_dim)
            maps.append(scores.masked_fill(future, -torch.inf).softmax(-1))
            x = block(x, cos, sin, None, None, i)
        return torch.stack(maps)

    def num_parameters(self) -> int:
        """Learned numbers, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int | None = None) -> int:
        """Training FLOPs (forward + backward) of one token: 6 per weight that multiplies, 12*T*H*d
        per layer of attention.
        """
        c = self.config
        matrices = sum(
            p.numel()
            for n, p in self.named_parameters()
            if p.dim() == 2 and "embed_tokens" not in n
        )
        head = c.vocab_size * c.dim if c.tie_embeddings else 0
        return 6 * (matrices + head) + 12 * c.n_layers * c.n_heads * c.head_dim * (
            context or c.max_seq_len
        )

    def save_pretrained(
        self, folder: str | Path, token_ids: Mapping[str, int | None] | None = None
    ) -> None:
        """Writes `config.json` and `model.safetensors` as transformers expects them; `token_ids` as
        in `ModelConfig.to_hf`.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in self.state_dict().items()
        }
        if self.config.tie_embeddings:
            del state["lm_head.weight"]
        (folder / "config.json").write_text(
            json.dumps(self.config.to_hf(token_ids), indent=2) + "\n", encoding="utf-8"
        )
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(
            folder / "config.json", folder / WEIGHTS
        )  # safetensors makes files that only their owner may read

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device=None) -> Transformer:
        """Loads a Llama folder of Hugging Face's; every tensor must be there with the right shape,
        and none left over.

        Raises:
            FileNotFoundError: no config.json or no weights.  ValueError: another architecture, or
                tensors that do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        files = weight_files(folder)
        for name in ("config.json", *(files or [WEIGHTS])):
            if not (folder / name).is_file():
                found = ", ".join(sorted(p.name for p in folder.glob("*"))[:9]) or "nothing"
                raise FileNotFoundError(
                    f"{folder} is not a model folder: it has no {name} (found: {found}). Expected a"
                    " step folder such as runs/<name>/checkpoints/step_000500, or a Hugging Face"
                    " Llama folder with safetensors."
                )
        try:
            hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{folder / 'config.json'} is damaged ({error}): use an earlier checkpoint."
            ) from error
        config = ModelConfig.from_hf(hf, str(folder / "config.json"))
        state: dict[str, Tensor] = {}
        for name in files:
            try:
                state |= load_file(folder / name)
            except SafetensorError as error:
                raise ValueError(
                    f"{folder / name} is damaged ({error}): use an earlier checkpoint."
                ) from error
        with torch.device("meta"):
            model = cls(config)
        wanted = {
            n: t.shape
            for n, t in model.state_dict().items()
            if not (config.tie_embeddings and n == "lm_head.weight")
        }
        if config.tie_embeddings:
            state.pop("lm_head.weight", None)
        found = {n: t.shape for n, t in state.items()}
        if wanted != found:
            odd = [n for n in (*wanted, *found) if wanted.get(n) != found.get(n)]
            first = odd[0]
            raise ValueError(
                f"{folder}: {len(set(odd))} tensors do not fit config.json; first: {first},"
                f" expected {wanted.get(first, 'nothing')}, found {found.get(first, 'nothing')}."
            )
        # Copied: what `load_file` gives is a mapping of the file, which a trainer may remove or
        # rewrite meanwhile.
        state = {n: t.to(torch.float32, copy=True) for n, t in state.items()}
        model.load_state_dict(state, strict=not config.tie_embeddings, assign=True)
        if config.tie_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        model.rope_cos, model.rope_sin = rope_angles(config)
        for p in model.parameters():
            p.requires_grad_(True)
        return model.to(device) if device is not None else model

    def _check_input(self, ids: Tensor, past: int, cache: KVCache | None) -> None:
        limit = (
            min(self.config.max_seq_len, cache.capacity)
            if cache is not None
            else self.config.max_seq_len
        )
        if past + ids.shape[1] > limit:
            raise ValueError(
                f"{past + ids.shape[1]} positions do not fit the context of {limit}: "
                "shorten the input, or cut old tokens from its front."
            )
        if torch.compiler.is_compiling() or ids.device.type != "cpu" or not ids.numel():
            return  # reading an id would stop GPU or compiler
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise ValueError(
                f"token ids run from {int(ids.min())} to {int(ids.max())}, the model knows 0 to "
                f"{self.config.vocab_size - 1}: was the text encoded with another tokenizer?"
            )


def weight_files(folder: str | Path) -> list[str]:
    """The names of a model folder's files of weights: one, or those its index lists; empty if it
    holds no model.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        return sorted(
            set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error!r}): fetch it again.") from error


def attention_mask(
    T: int, past: int, document_ids: Tensor | None, key_mask: Tensor | None, device
) -> Tensor | None:
    """Which keys each of T new queries may see, (B, 1, T, S) bool, or None where plain causality
    says it all.
    """
    if document_ids is None and key_mask is None and (past == 0 or T == 1):
        return None
    queries, keys = (
        torch.arange(past, past + T, device=device),
        torch.arange(past + T, device=device),
    )
    mask = (keys[None] <= queries[:, None])[None, None]  # (1, 1, T, S)
    if document_ids is not None:
        mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if key_mask is not None:
        itself = keys[None] == queries[:, None]  # a padding query must see something
        mask = mask & (key_mask[:, None, None, :].bool() | itself)
    return mask


class HeadLoss(torch.autograd.Function):
    """Head and cross-entropy in one, a chunk of rows at a time: the (N, V) logits never exist at
    once.

    The gradient of softmax cross-entropy is `softmax - onehot`, known as soon as the loss is, so
    each chunk's logits turn into their own gradient in place and are used up at once. Same result
    as `F.cross_entropy(x @ weight.T, targets, reduction="none") @ weights`, less memory traffic.
    """

    ROWS, ROWS_CPU = 512, 128  # on a CPU a chunk of logits should stay in the cache

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """X (N, D), weight (V, D), targets (N,), weights (N,) -> scalar, in fp32."""
        matrix = weight.to(x.dtype)
        total = torch.zeros((), device=x.device, dtype=torch.float32)
        need = any(ctx.needs_input_grad)
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        step = HeadLoss.ROWS if x.is_cuda else HeadLoss.ROWS_CPU
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            target, w = targets[rows, None], weights[rows, None].float()
            log_p = (x[rows] @ matrix.T).float().log_softmax(-1)  # (rows, V)
            total -= (log_p.gather(1, target) * w).sum()
            if need:  # the weights multiply (rows, D), not the larger (rows, V)
                grad = log_p.exp_().scatter_add_(1, target, torch.full_like(w, -1.0)).to(x.dtype)
                dx[rows] = (grad @ matrix) * w.to(x.dtype)
                dweight += grad.T @ (x[rows] * w.to(x.dtype))
        ctx.save_for_backward(dx, dweight)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        dx, dweight = ctx.saved_tensors
        return dx * grad.to(dx.dtype), dweight * grad.to(dweight.dtype), None, None
