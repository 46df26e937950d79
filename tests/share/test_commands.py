"""What Hugging Face's own programs make of a checkpoint folder, and the command line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.old_model import OldModel
from helpers.tiny import DIALOGUES, ROOT, TEXTS, random_run
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tinyllm_lib.generate import TextGenerator, generate
from tinyllm_lib.model import Transformer, latest_checkpoint
from tinyllm_lib.share import __main__ as share
from tinyllm_lib.tokenizer import encode_chat, encode_text

pytest_plugins = ["helpers.tiny_fixtures"]


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A run whose model ends its replies now and then: `<|im_end|>` made likelier."""
    return random_run(tmp_path_factory.mktemp("run"), tokenizer, lambda weight: weight[4].mul_(2))


@pytest.fixture(scope="module")
def folder(run):
    return latest_checkpoint(run)


@pytest.fixture(scope="module")
def auto(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


# ---- out: Hugging Face


def test_auto_classes_know_the_ends_and_the_padding(auto, folder):
    model, tokenizer = auto
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    ) == (3, 4, 0, 0)
    written = json.loads((folder / "generation_config.json").read_text("utf-8"))
    for config in (model.generation_config.to_dict(), written):
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (
            3,
            [4, 2],
            0,
        )
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (
        3,
        4,
        0,
    )


def test_auto_tokenizer_adds_nothing_and_gives_text_back(auto):
    _, tokenizer = auto
    for text in TEXTS[:20]:
        assert tokenizer(text)["input_ids"] == encode_text(tokenizer, text)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_chat_template_gives_the_ids_that_training_had(auto):
    _, tokenizer = auto
    for messages in DIALOGUES[:12]:
        assert (
            tokenizer.apply_chat_template(messages, return_dict=False)
            == encode_chat(tokenizer, messages).ids
        )
        asked = encode_chat(tokenizer, messages[:-1], add_generation_prompt=True).ids
        assert (
            tokenizer.apply_chat_template(
                messages[:-1], add_generation_prompt=True, return_dict=False
            )
            == asked
        )


def test_generate_writes_our_greedy_tokens_and_stops_where_we_do(auto, folder):
    """A padded batch of several lengths: transformers' eos, padding and attention mask, and ours,
    agree.
    """
    model, tokenizer = auto
    ours = Transformer.from_pretrained(folder)
    prompts = [encode_text(tokenizer, text)[: 3 + 2 * i] for i, text in enumerate(TEXTS[:12])]
    expected = generate(ours, prompts, max_new_tokens=32, temperature=0)
    assert {g.finish for g in expected} == {"stop", "length"}
    tokenizer.padding_side = "left"
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    rows = model.generate(**batch, max_new_tokens=32, do_sample=False)[
        :, batch["input_ids"].shape[1] :
    ].tolist()
    for row, theirs in zip(rows, expected, strict=True):
        assert row[: len(theirs.ids)] == theirs.ids
        rest = row[len(theirs.ids) :]
        assert rest == [] or (rest[0] in (4, 2) and set(rest[1:]) <= {0})


def test_the_pipeline_replies_to_messages_as_we_do(folder):
    """These random weights also write bytes that are no character: U+FFFD there, nothing in our
    text.
    """
    chat = pipeline("text-generation", model=str(folder))
    messages = DIALOGUES[0][:2]
    reply = chat(messages, max_new_tokens=24, do_sample=False, return_full_text=False)[0][
        "generated_text"
    ]
    ours = TextGenerator(folder).replies([messages], max_new_tokens=24)[0]
    assert len(ours) > 8 and reply.replace("\ufffd", "") == ours


# ---- in: any Llama folder of this shape


LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 48,
}


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_written_by_transformers_loads(tied, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(**LLAMA, tie_word_embeddings=tied, initializer_range=0.1)
    ).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(5, 97, (2, 48))
    with torch.no_grad():
        torch.testing.assert_close(
            Transformer.from_pretrained(tmp_path)(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            "rope scaling",
        ),
        ({"attention_bias": True}, "biases in attention or MLP"),
        ({"mlp_bias": True}, "biases in attention or MLP"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_a_llama_of_another_shape_is_refused_by_name(change, message, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**{**LLAMA, **change})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)


# ---- the command line


def test_help_names_every_command(capsys):
    for arguments in (
        ["--help"],
        *([name, "--help"] for name in ("import", "gguf", "card", "publish", "serve")),
    ):
        with pytest.raises(SystemExit) as ended:
            share.main(arguments)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    for word in (
        "import OLD.pth",
        "--n-kv-heads",
        "--dtype",
        "--hub",
        "--public",
        "--port",
        "default: 16",
    ):
        assert word in out, word


def test_import_card_and_gguf_from_a_terminal(tokenizer_folder, tmp_path, capsys):
    pytest.importorskip("gguf", reason="gguf is not installed: make setup")
    torch.manual_seed(0)
    (tmp_path / "我的 模型").mkdir()
    tokenizer_folder = shutil.copytree(tokenizer_folder, tmp_path / "我的 模型" / "tokenizer")
    torch.save(OldModel(400).state_dict(), tmp_path / "我的 模型" / "old.pth")
    new = tmp_path / "旧 old"
    heads = ["--n-heads", "8", "--n-kv-heads", "2", "--max-seq-len", "64"]
    assert (
        share.main(
            [
                "import",
                str(tmp_path / "我的 模型" / "old.pth"),
                str(tokenizer_folder),
                str(new),
                *heads,
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.strip() == str(new)
    assert share.main(["gguf", str(new), "--dtype", "q8_0"]) == 0
    assert capsys.readouterr().out.strip() == str(new / "旧 old-q8_0.gguf")
    assert (new / "旧 old-q8_0.Modelfile").is_file()
    assert (new / "旧 old-q8_0.gguf").read_bytes()[:4] == b"GGUF"
    assert share.main(["card", str(new), "--license", "mit"]) == 0
    assert "license: mit" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["cp1252", "gbk"])
def test_what_it_prints_is_utf_8_whatever_the_console_speaks(encoding, folder, tmp_path):
    """`card chat > README.md` where the locale is another; a path with a space and Chinese
    characters.
    """
    pytest.importorskip("gguf", reason="gguf is not installed: make setup")
    mine = tmp_path / "我的 模型" / "step_000005"
    shutil.copytree(folder, mine)
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    said = []
    for arguments in (
        ["card", mine],
        ["gguf", mine, mine / "小 f16.gguf"],
        ["gguf", mine / "没有"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tinyllm_lib.share", *map(str, arguments)],
            capture_output=True,
            env=env,
        )
        said.append((done.returncode, (done.stdout or done.stderr).decode("utf-8")))
    (card, text), (gguf, paths), (error, why) = said
    assert (card, gguf, error) == (0, 0, 2)
    assert "你是一个AI助手" in text and paths.strip() == str(mine / "小 f16.gguf")
    assert why.startswith("error: ") and "没有" in why


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert (
        share.main(["import", str(tmp_path / "no.pth"), str(tmp_path), str(tmp_path / "new")]) == 2
    )
    assert share.main(["publish", str(tmp_path), "no-owner"]) == 2
    assert share.main(["gguf", "no-such-run"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)


def test_it_starts_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm_lib.share", "--help"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and "publish RUN OWNER/NAME" in done.stdout
