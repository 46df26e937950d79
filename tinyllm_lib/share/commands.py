"""Every door: old checkpoints in; GGUF, model card, hub and server out.

    python -m tinyllm_lib.share import OLD.pth TOKENIZER OUT      an old checkpoint -> a checkpoint folder
    python -m tinyllm_lib.share gguf RUN [OUT.gguf]               a GGUF file for llama.cpp, and an Ollama Modelfile
    python -m tinyllm_lib.share card RUN                          the model card, printed
    python -m tinyllm_lib.share publish RUN OWNER/NAME            model and card to Hugging Face or ModelScope
    python -m tinyllm_lib.share serve RUN                         an OpenAI-compatible endpoint, until Ctrl-C

RUN is a run or checkpoint folder, or a run's name in the workspace. For transformers nothing is
converted: a checkpoint folder is what it loads. The work is done in `old_layout`, `gguf_file`,
`model_card` and `serve`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tinyllm_lib.data import get_workspace, utf8_output
from tinyllm_lib.share.card import model_card, publish
from tinyllm_lib.share.gguf_file import DTYPES, export_gguf, modelfile_path
from tinyllm_lib.share.old_layout import import_checkpoint
from tinyllm_lib.share.server import NEEDS, ServeError, serve

__all__ = ["export_gguf", "import_checkpoint", "main", "model_card", "publish", "serve"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 2 after an error in what was asked for, 130 after
    Ctrl-C.
    """
    utf8_output()
    options = _parser().parse_args(argv)
    try:
        options.do(options)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _run(name: str) -> Path:
    return Path(name) if Path(name).exists() else get_workspace().run(name)


def _import(o: argparse.Namespace) -> None:
    print(
        import_checkpoint(
            o.file, o.tokenizer, o.out, o.n_heads, o.n_kv_heads, max_seq_len=o.max_seq_len
        )
    )


def _gguf(o: argparse.Namespace) -> None:
    run = _run(o.run)
    out = export_gguf(run, o.out or run / f"{run.name}-{o.dtype}.gguf", o.dtype)
    print(out, modelfile_path(out), sep="\n")


def _card(o: argparse.Namespace) -> None:
    print(model_card(_run(o.run), license=o.license))


def _publish(o: argparse.Namespace) -> None:
    print(
        publish(
            _run(o.run),
            o.repo_id,
            o.hub,
            private=not o.public,
            license=o.license,
            extra_files=o.with_file,
        )
    )


def _serve(o: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us ends the server too
    with serve(
        o.run if o.program == "llama_cpp" else _run(o.run), o.program, port=o.port
    ) as server:
        print(f"base_url {server.url}\nmodel    {server.model}\nCtrl-C ends it.", flush=True)
        while True:
            time.sleep(3600)


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.share", description=__doc__, formatter_class=as_written
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do, help: str):
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(do=do)
        return sub.add_argument

    add = command("import", _import, "an old .pth state dict becomes a checkpoint folder")
    add("file", metavar="OLD.pth", help="state dict with interleaved rotary pairs")
    add(
        "tokenizer",
        metavar="TOKENIZER",
        help="folder of the tokenizer that the model was trained with",
    )
    add("out", metavar="OUT", help="new folder to write")
    add(
        "--n-heads",
        type=int,
        default=16,
        help="query heads; shapes cannot tell (default: %(default)s)",
    )
    add("--n-kv-heads", type=int, default=8, help="key/value heads (default: %(default)s)")
    add("--max-seq-len", type=int, default=512, help="context in tokens (default: %(default)s)")

    add = command("gguf", _gguf, "a GGUF file for llama.cpp, and an Ollama Modelfile beside it")
    add("run", metavar="RUN")
    add("out", metavar="OUT.gguf", nargs="?", help="default: RUN/<name>-<dtype>.gguf")
    add(
        "--dtype",
        choices=tuple(DTYPES),
        default="f16",
        help="of the matrices (default: %(default)s)",
    )

    add = command("card", _card, "the model card of a run, printed")
    add("run", metavar="RUN")
    add("--license", help="of the weights, as the hub spells it, for example apache-2.0")

    add = command("publish", _publish, "uploads a checkpoint with its card")
    add("run", metavar="RUN")
    add("repo_id", metavar="OWNER/NAME")
    add(
        "--hub",
        choices=("huggingface", "modelscope"),
        default="huggingface",
        help="default: %(default)s",
    )
    add(
        "--public",
        action="store_true",
        help="visible to all at once; without it a new repository is private",
    )
    add("--license", help="of the weights, as the hub spells it, for example apache-2.0")
    add(
        "--with-file",
        action="append",
        default=[],
        metavar="FILE",
        help="upload this too, for example a GGUF file",
    )

    add = command("serve", _serve, "an OpenAI-compatible endpoint on this machine, until Ctrl-C")
    add("run", metavar="RUN", help="for llama_cpp: a GGUF file")
    add("--program", choices=tuple(NEEDS), default="transformers", help="default: %(default)s")
    add("--port", type=int, default=8000, help="default: %(default)s")
    return parser
