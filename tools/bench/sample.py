"""Sampling: ours against transformers' `generate`, the speed of the memory, the loop without a
cache, and one forward pass.

    python -m tools.bench.sample [--runs 5] [--save]

The 82.6M model and, on an idle machine and beside a process that keeps a core busy, the laptop
model; random weights, fp32, greedy, no stop token: both write the same number of tokens from the
same prompts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from tinyllm_lib.course import get_profile
from tinyllm_lib.data import allowed_cpus
from tinyllm_lib.generate import generate
from tinyllm_lib.model import ModelConfig, Transformer
from tools.bench.data import Work
from tools.bench.harness import Case, bench_folder, main

NEW = 256  # tokens written after each prompt
CHAT_NEW = 100  # by the laptop model: its context holds 128 tokens
LONG_PROMPT = 400  # of the case that asks for one token only
# tokens of the prompts of the cases without a cache: the longer, the more is computed again
CACHELESS_PROMPTS = (16, 256)


def prompts_of(lengths: list[int], vocab_size: int) -> list[list[int]]:
    """Random ids, none of them special."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(5, vocab_size, (length,), generator=rng).tolist() for length in lengths]


def our_model(folder: Path) -> Transformer:
    torch.set_num_threads(allowed_cpus())
    return Transformer.from_pretrained(folder)


def our_tokens(folder: Path, lengths: list[int], new: int, use_cache: bool = True) -> Work:
    """Tokens written by `generate`."""
    model = our_model(folder)
    prompts = prompts_of(lengths, model.config.vocab_size)
    generate(model, prompts, max_new_tokens=2, temperature=0, stop_ids=(), use_cache=use_cache)

    def work() -> float:
        return sum(
            len(g.ids)
            for g in generate(
                model, prompts, max_new_tokens=new, temperature=0, stop_ids=(), use_cache=use_cache
            )
        )

    return work


def their_tokens(folder: Path, lengths: list[int], new: int) -> Work:
    """Tokens written by transformers' `generate`, prompts padded on the left."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(allowed_cpus())
    model = LlamaForCausalLM.from_pretrained(folder)
    prompts = prompts_of(lengths, model.config.vocab_size)
    longest = max(lengths)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def write(count: int) -> int:
        out = model.generate(
            ids,
            attention_mask=real,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return (out.shape[1] - longest) * len(prompts)

    write(2)
    return lambda: write(new)


def one_forward_pass(folder: Path) -> Work:
    """Logits of the long prompt's last position: the least that its first token can cost."""
    model = our_model(folder)
    ids = torch.tensor(prompts_of([LONG_PROMPT], model.config.vocab_size))

    @torch.inference_mode()
    def work() -> float:
        for _ in range(10):
            model.lm_head(model.hidden_states(ids)[:, -1])
        return 10

    work()
    return work


def first_tokens(folder: Path) -> Work:
    """The first token of the long prompt, ten times."""
    model = our_model(folder)
    prompts = prompts_of([LONG_PROMPT], model.config.vocab_size)

    def work() -> float:
        for _ in range(10):
            generate(model, prompts, max_new_tokens=1, temperature=0, stop_ids=())
        return 10

    work()
    return work


def weights_read(folder: Path, times: int) -> Work:
    """All weights added up, `times` times: a token at batch 1 cannot cost less than reading the
    weights once.
    """
    parameters = [p.detach() for p in our_model(folder).parameters()]

    def work() -> float:
        for _ in range(times):
            for p in parameters:
                p.sum()
        return times

    work()
    return work


def make_model(name: str) -> Path:
    """A model of a profile's shape with random weights."""
    folder, profile = bench_folder() / "sample" / name, get_profile(name)
    shape = {key: profile.pretrain[key] for key in ("dim", "n_layers", "n_heads", "n_kv_heads")}
    config = ModelConfig(**shape, vocab_size=profile.vocab_size, max_seq_len=profile.max_length)
    torch.manual_seed(0)
    Transformer(config).save_pretrained(folder)
    return folder


def cases() -> list[Case]:
    """Every case, on models that are made anew."""
    folder, laptop = (make_model(name) for name in ("gpu", "laptop"))
    sixteen = [8 + 4 * number for number in range(16)]
    written = f"{NEW} new tokens"
    return [
        *(
            Case(
                f"{name}, {written}",
                "tokens/s",
                partial(our_tokens, folder, lengths, NEW),
                partial(their_tokens, folder, lengths, NEW),
                "transformers",
            )
            for name, lengths in (("1 prompt", [16]), ("16 prompts", sixteen))
        ),
        Case(
            f"1 prompt, {written}, against memory",
            "tokens/s",
            partial(our_tokens, folder, [16], NEW),
            partial(weights_read, folder, NEW),
            "every weight read once a token",
        ),
        *(
            Case(
                f"1 prompt of {length} tokens, {written}",
                "tokens/s",
                partial(our_tokens, folder, [length], NEW),
                partial(our_tokens, folder, [length], NEW, use_cache=False),
                "no cache",
            )
            for length in CACHELESS_PROMPTS
        ),
        Case(
            f"first token of a {LONG_PROMPT}-token prompt",
            "times/s",
            partial(first_tokens, folder),
            partial(one_forward_pass, folder),
            "one forward pass",
        ),
        *(
            Case(
                f"laptop model, 1 prompt, {CHAT_NEW} new tokens{beside}",
                "tokens/s",
                partial(our_tokens, laptop, [16], CHAT_NEW),
                partial(their_tokens, laptop, [16], CHAT_NEW),
                "transformers",
                busy=busy,
            )
            for beside, busy in (("", False), (", a busy neighbour", True))
        ),
    ]


if __name__ == "__main__":
    main("sample", cases, packages=("torch", "transformers", "numpy"))
