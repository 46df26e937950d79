"""The padded view of a dataset that a learner looks at: one sample a row, filled up at its end."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.tokenizer import PAD_ID, encode_chat, encode_documents


def shift_and_pad(
    ids: Sequence[int], mask: Sequence[int], max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask of a sample -> X, Y, loss_mask, int64, each (max_length-1,), padded at the end.

    Y[t] is the token after X[t], and loss_mask[t] says whether it is learned. Padding is masked by
    its position, not by its id, so `<|im_end|>` stays in the loss and the model learns to stop.
    """
    missing = max(0, max_length - len(ids))
    padded_ids = torch.tensor([*ids[:max_length], *[PAD_ID] * missing], dtype=torch.int64)
    padded_mask = torch.tensor([*mask[:max_length], *[0] * missing], dtype=torch.int64)
    return padded_ids[:-1], padded_ids[1:], padded_mask[1:]


class PretrainDataset(Dataset):
    """One text a sample: item -> (X, Y, loss_mask), int64, each (max_length-1,).

    `cut_tokens` counts what did not fit.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int = 512
    ):
        self.samples = encode_documents(tokenizer, list(texts))
        self.max_length = max_length
        self.cut_tokens = sum(max(0, len(ids) - max_length) for ids in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.samples[index]
        return shift_and_pad(ids, [1] * len(ids), self.max_length)


class SFTDataset(Dataset):
    """One dialogue a sample, of which only the replies are learned; else as `PretrainDataset`."""

    def __init__(
        self,
        dialogues: Sequence[list[dict[str, str]]],
        tokenizer: PreTrainedTokenizerFast,
        max_length: int = 512,
    ):
        self.samples = [encode_chat(tokenizer, chat, max_length=max_length) for chat in dialogues]
        self.max_length = max_length
        self.cut_tokens = sum(chat.cut_tokens for chat in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        chat = self.samples[index]
        return shift_and_pad(chat.ids, chat.loss_mask, self.max_length)
