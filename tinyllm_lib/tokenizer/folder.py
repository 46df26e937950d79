"""The tokenizer's folder: written so that other programs read it, checked when it is read."""

import hashlib
import json
from pathlib import Path

from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import read_json
from tinyllm_lib.tokenizer.encoding import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    check_chatml,
    encode_chat,
    encode_text,
)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes a folder that transformers 4 and 5 load alike."""
    tokenizer.save_pretrained(str(folder))
    file = Path(folder) / "tokenizer_config.json"
    config = read_json(file)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # 4 knows neither 5's class nor its field
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for how_it_was_loaded_here in ("is_local", "local_files_only"):
        config.pop(how_it_was_loaded_here, None)
    file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer that speaks ChatML and knows tokens as bytes, trained here or elsewhere.

    Its chat template becomes `CHAT_TEMPLATE`, which renders in any Jinja; an end token that is
    missing becomes `<|im_end|>`.

    Raises:
        FileNotFoundError: no tokenizer.json there.
        ValueError: a damaged file, another kind of tokenizer, or what `check_chatml` refuses.
    """
    if not Path(folder, "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json: train one (notebook 02).")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises bare ones
        raise ValueError(f"{folder}: the tokenizer's files are damaged ({error}).") from error
    check_chatml(tokenizer, f"{folder}: ")
    decoder = tokenizer.backend_tokenizer.decoder
    if not isinstance(decoder, decoders.ByteLevel):
        found = type(decoder).__name__
        raise ValueError(f"{folder}: the tokenizer's decoder is {found}, expected ByteLevel.")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.eos_token or "<|im_end|>"
    return tokenizer


def check_size(tokenizer: PreTrainedTokenizerFast, vocab_size: int, where: object) -> None:
    """Passes a tokenizer that fits a model's vocabulary, which may be rounded up by 2%.

    Any other is a ValueError: it is not the one that the model was trained with.
    """
    if not 0.98 * vocab_size <= len(tokenizer) <= vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model was made for"
            f" {vocab_size} with another: take that one (in training: leave tokenizer_path empty)."
        )


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides the ids; shards and checkpoints carry it."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def eval_tokenizer(folder: str | Path) -> dict[str, object]:
    """Prints and returns what a tokenizer folder holds, and whether text comes back unchanged.

    `round_trip`: a text does; `special_tokens_round_trip`: a dialogue with its tags does;
    `chat_agrees`: `encode_chat` gives the ids of the chat template.
    """
    tokenizer = load_tokenizer(folder)
    messages = [
        {"role": "system", "content": "你是一个AI助手"},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "我很好，谢谢！"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    template_ids = tokenizer.apply_chat_template(messages, return_dict=False)
    text = "天地玄黄，宇宙洪荒。１² ＡＢＣ\u3000e\u0301 👩‍🚀\n\n<|im_end|> 也只是文字。"
    report = {
        "vocab_size": len(tokenizer),
        "special_tokens": {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS},
        "chat_template": rendered,
        "round_trip": tokenizer.decode(encode_text(tokenizer, text)) == text,
        "special_tokens_round_trip": tokenizer.decode(tokenizer(rendered)["input_ids"]) == rendered,
        "chat_agrees": encode_chat(tokenizer, messages).ids == template_ids,
    }
    for name, found in report.items():
        print(f"{name}: {found!r}")
    return report
