"""Notebook 03: ids become token shards on disk, and those packed rows `(X, Y, loss_mask)`.

collate: stacks rows to a batch (B, context)
DataOrder: which rows make up a step
PackedDataset: token shards as rows of `context` positions
PackedRow: one row of a packed batch (or, stacked, the batch)
PretrainDataset: one text a sample, padded
read_manifest: the manifest of a finished folder of shards
SFTDataset: one dialogue a sample, padded
shards_fingerprint: what decides the tokens of a folder of shards, every shard of it, as 16
    hex digits
shift_and_pad: ids and mask of one sample -> X, Y, loss_mask, each int64 (max_length-1,),
    padded with `PAD_ID`, mask 0 there
write_pretrain_tokens: encodes documents on all cores and writes them, each followed by
    `<|im_end|>` (the eos token), as shards
write_sft_tokens: encodes dialogues with their loss masks on all cores and writes them as
    shards
BATCH_DOCUMENTS: how many documents are encoded at once
"""

from tinyllm_lib.dataset.datasets import (
    DataOrder,
    PackedDataset,
    PackedRow,
    PretrainDataset,
    SFTDataset,
    collate,
    shift_and_pad,
)
from tinyllm_lib.dataset.tokens import (
    BATCH_DOCUMENTS,
    read_manifest,
    shards_fingerprint,
    write_pretrain_tokens,
    write_sft_tokens,
)

__all__ = [
    "BATCH_DOCUMENTS",
    "DataOrder",
    "PackedDataset",
    "PackedRow",
    "PretrainDataset",
    "SFTDataset",
    "collate",
    "read_manifest",
    "shards_fingerprint",
    "shift_and_pad",
    "write_pretrain_tokens",
    "write_sft_tokens",
]
