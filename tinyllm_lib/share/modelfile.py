"""The Modelfile from which Ollama makes a model of a GGUF file."""

from hashlib import blake2b
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import SYSTEM_PROMPT, atomic_path
from tinyllm_lib.tokenizer import stop_ids

MODELFILE = '''\
# ollama create NAME -f "{name}", then ollama run NAME
FROM ./{file}
TEMPLATE """{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
"""
SYSTEM {system}
{stops}
PARAMETER num_ctx {context}
PARAMETER temperature 0.7
PARAMETER top_k 50
'''


def modelfile_path(gguf: str | Path) -> Path:
    """chat-f16.gguf -> chat-f16.Modelfile: each GGUF file has its own."""
    return Path(gguf).with_suffix(".Modelfile")


def write_modelfile(gguf: Path, context: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a GGUF file's Modelfile: ChatML, what stops, the context. One that somebody edited
    stays, and that is said.
    """
    path, stops = modelfile_path(gguf), tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))
    text = MODELFILE.format(
        file=gguf.name,
        name=path.name,
        context=context,
        system=SYSTEM_PROMPT,
        stops="\n".join(f"PARAMETER stop {token}" for token in stops),
    )
    if path.exists():
        found = path.read_text(encoding="utf-8", errors="replace")
        if found != _sealed("".join(found.splitlines(keepends=True)[:-1])):
            print(
                f"{path} was edited: it stays. (Move it away for a new one at the next export.)",
                flush=True,
            )
            return
    with atomic_path(path) as temporary:
        temporary.write_text(_sealed(text), encoding="utf-8")


def _sealed(text: str) -> str:
    """With a sum of the text as last line: while it holds, nobody has edited it."""
    total = blake2b(text.encode(), digest_size=8).hexdigest()
    note = "the sum of the lines above. Edit them, and no export touches this file again."
    return f"{text}# {total}: {note}\n"
