"""Ids become text, as they come."""

import codecs
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from tinyllm_lib.tokenizer import token_bytes


class TextStream:
    """Tokens in, text out, as soon as it is certain: no half character, no part of a stop string.

    The three bytes of a Chinese character may lie in three tokens. Bytes that never form one,
    special tokens, and ids of the model that no token has, give no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()):
        if isinstance(stop, str) or "" in stop:
            raise ValueError(f"stop is {stop!r}, expected a list of strings, none of them empty.")
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.special, self.size = set(tokenizer.all_special_ids), len(tokenizer)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self.held = ""  # text that may turn out to begin a stop string
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that this token completes, often empty; sets `stopped` at a stop string."""
        if self.stopped or token in self.special or token >= self.size:
            return ""
        self.held += self.decoder.decode(token_bytes(self.tokenizer, token))
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        self.stopped = bool(found)
        begun = [n for s in self.stop for n in range(1, len(s)) if self.held.endswith(s[:n])]
        certain = min(found) if found else len(self.held) - max(begun, default=0)
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def close(self) -> str:
        """The text still held at the end; half a character is left out."""
        return "" if self.stopped else self.held
