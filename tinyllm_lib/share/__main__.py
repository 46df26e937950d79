"""Old checkpoints in; GGUF, model card, hub and server out.

    python -m tinyllm_lib.share import OLD.pth TOKENIZER OUT      an old checkpoint -> a folder
    python -m tinyllm_lib.share gguf RUN [OUT.gguf]               for llama.cpp and Ollama
    python -m tinyllm_lib.share card RUN                          the model card, printed
    python -m tinyllm_lib.share publish RUN OWNER/NAME            to Hugging Face or ModelScope
    python -m tinyllm_lib.share serve RUN                         an endpoint, until Ctrl-C

RUN is a run or checkpoint folder, or a run's name in the workspace. For transformers nothing is
converted: a checkpoint folder is what it loads.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyllm_lib.data import get_workspace, utf8_output
from tinyllm_lib.share.card import model_card
from tinyllm_lib.share.gguf_file import DTYPES, export_gguf
from tinyllm_lib.share.hub import HUBS, publish
from tinyllm_lib.share.modelfile import modelfile_path
from tinyllm_lib.share.old_layout import import_checkpoint
from tinyllm_lib.share.server import NEEDS, ServeError, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    utf8_output()
    options = vars(_parser().parse_args(argv))
    try:
        options.pop("do")(**options)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _run(name: str) -> Path:
    return Path(name) if Path(name).exists() else get_workspace().run(name)


def _import(file: str, tokenizer: str, out: str, **options: int) -> None:
    print(import_checkpoint(file, tokenizer, out, **options))


def _gguf(run: str, out: str | None, dtype: str) -> None:
    folder = _run(run)
    file = export_gguf(folder, out or folder / f"{folder.name}-{dtype}.gguf", dtype)
    print(file, modelfile_path(file), sep="\n")


def _card(run: str, license: str | None) -> None:
    print(model_card(_run(run), license=license))


def _publish(run: str, repo_id: str, public: bool, **options) -> None:
    print(publish(_run(run), repo_id, private=not public, **options))


def _serve(run: str, program: str, port: int) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us ends the server too
    with serve(run if program == "llama_cpp" else _run(run), program, port=port) as server:
        print(f"base_url {server.url}\nmodel    {server.model}\nCtrl-C ends it.", flush=True)
        while True:
            time.sleep(3600)


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.share", description=__doc__, formatter_class=as_written
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable, help: str):
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(do=do)
        return sub.add_argument

    default = "default: %(default)s"
    add = command("import", _import, "an old .pth state dict becomes a checkpoint folder")
    add("file", metavar="OLD.pth", help="state dict with interleaved rotary pairs")
    add("tokenizer", metavar="TOKENIZER", help="folder of the tokenizer that it was trained with")
    add("out", metavar="OUT", help="new folder to write")
    add("--n-heads", type=int, default=16, help=f"query heads; shapes cannot tell ({default})")
    add("--n-kv-heads", type=int, default=8, help=f"key/value heads ({default})")
    add("--max-seq-len", type=int, default=512, help=f"context in tokens ({default})")

    add = command("gguf", _gguf, "a GGUF file for llama.cpp, and an Ollama Modelfile beside it")
    add("run", metavar="RUN")
    add("out", metavar="OUT.gguf", nargs="?", help="default: RUN/<name>-<dtype>.gguf")
    add("--dtype", choices=DTYPES, default="f16", help=f"of the matrices ({default})")

    license = "of the weights, as the hub spells it, for example apache-2.0"
    add = command("card", _card, "the model card of a run, printed")
    add("run", metavar="RUN")
    add("--license", help=license)

    add = command("publish", _publish, "uploads a checkpoint with its card")
    add("run", metavar="RUN")
    add("repo_id", metavar="OWNER/NAME")
    add("--hub", choices=HUBS, default="huggingface", help=default)
    add("--public", action="store_true", help="a new repository is visible to all at once")
    add("--license", help=license)
    more = "upload this too, for example a GGUF file"
    add("--with-file", action="append", default=[], dest="extra_files", metavar="FILE", help=more)

    add = command("serve", _serve, "an OpenAI-compatible endpoint on this machine, until Ctrl-C")
    add("run", metavar="RUN", help="for llama_cpp: a GGUF file")
    add("--program", choices=NEEDS, default="transformers", help=default)
    add("--port", type=int, default=8000, help=default)
    return parser


if __name__ == "__main__":
    sys.exit(main())
