"""How three families of programs lay out the same Llama: names of matrices, order of rotary rows.

transformers, and so this library, rotates number i of a head with number i + d/2 (half-split). The
old scripts, named as in llama2.c, and llama.cpp rotate adjacent pairs (0, 1), (2, 3), …. The model
is the same: rows of the query and key matrices change places, and no number changes.
"""

from torch import Tensor

LAYER = {  # ours and transformers': the old scripts', llama.cpp's
    "input_layernorm": ("attention_norm", "attn_norm"),
    "self_attn.q_proj": ("attention.wq", "attn_q"),
    "self_attn.k_proj": ("attention.wk", "attn_k"),
    "self_attn.v_proj": ("attention.wv", "attn_v"),
    "self_attn.o_proj": ("attention.wo", "attn_output"),
    "post_attention_layernorm": ("ffn_norm", "ffn_norm"),
    "mlp.gate_proj": ("feed_forward.w1", "ffn_gate"),
    "mlp.up_proj": ("feed_forward.w3", "ffn_up"),
    "mlp.down_proj": ("feed_forward.w2", "ffn_down"),
}
IN_LAYER = {old: ours for ours, (old, _) in LAYER.items()}
OUTSIDE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def to_half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a query or key matrix (n_heads * d, dim) from adjacent pairs to half-split: in each
    head row 2i goes to i, row 2i+1 to i + d/2.
    """
    return weight.view(n_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def to_adjacent_pairs(weight: Tensor, n_heads: int) -> Tensor:
    """The way back: rows from half-split to adjacent pairs."""
    return weight.view(n_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
