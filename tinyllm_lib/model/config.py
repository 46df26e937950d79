"""The shape of the model, and the `config.json` in which Hugging Face keeps it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

HF_NAMES = {  # of our fields, in the order of the file
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
LLAMA3_ROPE = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
TokenIds = Mapping[str, int | None]  # of bos, eos and pad, None where there is no such token


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of the model; the defaults are the 215M model's.

    `hidden_dim`, the width of the SwiGLU, and `head_dim` are worked out where they are 0: two
    thirds of 4*dim, rounded up to a multiple of 64, and dim/n_heads. (`replace` keeps both.)
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
    rope_scaling: dict[str, Any] | None = None  # Llama 3's, as `rope_frequencies` reads it

    def __post_init__(self) -> None:
        if not self.head_dim and self.dim % self.n_heads:
            found = f"dim={self.dim} is not a multiple of n_heads={self.n_heads}"
            raise ValueError(f"{found}: choose dim = heads x head size.")
        if self.n_heads % (kv := self.n_kv_heads):
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={kv}.")
        head_dim = self.head_dim or self.dim // self.n_heads
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd: RoPE turns pairs, so it must be even.")
        object.__setattr__(self, "head_dim", head_dim)
        hidden_dim = self.hidden_dim or 64 * math.ceil((8 * self.dim // 3) / 64)
        object.__setattr__(self, "hidden_dim", hidden_dim)

    def to_hf(self, token_ids: TokenIds | None = None) -> dict[str, Any]:
        """The `config.json` that transformers reads; `token_ids` as the tokenizer has them."""
        scaling = self.rope_scaling
        rope = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            **{theirs: getattr(self, ours) for ours, theirs in HF_NAMES.items()},
            "rope_parameters": {**rope, "rope_theta": self.rope_base},  # for transformers 5
            "rope_theta": self.rope_base,  # 4 reads this and the next
            **({"rope_scaling": rope} if scaling else {}),
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "dtype": "float32",
            **(token_ids or dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))),
        }

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> Self:
        """Reads a Llama `config.json` as transformers does; a ValueError names what it lacks."""
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        scaling = {name: rope.get(name) for name in LLAMA3_ROPE if kind == "llama3"}
        given = {
            "num_key_value_heads": hf.get("num_attention_heads"),
            "head_dim": 0,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            **{name: value for name, value in hf.items() if value is not None},
        }
        missing = ", ".join(name for name in HF_NAMES.values() if given.get(name) is None)
        family, activation = hf.get("model_type"), given["hidden_act"]
        refused = {
            f"model_type {family!r} (only 'llama')": family != "llama",
            "biases in attention or MLP": hf.get("attention_bias") or hf.get("mlp_bias"),
            f"activation {activation!r} (only 'silu')": activation != "silu",
            f"rope scaling {rope} (only 'llama3')": kind not in ("default", "llama3"),
            f"rope scaling {rope}, which lacks one of {LLAMA3_ROPE}": None in scaling.values(),
            "quantized weights (only fp32, fp16 and bf16)": hf.get("quantization_config"),
            f"no {missing}": missing,
        }
        if reasons := [text for text, bad in refused.items() if bad]:
            raise ValueError(f"{where}: cannot be loaded into Transformer: {'; '.join(reasons)}.")
        return cls(
            **{ours: given[theirs] for ours, theirs in HF_NAMES.items()},
            rope_base=hf.get("rope_theta") or rope.get("rope_theta") or 10000.0,
            tie_embeddings=hf.get("tie_word_embeddings", False),
            rope_scaling=scaling or None,
        )
