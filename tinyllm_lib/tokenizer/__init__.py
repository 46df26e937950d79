"""Notebook 02: documents become a tokenizer folder; text and dialogues become ids and back.

Read `training.py`, `folder.py` (what lies on disk, and its checks), `encoding.py` (ids).

    train_tokenizer: learns a byte-level BPE from documents and saves it as a folder
    load_tokenizer: loads such a folder, or a checkpoint's, and checks that it speaks ChatML
    save_tokenizer: writes a folder that transformers 4 and 5 load alike
    eval_tokenizer: prints what a folder holds and whether text comes back unchanged
    tokenizer_hash: SHA-256 of everything that decides the ids
    check_size: passes a tokenizer that fits a model's vocabulary
    encode_text: ids of a text alone, in which special tokens are text
    encode_documents: samples of texts, each with what begins and ends a document
    Sample: ids and loss mask of a document or a dialogue, and what was left out of it
    encode_chat: ids and loss mask of a dialogue, built together, message by message
    encode_chats: `encode_chat` of each dialogue, on all cores at once
    text_start: what a tokenizer puts before every text by itself, as Llama's do with `<s>`
    stop_ids: the ids that end what a model writes
    token_ids: what a model's `config.json` says of its tokenizer
    token_bytes: the bytes of one token, which may be a part of a character
    token_byte_lengths: bytes of text per token id, 0 for special tokens
    SPECIAL_TOKENS: the first five tokens, by id
    EOS_TEXT_ID: the id of `</s>`, the end of a document elsewhere
    IM_END_ID: the id of `<|im_end|>`, the end of a message and of a document
    PAD_ID: the id that fills a row up; padding is masked by position
    ROLES: who can speak in a dialogue
    WORDS: the pattern by which text is cut before merges are learned
"""

from tinyllm_lib.tokenizer.encoding import (
    EOS_TEXT_ID,
    IM_END_ID,
    PAD_ID,
    ROLES,
    SPECIAL_TOKENS,
    Sample,
    encode_chat,
    encode_chats,
    encode_documents,
    encode_text,
    stop_ids,
    text_start,
    token_byte_lengths,
    token_bytes,
    token_ids,
)
from tinyllm_lib.tokenizer.folder import (
    check_size,
    eval_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
)
from tinyllm_lib.tokenizer.training import WORDS, train_tokenizer
