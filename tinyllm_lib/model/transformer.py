"""The model, LLaMA-2-shaped: ids (B, T) -> embedding -> n_layers x [x + attention(norm(x));
x + swiglu(norm(x))] -> norm -> logits (B, T, V). A saved folder is an ordinary Hugging Face Llama.
"""

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.types import Device

from tinyllm_lib.data import read_json, write_json
from tinyllm_lib.model.config import ModelConfig, TokenIds
from tinyllm_lib.model.layers import Block, HeadLoss, KVCache, RMSNorm, rope_angles
from tinyllm_lib.model.masks import attention_mask

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # lists the parts of weights in several files


class Decoder(nn.Module):
    """Embedding, blocks and the last norm (transformers calls this part `model`)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)


class Transformer(nn.Module):
    """The language model. Weights start at std 0.02, those that write into the residual stream
    (`o_proj`, `down_proj`) at 0.02/sqrt(2*layers), so that the sum of all layers has the same size
    whatever the depth (GPT-2).
    """

    rope_cos: Tensor  # (max_seq_len, d/2)
    rope_sin: Tensor

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
        document_starts: Tensor | None = None,
        key_mask: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads, (B, T, D) after the last norm, of token ids (B, T).

        Args:
            position_ids: (B, T); default: counted from the cache's length.
            document_ids: (B, T); positions attend only within their own document (packed rows).
            document_starts: the same from `document_starts`, where `flash_works`.
            key_mask: (B, S) True where a key is a real token, False where it is (left) padding.
            kv_cache: read and extended in place.
        """
        T, past, limit = ids.shape[1], 0, self.config.max_seq_len
        if kv_cache is not None:
            past, limit = kv_cache.length, min(limit, kv_cache.capacity)
        self._check_input(ids, past + T, limit)
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=ids.device)[None]  # (1, T)
        x = self.model.embed_tokens(ids)  # (B, T, D)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos = self.rope_cos[position_ids][:, :, None].to(x.dtype)  # (B or 1, T, 1, d/2)
        sin = self.rope_sin[position_ids][:, :, None].to(x.dtype)
        if (mask := document_starts) is None:
            mask = attention_mask(T, past, document_ids, key_mask, ids.device)
        if mask is not None and mask.dtype == torch.bool:  # else made in each layer
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, -math.inf)
        for i, block in enumerate(self.model.layers):
            cache = kv_cache and partial(kv_cache.append, i)
            x = block(x, cos, sin, mask=mask, cache=cache)
        if kv_cache is not None:
            kv_cache.length += T
        return self.model.norm(x)

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        """Next-token logits (B, T, V) of ids (B, T); options as in `hidden_states`."""
        return self.lm_head(self.hidden_states(ids, **options))

    def weighted_nll(self, ids: Tensor, targets: Tensor, weights: Tensor, **options: Any) -> Tensor:
        """Sum over positions of weights * -log p(target), in nats; all of them (B, T).

        Weights are 0 where nothing is learned: loss_mask / supervised_tokens, say.
        """
        return self.head_nll(self.hidden_states(ids, **options), targets, weights)

    @torch.compiler.disable  # HeadLoss is fused by hand already
    def head_nll(self, x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """`weighted_nll` from hidden states x (B, T, D) on."""
        x, targets, weights = x.flatten(0, 1), targets.flatten(), weights.flatten()
        if x.device.type == "cpu":  # unsupervised positions need no logits; free to select on a CPU
            kept = weights.nonzero().squeeze(1)
            x, targets, weights = x[kept], targets[kept], weights[kept]
        weight = self.lm_head.weight if torch.is_grad_enabled() else self.lm_head.weight.detach()
        return HeadLoss.apply(x, weight, targets, weights)

    def num_parameters(self) -> int:
        """Learned numbers, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int | None = None) -> int:
        """Training FLOPs of one token: 6 per weight that multiplies, 12*T*H*d per layer."""
        c = self.config
        weights = sum(p.numel() for p in self.model.layers.parameters() if p.dim() == 2)
        attention = c.n_layers * c.n_heads * c.head_dim * (context or c.max_seq_len)
        return 6 * (weights + self.lm_head.weight.numel()) + 12 * attention

    def save_pretrained(self, folder: str | Path, token_ids: TokenIds | None = None) -> None:
        """Writes `config.json` and `model.safetensors`; `token_ids` as in `ModelConfig.to_hf`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: t.detach().float().cpu().contiguous() for n, t in self.state_dict().items()}
        if self.config.tie_embeddings:
            del state["lm_head.weight"]
        write_json(folder / "config.json", self.config.to_hf(token_ids))
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / WEIGHTS)  # it is for its owner alone

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Device = None) -> Self:
        """Loads any Llama folder of Hugging Face's, as fp32. FileNotFoundError: a file is missing;
        ValueError: one is damaged, of another architecture, or holds tensors that do not fit.
        """
        folder = Path(folder)
        hf = read_json(folder / "config.json")
        with torch.device("meta"):
            model = cls(ModelConfig.from_hf(hf, str(folder / "config.json")))
        state: dict[str, Any] = {}
        for name in weight_files(folder) or [WEIGHTS]:
            try:
                state |= load_file(folder / name)
            except SafetensorError as error:
                raise ValueError(f"{folder / name} is damaged: {error}.") from error
        # Copied: what `load_file` gives is a mapping of the file, which a trainer may rewrite.
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
        if model.config.tie_embeddings:  # one matrix, in the file under the name of the embedding
            state["lm_head.weight"] = state.get("model.embed_tokens.weight")
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{folder}: {error}"[:1000]) from None
        if model.config.tie_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        model.rope_cos, model.rope_sin = rope_angles(model.config)
        return model.to(device)

    def _check_input(self, ids: Tensor, end: int, limit: int) -> None:
        if end > limit:
            advice = "shorten the input, or cut old tokens from its front"
            raise ValueError(f"{end} positions do not fit the context of {limit}: {advice}.")
        if torch.compiler.is_compiling() or ids.device.type != "cpu" or not ids.numel():
            return  # reading an id would stop GPU or compiler
        low, high, size = int(ids.min()), int(ids.max()), self.config.vocab_size
        if low < 0 or high >= size:
            problem = f"token ids run from {low} to {high}, the model knows 0 to {size - 1}"
            raise ValueError(f"{problem}: was the text encoded with another tokenizer?")


def weight_files(folder: str | Path) -> list[str]:
    """Names of a model folder's files of weights: one, or those its index lists, or none."""
    single, index = Path(folder) / WEIGHTS, Path(folder) / INDEX
    if single.is_file() or not index.is_file():
        return [WEIGHTS] if single.is_file() else []
    return sorted(set(read_json(index)["weight_map"].values()))
