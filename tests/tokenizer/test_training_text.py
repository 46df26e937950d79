"""What a tokenizer trains on: evenly drawn, of the size asked for, and of bounded variety."""

import random
from collections import Counter

import pytest
import regex
from helpers.tiny import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_lib.tokenizer import WORDS
from tinyllm_lib.tokenizer.training import (
    BORDER,
    MAX_RUN,
    PIECES_A_LINE,
    count_pieces,
    even_sample,
    in_lines,
)


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


def by_two_patterns(texts):
    """How often each piece stands in texts of short runs: first by WORDS, then what is left as
    GPT-2 cuts it.
    """
    words = regex.compile(f"({WORDS})", regex.V1)
    gpt2 = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    return Counter(
        piece for text in texts for part in words.split(text) for piece in gpt2.findall(part)
    )


@given(st.lists(st.text(alphabet="法国的首都是巴黎，。aB's 1\n") | st.text(max_size=MAX_RUN)))
def test_what_fits_is_counted_piece_by_piece(texts):
    assert count_pieces(texts, WORDS) == by_two_patterns(texts)


@pytest.mark.parametrize("words", [WORDS, None, r"\p{Han}+"])
@pytest.mark.parametrize("kind", LONG_RUNS)
def test_a_long_run_of_whatever_is_cut_and_loses_nothing(kind, words):
    counts = count_pieces([LONG_RUNS[kind], "春天来了。"], words)
    assert max(map(len, counts)) <= MAX_RUN + 1, "and one space before it"
    lost = Counter(LONG_RUNS[kind] + "春天来了。")
    for piece, count in counts.items():
        for char in piece:
            lost[char] -= count
    assert not any(lost.values())


def test_every_piece_is_fed_as_often_as_it_was_counted_in_lines_of_bounded_length():
    counts = count_pieces(["小猫，" * 25_000, *TEXTS], WORDS)
    fed = list(in_lines(counts.copy()))
    assert Counter(piece for line in fed for piece in line.split(BORDER)) == counts
    assert max(line.count(BORDER) for line in fed) < PIECES_A_LINE


@pytest.mark.parametrize(
    "letters", ["东西南北山水风云", "あいうえおかきく", "abcdefgh"], ids=["Han", "kana", "Latin"]
)
def test_too_many_pieces_are_cut_rarest_first_and_no_character_is_lost(letters):
    draw = random.Random(0)
    rare = ["".join(draw.choices(letters, k=6)) for _ in range(5000)]
    texts = [f"{run}，巴黎铁塔。" for run in rare]
    counts = count_pieces(texts, WORDS, max_pieces=1000)
    assert len(counts) <= 1000 < len(set(rare))
    assert counts["巴黎铁塔"] == 5000, "what is frequent stays whole"
    by_hand = count_pieces(texts, WORDS)

    def characters(counts):
        return Counter(
            {char: sum(n * piece.count(char) for piece, n in counts.items()) for char in letters}
        )

    assert characters(counts) == characters(by_hand)


def test_more_characters_than_pieces_end_as_single_characters():
    texts = [chr(0x4E00 + number) * 3 for number in range(300)]
    counts = count_pieces(texts, WORDS, max_pieces=100)
    assert counts.total() == 900 and max(map(len, counts)) == 1


def test_a_pattern_with_a_group_is_refused():
    with pytest.raises(ValueError, match=r"write \(\?:…\)"):
        count_pieces(TEXTS, "(a|b)")
