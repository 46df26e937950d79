"""The padded view of a dataset that a learner looks at: one sample a row, filled up at its end."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.tokenizer import PAD_ID, Sample, encode_chats, encode_documents

XY = tuple[Tensor, Tensor, Tensor]


def shift_and_pad(ids: Sequence[int], mask: Sequence[int], max_length: int) -> XY:
    """Ids and mask of a sample -> X, Y, loss_mask, int64, each (max_length-1,), padded at the end.

    Y[t] is the token after X[t], and loss_mask[t] says whether it is learned. Padding is masked by
    its position, not by its id, so `<|im_end|>` stays in the loss and the model learns to stop.
    """
    missing = max(0, max_length - len(ids))
    padded_ids = torch.tensor([*ids[:max_length], *[PAD_ID] * missing], dtype=torch.int64)
    padded_mask = torch.tensor([*mask[:max_length], *[0] * missing], dtype=torch.int64)
    return padded_ids[:-1], padded_ids[1:], padded_mask[1:]


class PaddedDataset(Dataset):
    """A sample a row: item -> (X, Y, loss_mask) of `shift_and_pad`; `cut_tokens` did not fit."""

    encode: Callable[..., list[Sample]]

    def __init__(self, items: Iterable, tokenizer: PreTrainedTokenizerFast, max_length: int = 512):
        self.samples = self.encode(tokenizer, [*items], max_length=max_length)
        self.cut_tokens = sum(sample.cut_tokens for sample in self.samples)
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> XY:
        sample = self.samples[index]
        return shift_and_pad(sample.ids, sample.loss_mask, self.max_length)


class PretrainDataset(PaddedDataset):
    """One text a sample, learned whole."""

    encode = staticmethod(encode_documents)


class SFTDataset(PaddedDataset):
    """One dialogue a sample, of which only the replies are learned."""

    encode = staticmethod(encode_chats)
