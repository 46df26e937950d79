"""What a model computes on its way, as transformers and the model's own logits have it."""

import pytest
import torch
from helpers.small_model import TEXTS, make_model

from tinyllm_lib.course.inside import attention_maps, next_token_distribution
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.tokenizer import encode_text, token_bytes, train_tokenizer


def test_attention_maps_are_those_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    model = make_model(97)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(5, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps, reference = attention_maps(model, ids), theirs(ids, output_attentions=True).attentions
    torch.testing.assert_close(maps, torch.stack(reference), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]), rtol=1e-5, atol=1e-5)


def test_next_token_distribution(tmp_path):
    tokenizer = train_tokenizer(TEXTS, tmp_path, vocab_size=300)
    generator = TextGenerator.from_model(make_model(len(tokenizer), context=96), tokenizer)
    with torch.no_grad():
        logits = generator.model(torch.tensor([encode_text(tokenizer, "法国的")]))
    expected = logits[0, -1].softmax(-1).sort(descending=True)
    tokens, shares = next_token_distribution(generator, "法国的", top=300)
    assert shares == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert sum(shares) == pytest.approx(1)
    assert tokens[0] == token_bytes(tokenizer, expected.indices[0].item())
    likeliest = next_token_distribution(generator, [{"role": "user", "content": "你好"}], top=1)[0]
    reply = generator.chat("你好", temperature=0, max_new_tokens=1)
    assert likeliest[0].decode(errors="ignore") == reply
