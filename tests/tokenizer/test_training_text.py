"""What a tokenizer trains on: pieces of bounded length."""

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_lib.tokenizer import WORDS
from tinyllm_lib.tokenizer.training import MAX_RUN, cut_into_pieces

# ---- the pieces


LONG_RUNS = {
    "spaces": " " * 300_000,
    "one letter": "a" * 300_000,
    "a rule": "=" * 300_000,
    "two letters": "ab" * 150_000,
    "emoji": "😀" * 100_000,
    "line ends": "\n" * 300_000,
    "digits": "7" * 300_000,
    "base64": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 9000,
    "marks on one letter": "e" + "\u0301\u0323" * 50_000,
    "full stops": "。" * 100_000,
    "Han": "天地玄黄" * 30_000,
    "kana": "あいうえお" * 20_000,
    "Thai": "กขคงจฉ" * 20_000,
    "Korean": "가나다라마" * 20_000,
}


def pieces(text, words):
    return [text[a:b] for _, (a, b) in cut_into_pieces(words).pre_tokenize_str(text)]


def by_two_patterns(text):
    """A text of short runs first cut by WORDS, then what is left as GPT-2 cuts it."""
    words = regex.compile(f"({WORDS})", regex.V1)
    gpt2 = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    return [piece for part in words.split(text) for piece in gpt2.findall(part)]


@given(st.text(alphabet="法国的首都是巴黎，。aB's 1\n") | st.text(max_size=MAX_RUN))
def test_what_fits_is_a_word_or_a_piece_of_gpt_2_s(text):
    assert pieces(text, WORDS) == by_two_patterns(text)


@pytest.mark.parametrize("words", [WORDS, None, r"\p{Han}+"])
@pytest.mark.parametrize("kind", LONG_RUNS)
def test_a_long_run_of_whatever_is_cut_and_loses_nothing(kind, words):
    text = LONG_RUNS[kind] + "春天来了。"
    found = pieces(text, words)
    assert "".join(found) == text
    assert max(map(len, found)) <= MAX_RUN + 1, "and one space before it"
