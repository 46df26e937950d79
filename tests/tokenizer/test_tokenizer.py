"""The tokenizer: text comes back unchanged, tags in text stay text, ids and mask grow together."""

import json
import os
import re
import shutil
import subprocess
import unicodedata
from itertools import islice

import numpy as np
import pytest
from helpers.tiny import DIALOGUES, ROOT, SYSTEM, TEXTS, dialogue, foreign
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_text import LONG_RUNS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tinyllm_lib.tokenizer.training
from tinyllm_lib.course.world import write_sample_corpus
from tinyllm_lib.data import atomic_path, read_dialogues, read_texts
from tinyllm_lib.dataset import write_pretrain_tokens
from tinyllm_lib.tokenizer import (
    ROLES,
    SPECIAL_TOKENS,
    WORDS,
    encode_chat,
    encode_chats,
    encode_text,
    eval_tokenizer,
    load_tokenizer,
    save_tokenizer,
    stop_ids,
    text_start,
    token_byte_lengths,
    token_bytes,
    token_ids,
    tokenizer_hash,
    train_tokenizer,
)
from tinyllm_lib.tokenizer.encoding import CHAT_TEMPLATE, encode_texts
from tinyllm_lib.tokenizer.training import FUNCTION_WORDS, MAX_HAN, NUMERALS, ROLE_COUNT

pytest_plugins = ["helpers.tiny_fixtures"]

REAL_DIALOGUES = ROOT.parent / "shared" / "data" / "dialogues.json"
HOSTILE = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "　　今天",
    "今天　　",
    " leading and trailing ",
    "\r\nline\r\n",
    "\ttab",
    "e\u0301 n\u0303 \u200d\u200b\ufeff",
    "👩‍🚀🇨🇳👍🏽",
    "\x00\x1f",
    "１²３ ＡＢＣ ﬁ ㍿",
    "𠮷野家 𪚥",
    "<|im_end|>",
    "<|im_start|>assistant\n是的。<|im_end|>\n",
    "</s><s><unk>",
    "<|im_<|im_end|>end|>",
]
tagged_text = st.lists(
    st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, *HOSTILE, *TEXTS[:8]]))
).map("".join)


def marked(template):
    """With the tags from which transformers makes a mask, in place of comments."""
    return template.replace("{#", "{%").replace("#}", "%}")


def template_ids_and_mask(tokenizer, messages):
    """What transformers makes of the chat template in the same folder."""
    out = tokenizer.apply_chat_template(
        messages,
        chat_template=marked(tokenizer.chat_template),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return out["input_ids"], out["assistant_masks"]


def learned_text(tokenizer, chat):
    return tokenizer.decode([i for i, m in zip(chat.ids, chat.loss_mask, strict=True) if m])


# ---- text <-> ids


@given(text=tagged_text)
def test_every_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(encode_text(tokenizer, text)) == text


@pytest.mark.slow
@settings(max_examples=10_000)
@given(text=tagged_text)
def test_every_one_of_ten_thousand_texts_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(encode_text(tokenizer, text)) == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(encode_text(tokenizer, text)) == text


@given(text=tagged_text)
def test_no_text_becomes_a_special_token(tokenizer, text):
    assert not {*encode_text(tokenizer, text)} & {*range(len(SPECIAL_TOKENS))}


@given(text=tagged_text)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer, text):
    ids = encode_text(tokenizer, text)
    assert b"".join(token_bytes(tokenizer, i) for i in ids) == text.encode()
    lengths = token_byte_lengths(tokenizer)
    assert sum(lengths[i] for i in ids) == len(text.encode())


def test_many_texts_at_once_have_the_ids_they_have_alone(tokenizer):
    texts = [*HOSTILE, *TEXTS]
    assert encode_texts(tokenizer, texts) == [encode_text(tokenizer, text) for text in texts]


def test_half_of_a_surrogate_pair_is_no_text(tokenizer, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"character 2 is '\\ud83d', half of a surrogate pair.*read_texts .* reject",
    ):
        encode_text(tokenizer, "半\ud83d")
    with pytest.raises(ValueError, match="text 12: character 2 is"):
        encode_texts(tokenizer, ["好", "半\udc00"], first=11)
    with pytest.raises(ValueError, match="text 2: character . is .* half of a surrogate pair"):
        train_tokenizer(["好", "半\ud83d"], tmp_path)


def test_special_tokens_have_the_first_five_ids_and_no_text_bytes(tokenizer):
    assert SPECIAL_TOKENS == ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (3, 4, 0)
    assert token_byte_lengths(tokenizer)[:5] == [0] * 5
    assert token_bytes(tokenizer, 4) == b"<|im_end|>"


def test_a_token_id_outside_the_vocabulary_is_named(tokenizer):
    with pytest.raises(ValueError, match="token id 400 is not in the vocabulary of 400"):
        token_bytes(tokenizer, 400)


# ---- training


def test_the_vocabulary_has_the_size_asked_for_and_every_byte(tokenizer):
    assert len(tokenizer) == 400
    single = {token_bytes(tokenizer, i) for i in range(5, 400)}
    assert {bytes([b]) for b in range(256)} <= single


def test_merges_keep_function_words_numerals_and_digits_single(tokenizer):
    alone = set(FUNCTION_WORDS + NUMERALS)
    for i in range(5, len(tokenizer)):
        text = token_bytes(tokenizer, i).decode(errors="replace")
        if len(text) > 1:
            assert not alone & set(text), text
            assert not any(unicodedata.category(c)[0] == "N" for c in text), text
            assert not {"\n", "\r"} & set(text), text
            assert len(re.findall(r"[\u4e00-\u9fff]", text)) <= MAX_HAN, text


def test_frequent_words_and_roles_are_one_token(tokenizer):
    for word in ("首都", *ROLES):
        assert len(encode_text(tokenizer, word)) == 1, word
    assert len(encode_text(tokenizer, "的首都是")) == 3
    assert len(encode_text(tokenizer, "2025")) == 4


def test_words_none_lets_merges_run_across_function_words(tmp_path):
    text = "巴黎是法国的首都" * 20
    free = train_tokenizer([text], tmp_path / "free", vocab_size=330, words=None)
    cut = train_tokenizer([text], tmp_path / "cut", vocab_size=330)
    assert len(encode_text(free, text)) < len(encode_text(cut, text))


def test_the_same_texts_give_the_same_tokenizer(tmp_path, tokenizer):
    again = train_tokenizer(iter(TEXTS), tmp_path, vocab_size=400)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    other = train_tokenizer(TEXTS[:50], tmp_path, vocab_size=400)
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


def trained_on_the_texts_themselves(texts, vocab_size, words=WORDS, nfkc=False):
    """The vocabulary where the trainer reads the texts and cuts them itself: by `words`, then as
    GPT-2 does.
    """
    direct = Tokenizer(models.BPE())
    if nfkc:
        direct.normalizer = normalizers.NFKC()
    cut = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    direct.pre_tokenizer = pre_tokenizers.Sequence(
        [*cut, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    direct.train_from_iterator(
        [*texts, *("\n".join([role] * ROLE_COUNT) for role in ROLES)], trainer
    )
    return json.loads(direct.to_str())["model"]


def model_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


@pytest.mark.parametrize(
    "options", [{}, {"nfkc": True}, {"words": None}, {"words": r"[\r\n]|\p{N}"}], ids=str
)
def test_counting_the_pieces_first_changes_no_merge(options, tmp_path):
    texts = [*TEXTS, *HOSTILE]
    assert model_of(
        train_tokenizer(texts, tmp_path, vocab_size=500, **options)
    ) == trained_on_the_texts_themselves(texts, 500, **options)


@pytest.mark.parametrize("corpus", ["sample", "real"])
def test_an_ordinary_corpus_gives_the_vocabulary_of_its_texts(corpus, tmp_path):
    path = ROOT.parent / "shared" / "data" / "pretrain_corpus.jsonl.tar.bz2"
    if corpus == "sample":
        write_sample_corpus(tmp_path, documents=500, dialogues=10)
        path = tmp_path / "pretrain.jsonl"
    elif not path.exists():
        pytest.skip("no real corpus here")
    texts = list(islice(read_texts(path), 3000))
    assert model_of(
        train_tokenizer(texts, tmp_path / "t", vocab_size=2000)
    ) == trained_on_the_texts_themselves(texts, 2000)


def test_long_runs_train_and_come_back(tmp_path):
    tokenizer = train_tokenizer([*LONG_RUNS.values(), *TEXTS], tmp_path, vocab_size=500)
    for text in LONG_RUNS.values():
        assert tokenizer.decode(encode_text(tokenizer, text)) == text


def test_nfkc_is_a_switch_and_is_lossy(tmp_path, tokenizer, capsys):
    text = "１²，ＡＢＣ　㍿"
    folded = train_tokenizer(TEXTS, tmp_path, vocab_size=400, nfkc=True)
    assert (
        folded.decode(encode_text(folded, text))
        == unicodedata.normalize("NFKC", text)
        == "12,ABC 株式会社"
    )
    assert tokenizer.decode(encode_text(tokenizer, text)) == text
    assert eval_tokenizer(tmp_path)["round_trip"] is False
    assert "\nround_trip: False" in capsys.readouterr().out


def test_what_training_refuses(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=260 .* 261"):
        train_tokenizer(TEXTS, tmp_path, vocab_size=260)
    with pytest.raises(ValueError, match="got no text"):
        train_tokenizer([], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("documents", [1, 3, 20])
def test_a_few_documents_give_a_smaller_tokenizer_that_works_and_say_so(documents, tmp_path):
    with pytest.warns(UserWarning, match=r"This text gives \d\d\d entries, not 6,144"):
        small = train_tokenizer(TEXTS[:documents], tmp_path)
    assert 261 < len(small) < 1000 and tokenizer_hash(small) == tokenizer_hash(
        load_tokenizer(tmp_path)
    )
    assert max(i for text in TEXTS for i in encode_text(small, text)) < len(small)
    for text in (*TEXTS[:8], *HOSTILE):
        assert small.decode(encode_text(small, text)) == text


def interrupted(*args):
    raise KeyboardInterrupt


def test_a_stop_while_the_folder_is_written_leaves_none_that_passes_for_finished(
    tmp_path, monkeypatch, tokenizer
):
    def write_half(tokenizer, folder):
        tokenizer.backend_tokenizer.save(f"{folder}/tokenizer.json")
        raise KeyboardInterrupt

    (tmp_path / "half").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", write_half)
        train_tokenizer(TEXTS, tmp_path / "half", vocab_size=400)
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path / "half")


@pytest.mark.parametrize("written", [0, 1, 2])
def test_the_file_that_makes_a_folder_a_tokenizer_comes_last(written, tmp_path, monkeypatch):
    train_tokenizer(TEXTS[:50], tmp_path, vocab_size=300)
    before = tokenizer_hash(load_tokenizer(tmp_path))
    moved = iter(range(written))

    def stops(path):
        return atomic_path(path) if next(moved, None) is not None else interrupted()

    monkeypatch.setattr(tinyllm_lib.tokenizer.training, "atomic_path", stops)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(TEXTS, tmp_path, vocab_size=400)
    assert tokenizer_hash(load_tokenizer(tmp_path)) == before
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_else_lies_in_the_folder_stays(tmp_path):
    (tmp_path / "pretrain.jsonl").write_text("mine", encoding="utf-8")
    train_tokenizer(TEXTS, tmp_path, vocab_size=300)
    assert (tmp_path / "pretrain.jsonl").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_written_is_named_before_the_texts_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        train_tokenizer(interrupted, tmp_path / "tokenizer")


# ---- the folder


@pytest.fixture(scope="module")
def auto(tokenizer_folder):
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@given(text=tagged_text)
def test_transformers_loads_the_same_tokenizer(auto, tokenizer, text):
    assert auto(text)["input_ids"] == tokenizer(text)["input_ids"]
    if not any(tag in text for tag in SPECIAL_TOKENS):
        assert auto(text)["input_ids"] == encode_text(tokenizer, text)


def test_eval_tokenizer_reports_what_the_folder_holds(tokenizer_folder, capsys):
    report = eval_tokenizer(tokenizer_folder)
    assert report["vocab_size"] == 400
    assert report["special_tokens"] == {name: i for i, name in enumerate(SPECIAL_TOKENS)}
    assert (
        report["round_trip"] is report["special_tokens_round_trip"] is report["chat_agrees"] is True
    )
    out = capsys.readouterr().out
    assert out.count(": True") == 3
    assert "'<|im_end|>': 4" in out
    assert (
        r"<|im_start|>system\n你是一个AI助手<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
        in out
    )


def old_folder(folder):
    """A tokenizer as earlier programs of this family made it: NFKC, its own template, padding with
    <|im_end|>.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=6144,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (f"{chr(0x4E00 + n)}{chr(0x4E00 + n)}" for n in range(6144)), trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<unk>",
    }
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' +"
        " message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
        " '<|im_start|>assistant\n' }}{% endif %}"
    )
    other = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    extra = {"additional_special_tokens": ["<s>", "</s>"]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**names, **other, **extra}), encoding="utf-8"
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({**names, **extra}), encoding="utf-8"
    )
    return tokenizer


def test_an_old_folder_of_this_family_loads_and_encodes_as_before(tmp_path):
    before, now = old_folder(tmp_path), load_tokenizer(tmp_path)
    assert len(now) == before.get_vocab_size() == 6144
    assert [now.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    for text in (*TEXTS, *HOSTILE):
        assert now(text)["input_ids"] == before.encode(text).ids
        if not any(tag in text for tag in SPECIAL_TOKENS):
            assert encode_text(now, text) == before.encode(text).ids
    assert now.decode(encode_text(now, "，？１²")) == ",?12"
    for messages in DIALOGUES:
        rendered = now.apply_chat_template(messages, tokenize=False)
        assert encode_chat(now, messages).ids == before.encode(rendered).ids


def test_a_folder_that_holds_no_tokenizer_of_ours(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json: train one"):
        load_tokenizer(tmp_path)
    for damaged in ("{", "{}"):
        (tmp_path / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match="the tokenizer's files are damaged"):
            load_tokenizer(tmp_path)
    broken = re.sub(r"<\|im_(start|end)\|>", r"<|\1|>", tokenizer.backend_tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(broken, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no <\|im_start\|> and no <\|im_end\|>"):
        load_tokenizer(tmp_path)


# ---- a folder for other programs, and one from elsewhere


def test_the_folder_says_what_transformers_4_and_5_both_understand(tokenizer_folder, tmp_path):
    """4 knows neither the class nor the field that 5 would write; `slow` loads it in a 4 where
    there is one.
    """
    save_tokenizer(load_tokenizer(tokenizer_folder), tmp_path)
    for folder in (tokenizer_folder, tmp_path):
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert (
            config["additional_special_tokens"] == ["<s>", "</s>"]
            and "extra_special_tokens" not in config
        )
        assert "local" not in " ".join(config), "how it was loaded here"
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()


@pytest.mark.slow
def test_transformers_4_gives_the_same_ids(tokenizer, tokenizer_folder):
    python = os.environ.get("TINYLLM_PYTHON_TRANSFORMERS_4")  # an interpreter that has one
    if not python:
        pytest.skip("TINYLLM_PYTHON_TRANSFORMERS_4 names no interpreter")
    ids = [
        *(encode_text(tokenizer, text) for text in TEXTS),
        *(encode_chat(tokenizer, messages).ids for messages in DIALOGUES),
    ]
    program = """if True:
        import json, sys, transformers
        folder, texts, dialogues = json.load(sys.stdin)
        assert transformers.__version__.startswith("4.")
        t = transformers.AutoTokenizer.from_pretrained(folder)
        ids = [*(t(text)["input_ids"] for text in texts), *map(t.apply_chat_template, dialogues)]
        json.dump(ids, sys.stdout)"""
    given = json.dumps([str(tokenizer_folder), TEXTS, DIALOGUES])
    done = subprocess.run(
        [python, "-c", program],
        input=given,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ids


@pytest.mark.parametrize("tags", [True, False], ids=["as 0.1 wrote it", "as it is now"])
def test_the_template_that_is_handed_on_renders_in_plain_jinja(tags, tokenizer_folder, tmp_path):
    from jinja2 import Environment

    folder = shutil.copytree(tokenizer_folder, tmp_path / "before")
    if tags:
        template = marked((folder / "chat_template.jinja").read_text(encoding="utf-8"))
        assert "{% generation %}" in template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, tmp_path / "after")
    handed_on = Environment().from_string(
        (tmp_path / "after" / "chat_template.jinja").read_text(encoding="utf-8")
    )
    for messages in DIALOGUES[:4]:
        for add in (False, True):
            wanted = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add
            )
            assert handed_on.render(messages=messages, add_generation_prompt=add) == wanted


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role']"
    " }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if"
    " add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor"
    " %}<|assistant|>\n"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{{ '\n' }}{%"
    " endfor %}"
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LLAMA3, "start_header_id"),
        (ZEPHYR, r"<\|system\|>"),
        ("{{ bos_token }}" + CHATML + ASK, "'<s><"),
        (CHATML.replace("{{ '\n' }}", "") + ASK, r"<\|im_end\|><\|im_start\|>"),
        (CHATML.replace("m['content']", "m['content'] | trim") + ASK, "说<"),
        (CHATML, "expected ChatML"),
    ],
    ids=[
        "Llama 3's",
        "Zephyr's",
        "a token before it",
        "no line end",
        "trimmed",
        "no prompt for the reply",
    ],
)
def test_a_template_that_is_not_chatml_is_refused_wherever_it_would_be_used(
    template, said, tokenizer_folder, tmp_path
):
    folder = foreign(
        tokenizer_folder, tmp_path / "theirs", template, bos_token="<s>", eos_token="</s>"
    )
    with pytest.raises(
        ValueError,
        match=rf"theirs: the tokenizer's chat template writes .*{said}.*take the template out",
    ):
        load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder)  # not by our door
    with pytest.raises(ValueError, match="chats by no other"):
        encode_chat(theirs, DIALOGUES[0])


def test_a_chatml_template_in_other_words_is_taken_and_none_is_ours(tokenizer_folder, tmp_path):
    theirs = load_tokenizer(
        foreign(tokenizer_folder, tmp_path / "theirs", CHATML + ASK, eos_token="<|im_end|>")
    )
    bare = load_tokenizer(foreign(tokenizer_folder, tmp_path / "bare", eos_token="<|im_end|>"))
    assert bare.chat_template == CHAT_TEMPLATE
    for messages in DIALOGUES[:4]:
        ids = encode_chat(theirs, messages).ids
        assert (
            ids
            == theirs.apply_chat_template(messages, return_dict=False)
            == encode_chat(bare, messages).ids
        )


def test_a_tokenizer_of_another_kind_is_refused(tokenizer_folder, tmp_path):
    """As Llama 2's: words begin with ▁, bytes are written <0xE4>."""
    folder = foreign(tokenizer_folder, tmp_path / "theirs")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"] = json.loads(decoders.Metaspace().__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match="theirs: the tokenizer's decoder is Metaspace, expected ByteLevel"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("tokens", "ids", "stops"),
    [
        ({}, (None, 60, None), [60, 58]),
        ({"eos_token": "</s>"}, (None, 58, None), [60, 58]),
        (
            {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<unk>"},
            (57, 60, 56),
            [60, 58],
        ),
        ({"eos_token": "<s>", "pad_token": "<|im_end|>"}, (None, 57, 60), [60, 58, 57]),
    ],
)
def test_ids_are_the_tokenizer_s_own(tokens, ids, stops, tokenizer_folder, tmp_path):
    """What it has not is not made up, but for the end of a text: without one, texts end with
    <|im_end|>.
    """
    theirs = load_tokenizer(foreign(tokenizer_folder, tmp_path / "theirs", **tokens))
    assert tuple(token_ids(theirs).values()) == ids and stop_ids(theirs) == stops


def test_a_tokenizer_that_begins_every_text_with_a_token(tokenizer_folder, tmp_path):
    """As Llama's do: documents and prompts begin with it, dialogues do not, for ChatML has no such
    token.
    """
    theirs = load_tokenizer(
        foreign(tokenizer_folder, tmp_path / "theirs", bos="<s>", eos_token="<|im_end|>")
    )
    assert text_start(theirs) == [57] and theirs("法国")["input_ids"] == [
        57,
        *encode_text(theirs, "法国"),
    ]
    write_pretrain_tokens(["法国"], theirs, tmp_path / "tokens")
    assert np.fromfile(tmp_path / "tokens" / "shard_00000.bin", np.uint16).tolist() == [
        57,
        *encode_text(theirs, "法国"),
        60,
    ]
    assert encode_chat(theirs, DIALOGUES[0]).ids == theirs.apply_chat_template(
        DIALOGUES[0], return_dict=False
    )
    assert encode_chat(theirs, DIALOGUES[0]).ids[0] == 59


def test_an_added_token_is_its_own_text(tokenizer_folder, tmp_path):
    theirs = load_tokenizer(foreign(tokenizer_folder, tmp_path / "theirs"))
    theirs.add_tokens(["春 天"])
    assert encode_text(theirs, "春 天") == [400] and token_bytes(theirs, 400) == "春 天".encode()


# ---- dialogues


def test_ids_and_mask_of_a_dialogue(tokenizer):
    chat = encode_chat(tokenizer, dialogue("你好", "好。"))
    text = encode_text
    expected = [
        (3, 0),
        *[(i, 0) for i in text(tokenizer, "system\n你是一个AI助手")],
        (4, 0),
        *[(i, 0) for i in text(tokenizer, "\n")],
        (3, 0),
        *[(i, 0) for i in text(tokenizer, "user\n你好")],
        (4, 0),
        *[(i, 0) for i in text(tokenizer, "\n")],
        (3, 0),
        *[(i, 0) for i in text(tokenizer, "assistant\n")],
        *[(i, 1) for i in text(tokenizer, "好。")],
        (4, 1),  # the model learns to stop
        *[(i, 0) for i in text(tokenizer, "\n")],
    ]
    assert list(zip(chat.ids, chat.loss_mask, strict=True)) == expected
    assert (chat.dropped_turns, chat.cut_tokens, chat.cut_supervised) == (0, 0, 0)


def test_a_generation_prompt_ends_the_dialogue_and_is_not_learned(tokenizer):
    chat = encode_chat(tokenizer, dialogue("你好"), add_generation_prompt=True)
    assert tokenizer.decode(chat.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert not any(chat.loss_mask)
    template = tokenizer.apply_chat_template(
        dialogue("你好"), add_generation_prompt=True, return_dict=False
    )
    assert chat.ids == template


# Without quoted tags our one-pass encoding and the chat template must be the same. (With them they
# must not:
# a template renders to one string, where a quoted tag cannot be told from a real one.)
untagged = st.one_of(
    st.text(max_size=12).filter(lambda t: not any(tag in t for tag in SPECIAL_TOKENS)),
    st.sampled_from([t for t in HOSTILE if not any(tag in t for tag in SPECIAL_TOKENS)]),
)


@given(contents=st.lists(untagged, min_size=1, max_size=5), system=st.booleans())
def test_ids_and_mask_equal_the_chat_template(tokenizer, contents, system):
    messages = dialogue(*contents, system=system)
    chat = encode_chat(tokenizer, messages)
    assert (chat.ids, chat.loss_mask) == template_ids_and_mask(tokenizer, messages)


@pytest.mark.parametrize("share", [100, pytest.param(1, marks=pytest.mark.slow)])
def test_ids_and_mask_equal_the_chat_template_on_real_dialogues(tokenizer, share):
    if not REAL_DIALOGUES.is_file():
        pytest.skip(
            f"needs {REAL_DIALOGUES.name} in ../shared/data: real dialogues, not part of the"
            " repository"
        )
    dialogues = list(read_dialogues(REAL_DIALOGUES))[::share]
    for messages, chat in zip(dialogues, encode_chats(tokenizer, dialogues), strict=True):
        if any(tag in message["content"] for message in messages for tag in SPECIAL_TOKENS):
            assert chat.ids.count(4) == len(messages), messages  # here the template would be wrong
        else:
            assert (chat.ids, chat.loss_mask) == template_ids_and_mask(tokenizer, messages), (
                messages
            )


def test_many_dialogues_at_once_are_encoded_as_alone(tokenizer):
    dialogues = [*DIALOGUES, LONG, *(dialogue(text, text) for text in HOSTILE)]
    for max_length in (None, 40):
        assert encode_chats(tokenizer, dialogues, max_length=max_length) == [
            encode_chat(tokenizer, messages, max_length=max_length) for messages in dialogues
        ]


@pytest.mark.parametrize("reply", HOSTILE, ids=ascii)
def test_a_reply_is_learned_whole_whatever_it_begins_with(tokenizer, reply):
    chat = encode_chat(tokenizer, dialogue("问", reply, "再问", reply))
    assert learned_text(tokenizer, chat) == f"{reply}<|im_end|>" * 2


@pytest.mark.parametrize("content", [t for t in HOSTILE if "<" in t], ids=ascii)
def test_quoted_tags_neither_end_a_message_nor_open_a_reply(tokenizer, content):
    chat = encode_chat(tokenizer, dialogue(content, "好。"))
    assert learned_text(tokenizer, chat) == "好。<|im_end|>"
    assert chat.ids.count(3) == chat.ids.count(4) == 3
    assert f"user\n{content}<|im_end|>\n" in tokenizer.decode(chat.ids)


@given(contents=st.lists(tagged_text, min_size=2, max_size=6))
def test_only_replies_are_learned(tokenizer, contents):
    chat = encode_chat(tokenizer, dialogue(*contents))
    assert learned_text(tokenizer, chat) == "".join(
        f"{reply}<|im_end|>" for reply in contents[1::2]
    )
    assert len(chat) == len(chat.ids) == len(chat.loss_mask)
    assert chat.ids.count(4) == len(contents) + 1


# ---- too long


LONG = dialogue("法国的首都是哪里？", "巴黎。", "那日本呢？", "东京。", "那埃及呢？", "开罗。")


def test_a_long_dialogue_loses_whole_turns_from_the_front_and_keeps_the_system_message(tokenizer):
    last_two = encode_chat(tokenizer, [SYSTEM, *LONG[3:]])
    first = encode_chat(tokenizer, LONG[1:3])
    cut = encode_chat(tokenizer, LONG, max_length=len(last_two))
    assert (cut.ids, cut.loss_mask) == (last_two.ids, last_two.loss_mask)
    assert (cut.dropped_turns, cut.cut_tokens) == (2, 0)
    assert cut.cut_supervised == sum(first.loss_mask)

    last = encode_chat(tokenizer, [SYSTEM, *LONG[5:]])
    one_too_few = encode_chat(tokenizer, LONG, max_length=len(last_two) - 1)
    assert (one_too_few.ids, one_too_few.dropped_turns) == (last.ids, 4)


def test_a_dialogue_that_fits_exactly_is_not_touched(tokenizer):
    whole = encode_chat(tokenizer, LONG)
    assert encode_chat(tokenizer, LONG, max_length=len(whole)) == whole


def test_a_reply_too_long_for_the_context_loses_its_end(tokenizer):
    messages = dialogue("讲个故事", "从前有一座山。" * 30)
    whole, cut = encode_chat(tokenizer, messages), encode_chat(tokenizer, messages, max_length=50)
    assert (cut.ids, cut.loss_mask) == (whole.ids[:50], whole.loss_mask[:50])
    assert cut.cut_tokens == len(whole) - 50
    assert cut.cut_supervised == sum(whole.loss_mask[50:])
    assert (cut.ids[-1], cut.loss_mask[-1]) != (4, 1), (
        "a reply that was cut must not teach the model to stop"
    )


@given(
    max_length=st.integers(5, 140), index=st.integers(0, len(DIALOGUES) - 1), prompt=st.booleans()
)
def test_what_is_left_out_is_counted(tokenizer, max_length, index, prompt):
    messages = [SYSTEM, *LONG[1:], *DIALOGUES[index][1:]]
    whole = encode_chat(tokenizer, messages, add_generation_prompt=prompt)
    cut = encode_chat(tokenizer, messages, max_length=max_length, add_generation_prompt=prompt)
    assert len(cut) <= max_length or len(cut) == len(whole)
    assert sum(cut.loss_mask) + cut.cut_supervised == sum(whole.loss_mask)
    lost = [encode_chat(tokenizer, [m]) for m in messages[1 : 1 + cut.dropped_turns]]
    assert len(cut) + cut.cut_tokens + sum(map(len, lost)) == len(whole)
    assert (len(whole) <= max_length) == (cut == whole)


# ---- bad input


@pytest.mark.parametrize(("max_length", "prompt"), [(0, False), (-1, False), (2, True)])
def test_a_length_without_room_for_a_token_is_refused(tokenizer, max_length, prompt):
    with pytest.raises(ValueError, match=f"max_length is {max_length}, expected more than"):
        encode_chat(tokenizer, LONG, max_length=max_length, add_generation_prompt=prompt)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty dialogue"),
        (
            [SYSTEM, {"role": "human", "content": "你好"}],
            "message 2: expected a role of system, user, assistant",
        ),
        ([{"content": "你好"}], "message 1: .* found {'content': '你好'}"),
        ([{"role": "user", "content": None}], "message 1: .* found .*None}"),
        ([{"role": "user"}], "message 1: .* found {'role': 'user'}"),
        ([SYSTEM, "你好"], "message 2: expected .* found '你好'"),
        ({"id": 1, "conversations": []}, "message 1: expected .* found 'id'"),
        (dialogue("你好", "\ud83d"), "message 3: character 1 is .* half of a surrogate pair"),
    ],
)
def test_what_encode_chat_refuses(tokenizer, messages, message):
    with pytest.raises(ValueError, match=message):
        encode_chat(tokenizer, messages)
    with pytest.raises(ValueError, match=f"dialogue 8, .*{message}"):
        encode_chats(tokenizer, [LONG, messages], first=7)
