"""Notebook 03: ids become token shards on disk, and those packed rows `(X, Y, loss_mask)`.

Read `tokens.py` (on disk), `packed.py` (what trains), `padded.py` (to look at).

    write_pretrain_tokens: encodes documents on all cores and writes them as shards
    write_sft_tokens: encodes dialogues with their loss masks and writes them as shards
    remove_shards: deletes what lies in a folder of shards, the manifest first
    read_manifest: what a finished folder of shards holds
    shards_fingerprint: what decides the tokens of a folder of shards, as 16 hex digits
    shift_and_pad: ids and mask of one sample -> X, Y and loss_mask, padded at the end
    PretrainDataset: the padded view of documents, one a row
    SFTDataset: the padded view of dialogues, of which only the replies are learned
    PackedDataset: what trains: shards as rows of `context` positions, several documents in each
    PackedRow: X, Y, loss_mask and the documents of one packed row, or, stacked, of a batch
    collate: stacks rows to a batch (B, context)
    ahead: what a function gives for each step, prepared by threads meanwhile
    DataOrder: which rows make up a step, from the seed and the step alone
"""

from tinyllm_lib.dataset.packed import DataOrder, PackedDataset, PackedRow, ahead, collate
from tinyllm_lib.dataset.padded import PretrainDataset, SFTDataset, shift_and_pad
from tinyllm_lib.dataset.tokens import (
    read_manifest,
    remove_shards,
    shards_fingerprint,
    write_pretrain_tokens,
    write_sft_tokens,
)
