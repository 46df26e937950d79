"""Old checkpoints in; GGUF, model card, hub and server out.

    python -m tinyllm_lib.share import OLD.pth TOKENIZER OUT    an old checkpoint -> a new one
    python -m tinyllm_lib.share gguf RUN [OUT.gguf]             a GGUF file, an Ollama Modelfile
    python -m tinyllm_lib.share card RUN                        the model card, printed
    python -m tinyllm_lib.share publish RUN OWNER/NAME          to Hugging Face or ModelScope
    python -m tinyllm_lib.share serve RUN                       OpenAI-compatible, until Ctrl-C

RUN is a run or checkpoint folder, or a run's name in the workspace. For transformers nothing is
converted: a checkpoint folder is what it loads.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyllm_lib.data import find_run, utf8_output
from tinyllm_lib.share.card import model_card
from tinyllm_lib.share.gguf_file import DTYPES, export_gguf, modelfile_path
from tinyllm_lib.share.hub import HUBS, publish
from tinyllm_lib.share.old_layout import import_checkpoint
from tinyllm_lib.share.server import NEEDS, ServeError, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    utf8_output()
    try:
        _do(_parser().parse_args(argv))
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _do(o: argparse.Namespace) -> None:
    if o.command == "import":
        heads = (o.n_heads, o.n_kv_heads)
        print(import_checkpoint(o.file, o.tokenizer, o.out, *heads, max_seq_len=o.max_seq_len))
        return
    is_file = o.command == "serve" and o.program == "llama_cpp"
    run = Path(o.run) if is_file else find_run(o.run)
    if o.command == "gguf":
        file = export_gguf(run, o.out or run / f"{run.name}-{o.dtype}.gguf", o.dtype)
        print(file, modelfile_path(file), sep="\n")
    elif o.command == "card":
        print(model_card(run, license=o.license))
    elif o.command == "publish":
        options = {"private": not o.public, "license": o.license, "extra_files": o.with_file}
        print(publish(run, o.repo_id, o.hub, **options))
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends us ends the server
        with serve(run, o.program, port=o.port) as server:
            print(f"base_url {server.url}\nmodel    {server.model}\nCtrl-C ends it.", flush=True)
            while True:
                time.sleep(3600)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinyllm_lib.share", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> Callable:
        return commands.add_parser(name, help=help, description=help).add_argument

    default = "default: %(default)s"
    add = command("import", "an old .pth state dict becomes a checkpoint folder")
    add("file", metavar="OLD.pth", help="state dict with interleaved rotary pairs")
    add("tokenizer", metavar="TOKENIZER", help="folder of the tokenizer that it was trained with")
    add("out", metavar="OUT", help="new folder to write")
    add("--n-heads", type=int, default=16, help=f"query heads; shapes cannot tell ({default})")
    add("--n-kv-heads", type=int, default=8, help=f"key/value heads ({default})")
    add("--max-seq-len", type=int, default=512, help=f"context in tokens ({default})")

    add = command("gguf", "a GGUF file for llama.cpp, and an Ollama Modelfile beside it")
    add("run", metavar="RUN")
    add("out", metavar="OUT.gguf", nargs="?", help="default: RUN/<name>-<dtype>.gguf")
    add("--dtype", choices=DTYPES, default="f16", help=f"of the matrices ({default})")

    license = "of the weights, as the hub spells it, for example apache-2.0"
    add = command("card", "the model card of a run, printed")
    add("run", metavar="RUN")
    add("--license", help=license)

    add = command("publish", "uploads a checkpoint with its card")
    add("run", metavar="RUN")
    add("repo_id", metavar="OWNER/NAME")
    add("--hub", choices=HUBS, default="huggingface", help=default)
    add(
        "--public",
        action="store_true",
        help="visible to all at once; else a new repository is private",
    )
    add("--license", help=license)
    more = "upload this too, for example a GGUF file"
    add("--with-file", action="append", default=[], metavar="FILE", help=more)

    add = command("serve", "an OpenAI-compatible endpoint on this machine, until Ctrl-C")
    add("run", metavar="RUN", help="for llama_cpp: a GGUF file")
    add("--program", choices=NEEDS, default="transformers", help=default)
    add("--port", type=int, default=8000, help=default)
    return parser


if __name__ == "__main__":
    sys.exit(main())
