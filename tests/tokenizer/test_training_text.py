"""What a tokenizer trains on: evenly drawn, of the size asked for, in pieces of bounded length."""

import random
from collections import Counter

import pytest
import regex
from helpers.tiny import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_lib.tokenizer import WORDS
from tinyllm_lib.tokenizer.training import MAX_RUN, cut_into_pieces, even_sample


def size(texts):
    return sum(len(text.encode()) for text in texts)


# ---- the sample


def test_a_corpus_that_fits_is_taken_whole():
    assert sorted(even_sample(iter(TEXTS), size(TEXTS))) == sorted(TEXTS)


def test_a_sample_has_the_size_asked_for_and_comes_evenly_from_all_of_the_stream():
    texts = [f"第{number:06d}篇文章" for number in range(20_000)]
    sample = list(even_sample(iter(texts), size(texts) // 10))
    assert 0.999 * size(texts) < 10 * size(sample) <= size(texts)
    tenths = Counter(int(text[1:7]) // 2000 for text in sample)
    # 200, give or take three standard deviations
    assert all(150 < tenths[tenth] < 250 for tenth in range(10)), tenths


def test_the_sample_depends_on_the_texts_and_not_on_their_order():
    texts = [f"第{number}篇" * (1 + number % 9) for number in range(3000)]
    shuffled = random.Random(0).sample(texts, len(texts))
    assert set(even_sample(texts, 20_000)) == set(even_sample(shuffled, 20_000))


def test_a_larger_sample_holds_the_smaller_one():
    texts = [f"第{number}篇" for number in range(3000)]
    assert set(even_sample(texts, 5000)) < set(even_sample(texts, 20_000))


def test_one_text_larger_than_the_sample_is_still_a_text():
    assert list(even_sample(["很长" * 1000], 10)) == ["很长" * 1000]


def test_half_of_a_surrogate_pair_is_named():
    with pytest.raises(ValueError, match="text 2: character . is .* half of a surrogate pair"):
        list(even_sample(["好", "\ud83d"], 100))


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
