"""Notebook 02: documents become a tokenizer folder; text becomes ids and back; a dialogue becomes
ids and a loss mask.

    check_size: passes a tokenizer that fits a model's vocabulary
    encode_chat: ids and loss mask of a dialogue, built together in one pass, message by message
    encode_chats: `encode_chat` of each dialogue, on all cores at once
    encode_text: ids of `text` alone
    encode_texts: ids of each text as `encode_text` gives them, on all cores at once
    eval_tokenizer: prints what a tokenizer folder holds and whether it gives text back unchanged
    load_tokenizer: loads a tokenizer folder for a library that speaks ChatML and knows tokens as
        bytes
    marked_template: the way back
    plain_template: A chat template whose `{% generation %}` tags, which only transformers knows,
        are comments
    save_tokenizer: writes a tokenizer folder that transformers 4 and 5 load alike, with a chat
        template that any Jinja renders
    stop_ids: the ids that end what a model writes
    text_encoder: the Rust tokenizer behind `encode_text`
    text_end: the id after every text
    text_start: what a tokenizer puts before every text by itself, as Llama's do with `<s>`
    token_byte_lengths: bytes of text per token id, 0 for special tokens
    token_bytes: the raw bytes of one token, which may be a part of a character
    token_ids: what `config.json` says of the tokenizer
    tokenizer_hash: SHA-256 of everything that decides the ids
    train_tokenizer: learns a byte-level BPE from `texts` (streamed, read once) and saves it as a
        Hugging Face tokenizer folder
    why_no_bytes: why a text cannot be encoded, or None where it can
    EOS_TEXT_ID: the id of `</s>`, the end of a document
    IM_END_ID: the id of `<|im_end|>`, the end of a message
    PAD_ID: the id that fills a row up; padding is masked by position
    ROLES: who can speak in a dialogue
    SAMPLE_BYTES: of text to train on: more would hardly change the merges
    SPECIAL_TOKENS: the first five tokens, by id
    WORDS: the pattern by which text is cut before merges are counted
"""

from tinyllm_lib.tokenizer.tokenizer import (
    EOS_TEXT_ID,
    IM_END_ID,
    PAD_ID,
    ROLES,
    SAMPLE_BYTES,
    SPECIAL_TOKENS,
    WORDS,
    check_size,
    encode_chat,
    encode_chats,
    encode_text,
    encode_texts,
    eval_tokenizer,
    load_tokenizer,
    marked_template,
    plain_template,
    save_tokenizer,
    stop_ids,
    text_encoder,
    text_end,
    text_start,
    token_byte_lengths,
    token_bytes,
    token_ids,
    tokenizer_hash,
    train_tokenizer,
)
from tinyllm_lib.tokenizer.training_text import why_no_bytes

__all__ = [
    "EOS_TEXT_ID",
    "IM_END_ID",
    "PAD_ID",
    "ROLES",
    "SAMPLE_BYTES",
    "SPECIAL_TOKENS",
    "WORDS",
    "check_size",
    "encode_chat",
    "encode_chats",
    "encode_text",
    "encode_texts",
    "eval_tokenizer",
    "load_tokenizer",
    "marked_template",
    "plain_template",
    "save_tokenizer",
    "stop_ids",
    "text_encoder",
    "text_end",
    "text_start",
    "token_byte_lengths",
    "token_bytes",
    "token_ids",
    "tokenizer_hash",
    "train_tokenizer",
    "why_no_bytes",
]
