"""A small model with random weights, and texts for its tokenizer."""

from helpers.tiny import random_model
from tinyllm_lib.model import ModelConfig

TEXTS = [
    "你好，小苗！今天天气很好。",
    "法国的首都是巴黎。",
    "😀 the cat and the dog",
    "1+1等于2。",
] * 5


def make_model(vocab_size, context=64, seed=0, **shape):
    """Random weights, so large that the likeliest token is no near tie and depends on the text."""
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2} | shape
    return random_model(ModelConfig(vocab_size=vocab_size, max_seq_len=context, **shape), seed=seed)
