"""Token shards written slowly enough to be killed: write_tokens.py pretrain|sft TOKENIZER OUT.

Or as fast as it goes, and then the peak memory is printed: write_tokens.py peak TOKENIZER OUT
DOCUMENTS."""

import sys
import time

from tinyllm_lib.dataset import tokens
from tinyllm_lib.tokenizer import load_tokenizer
from tools.bench.harness import peak_memory_mb

BATCH = 20


def write(kind, tokenizer, out, pause=0.0):
    """Writes about ten shards, waiting `pause` seconds before each batch of documents."""

    def slowly(items):
        for number, item in enumerate(items):
            time.sleep(pause * (number % BATCH == 0))
            yield item

    if kind == "pretrain":
        texts = (f"第{n}篇：法国的首都是巴黎。" * (1 + n % 5) for n in range(600))
        tokens.write_pretrain_tokens(
            slowly(texts), tokenizer, out, source="texts", shard_tokens=2000
        )
        return
    sentences = (1, 2, 0, 40)  # of a reply: short, longer, no reply at all, too long
    dialogues = [
        [{"role": "user", "content": f"{n}？"}]
        + [
            {"role": "assistant", "content": "是巴黎。" * count}
            for count in sentences[n % 4 : n % 4 + 1]
            if count
        ]
        for n in range(400)
    ]
    replay = ["法国的首都是巴黎。"] * 100
    settings = {"max_length": 64, "source": "dialogues", "shard_tokens": 1000}
    tokens.write_sft_tokens(slowly(dialogues), tokenizer, out, replay=slowly(replay), **settings)


def peak(tokenizer, out, documents):
    texts = (f"第{n}篇：法国的首都是巴黎，那里有{n % 97}座老桥。" * 20 for n in range(documents))
    tokens.write_pretrain_tokens(texts, tokenizer, out)
    return peak_memory_mb()


if __name__ == "__main__":
    kind, folder, out, *documents = sys.argv[1:]
    if kind == "peak":
        print(peak(load_tokenizer(folder), out, int(*documents)))
    else:
        tokens.BATCH_DOCUMENTS = BATCH
        write(kind, load_tokenizer(folder), out, pause=0.05)
