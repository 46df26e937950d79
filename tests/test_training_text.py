"""What a tokenizer trains on: evenly drawn, of the size asked for, and of bounded variety."""

import random
from collections import Counter

import pytest
import regex
from helpers.tiny import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_lib.corpus.training_text import bounded_pieces, even_sample
from tinyllm_lib.tokenizer import WORDS

PIECES = regex.compile(WORDS, regex.V1)


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
    assert all(150 < tenths[tenth] < 250 for tenth in range(10)), tenths  # 200, give or take three standard deviations


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


def pieces(texts):
    """How often each piece stands in the texts, and the characters between them."""
    texts = list(texts)
    found = Counter(piece for text in texts for piece in PIECES.findall(text))
    between = Counter(char for text in texts for char in PIECES.sub("", text))
    del found["\n"]
    return found, between


@given(st.lists(st.text(alphabet="法国的首都是巴黎，。a 1\n") | st.text()))
def test_what_fits_keeps_every_piece_as_often_as_it_was(texts):
    assert pieces(bounded_pieces(texts, WORDS)) == pieces(texts)


def test_a_frequent_piece_is_fed_in_lines_of_bounded_length():
    texts = ["小猫，" * 25_000]
    fed = list(bounded_pieces(texts, WORDS))
    assert pieces(fed) == pieces(texts)
    assert max(map(len, fed)) < 50_000


def test_too_many_pieces_are_cut_rarest_first_and_no_character_is_lost():
    draw = random.Random(0)
    rare = ["".join(draw.choices("东西南北山水风云", k=6)) for _ in range(5000)]
    texts = [f"{run}，巴黎铁塔。" for run in rare]
    fed, _ = pieces(bounded_pieces(texts, WORDS, max_pieces=1000))
    assert len(fed) <= 1000 < len(set(rare))
    assert fed["巴黎铁塔"] == 5000, "what is frequent stays whole"
    by_hand, _ = pieces(texts)

    def characters(counts):
        return Counter({char: sum(n * piece.count(char) for piece, n in counts.items()) for char in "东西南北山水风云"})

    assert characters(fed) == characters(by_hand)


def test_more_characters_than_pieces_end_as_single_characters():
    texts = [chr(0x4E00 + number) * 3 for number in range(300)]
    fed, _ = pieces(bounded_pieces(texts, WORDS, max_pieces=100))
    assert fed.total() == 900 and max(map(len, fed)) == 1


def test_a_pattern_with_a_group_is_refused():
    with pytest.raises(ValueError, match=r"write \(\?:…\)"):
        list(bounded_pieces(TEXTS, "(a|b)"))
