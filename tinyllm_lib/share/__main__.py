"""Old checkpoints in; GGUF, model card, hub and server out.

python -m tinyllm_lib.share import OLD.pth TOKENIZER OUT    an old checkpoint -> a new one
python -m tinyllm_lib.share gguf RUN [OUT.gguf]             a GGUF file, an Ollama Modelfile
python -m tinyllm_lib.share card RUN                        the model card, printed
python -m tinyllm_lib.share publish RUN OWNER/NAME          to Hugging Face or ModelScope
python -m tinyllm_lib.share serve RUN                       OpenAI-compatible, until Ctrl-C
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable

from tinyllm_lib import share
from tinyllm_lib.data import utf8_output

COMMANDS: dict[str, Callable] = {"import": share.import_checkpoint, "gguf": share.export_gguf}
COMMANDS |= {"card": share.model_card, "publish": share.publish, "serve": share.serve}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    utf8_output()
    options = vars(_parser().parse_args(argv))
    command = options.pop("command")
    try:
        made = COMMANDS[command](**options)
        if command != "serve":
            print(made)
            return 0
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends us ends the server
        with made as server:
            print(f"base_url {server.url}\nmodel    {server.model}\nCtrl-C ends it.", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinyllm_lib.share", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser
    old, gguf, card, hub, server = map(add, COMMANDS)
    for name in ("path", "tokenizer_dir", "out_dir"):
        old.add_argument(name)
    for name, default in (("--n-heads", 16), ("--n-kv-heads", 8), ("--max-seq-len", 512)):
        old.add_argument(name, type=int, default=default, help="default: %(default)s")
    for one in (gguf, card, hub, server):
        one.add_argument("folder", metavar="RUN", help="the folder of a run or checkpoint")
    gguf.add_argument("out", nargs="?")
    gguf.add_argument("--dtype", default="f16", help="f32, f16 (default), bf16 or q8_0")
    hub.add_argument("repo_id", metavar="OWNER/NAME")
    hub.add_argument("--hub", default="huggingface", help="or modelscope")
    hub.add_argument("--public", dest="private", action="store_false", help="visible to all")
    hub.add_argument("--with-file", dest="extra_files", action="append", default=[], metavar="FILE")
    for one in (card, hub):
        one.add_argument("--license", help="of the weights, for example apache-2.0")
    server.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
