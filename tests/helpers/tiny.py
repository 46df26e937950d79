"""Texts, dialogues and processes for the tests of the whole pipeline; the fixtures are in
`tiny_fixtures`.
"""

import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CAPITALS = {
    "法国": "巴黎",
    "中国": "北京",
    "日本": "东京",
    "蒙古": "乌兰巴托",
    "英国": "伦敦",
    "埃及": "开罗",
}
TEXTS = [
    sentence.format(country=country, city=city, n=n)
    for n, (country, city), sentence in itertools.product(
        range(10, 18),
        CAPITALS.items(),
        (
            "{country}的首都是{city}，那里有{n}座老桥。",
            "“你去过{city}吗？”“去过{n}次。”\n{city}是{country}最大的城市，也是它的首都。",
            "　　小猫在{country}的河边走了{n}里路，遇见一只白鹅。\n白鹅说：“我们回{city}吧！”",
            "In {city} there are {n} cats and {n}0 dogs.",
        ),
    )
]
SYSTEM = {"role": "system", "content": "你是一个AI助手"}


def dialogue(*contents, system=True):
    """Messages of a dialogue from what user and assistant say in turn, the user first."""
    roles = itertools.cycle(("user", "assistant"))
    said = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return [SYSTEM, *said] if system else said


DIALOGUES = [
    dialogue(
        f"{country}的首都是哪里？",
        f"是{city}。" * (1 + n % 3),
        *(["那里有桥吗？", f"有{n}座。"] if n % 2 else []),
    )
    for n, (country, city) in itertools.product(range(10, 18), CAPITALS.items())
]


def arguments(config):
    """A TrainConfig as arguments of `python -m tinyllm_lib.train`."""
    return [f"--{name}={value}" for name, value in vars(config).items()]


def start_python(*args, start_new_session=False, **env):
    """A Python process that can import the library; its output is collected as text."""
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TINYLLM_PLAIN": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=start_new_session,
    )


def wait_until(condition, what, seconds=90):
    """Waits for condition() to be true; returns what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.02)
    return found


def is_held(port):
    """Whether somebody on this machine answers at a port."""
    with socket.socket() as s:
        return s.connect_ex(("localhost", port)) == 0


def random_run(folder, tokenizer, change):
    """A run with a checkpoint of random weights; `change(embedding)` alters them in place first."""
    import torch

    from tinyllm_lib.model import ModelConfig, save_checkpoint

    size = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    model = random_model(ModelConfig(**size, vocab_size=len(tokenizer), max_seq_len=96), scale=6)
    with torch.no_grad():
        change(model.model.embed_tokens.weight)
    save_checkpoint(folder, 5, model, tokenizer, {})
    return folder


def load_tool(name):
    """tools/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def foreign(tokenizer_folder, folder, template=None, bos=None, **tokens):
    """The tokenizer as others would save it: `<|im_end|>` at id 60, a template of its own, tokens
    in other roles, `bos` before texts.
    """
    from tokenizers import processors

    content = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = {name: (i + 56) % 400 for name, i in content["model"]["vocab"].items()}
    content["model"]["vocab"] = vocabulary
    content["added_tokens"] = [
        {**token, "id": vocabulary[token["content"]]} for token in content["added_tokens"]
    ]
    if bos:
        before = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
        content["post_processor"] = json.loads(before.__getstate__())
    folder.mkdir()
    (folder / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False), encoding="utf-8"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def random_model(config, *, seed=0, scale=8.0, norm_spread=0.0):
    """Random weights, larger than at the start of training, so that logits differ and depend on the
    text.
    """
    import torch

    from tinyllm_lib.model import Transformer

    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(scale)
            elif norm_spread:
                p.add_(norm_spread * torch.randn_like(p))
    return model.eval()
