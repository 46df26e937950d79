"""A web page for the classroom: the sampling explorer and a chat with the class's own model.

    python -m tinyllm_lib.course.demo [RUN] [--host 127.0.0.1] [--port 8866] [--allow-host NAME]

One process holds one model, and every request brings all that it needs: the conversation, the
tokens chosen so far, the settings. So visitors cannot disturb each other, and thirty of them need
hardly more memory than one. The model computes one token at a time, for one visitor after the
other, so that nobody waits for a neighbour's long reply. Visitors send text and numbers; there is
no kernel behind the page, and no way to run code. The server is in `visitors.py`.
"""

from __future__ import annotations

import argparse
import errno
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from html import escape
from ipaddress import ip_address
from pathlib import Path

from tinyllm_lib.course.chat import Written, write_ids
from tinyllm_lib.course.demo.visitors import Server, host_name, is_loopback
from tinyllm_lib.course.views import html
from tinyllm_lib.course.views.steps import CANDIDATES, SLIDERS, Steps, settings, steps_html
from tinyllm_lib.course.workspace import find_run
from tinyllm_lib.data import utf8_output
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.model import step_folders, step_of, weight_files
from tinyllm_lib.train import is_out_of_memory, run_config

PAGE = Path(__file__).resolve().parent / "page"
MOST_MESSAGES, MOST_CHARACTERS = 400, 60_000  # of one request; a context holds far less
MOST_STEPS = 10  # tokens of one request of the explorer
NO_RUN = """\
demo: there is no chat run yet: {run} holds no checkpoint. Run `make course` (or notebooks 05 and
06) first, set TINYLLM_PROFILE to the profile that you ran, or name another run:
python -m tinyllm_lib.course.demo RUN."""
OPEN_TO_ALL = """\
Everybody who can reach this machine can open it. They can talk to the model, and nothing else."""
START = {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


class Classroom:
    """The model that all visitors share, and what each of their requests is answered with.

    Args:
        max_new_tokens: longest reply.
    """

    def __init__(self, generator: TextGenerator, *, max_new_tokens: int = 256):
        if max_new_tokens < 1:  # every reply would be empty
            raise ValueError(f"--max-new-tokens is {max_new_tokens}, expected 1 or more.")
        self.generator, self.max_new_tokens = generator, max_new_tokens
        self._model = threading.Lock()  # two computations at once would only slow each other down

    def chat(self, request: dict) -> Iterator[dict]:
        """The reply to the last of `messages`, piece by piece; the last row says end.

        Raises:
            ValueError: a request that cannot be answered, before the first piece.
        """
        messages, sampling = _messages(request), _sampling(request)
        ids, limit, note = self.generator.chat_prompt(messages, self.max_new_tokens)
        if note:
            yield _row(Written("", note=note))
        sampling = replace(sampling, seed=secrets.randbits(32))
        with closing(write_ids(self.generator, ids, limit, sampling)) as pieces:
            while True:
                # Not while a piece is sent: a visitor who reads slowly keeps nobody waiting.
                with self._model:
                    piece = next(pieces, None)
                if piece is None:
                    break
                yield _row(piece)
        yield _row(Written("")) | {"end": True}

    def step(self, request: dict) -> dict:
        """One move of the sampling explorer: the text so far and the candidates for the next token.

        Args:
            request: prompt, chat (whether it is a message), chosen (token ids), sampling, and a
                move: draw (how many tokens) or take (a token id) or neither.

        Raises:
            ValueError: a request that cannot be answered.
        """
        prompt, chosen = request.get("prompt"), request.get("chosen", [])
        draw, take, sampling = request.get("draw", 0), request.get("take"), _sampling(request)
        whole = isinstance(chosen, list) and all(type(token) is int for token in chosen)
        if not isinstance(prompt, str) or not whole:
            raise ValueError('expected "prompt": text and "chosen": [token ids].')
        if type(draw) is not int or type(take) not in (int, type(None)):
            raise ValueError('expected "draw": how many tokens, or "take": a token id.')
        if len(prompt) > MOST_CHARACTERS:
            told = f"expected at most {MOST_CHARACTERS:,}."
            raise ValueError(f"the prompt has {len(prompt):,} characters, {told}")
        if not all(0 <= token < len(self.generator.tokenizer) for token in chosen):
            raise ValueError("a chosen token is not in the vocabulary.")
        start = {"chat": bool(request.get("chat")), "seed": secrets.randbits(32)}
        steps = Steps(self.generator, prompt, chosen=chosen, **start)
        with self._model:
            if take is not None:
                steps.take(take)
            for _ in range(min(draw, MOST_STEPS)):
                if not steps.end:
                    steps.draw(sampling)
            best = [] if steps.end else steps.candidates(sampling, CANDIDATES)
            text = steps_html(steps, prompt, 0 if steps.end else steps.kept(sampling))
        largest = max((max(c.before, c.after) for c in best), default=1.0)
        bars = [html.candidate_bar(candidate, largest) for candidate in best]
        rows = [
            {"token": c.token, "name": c.name, "bar": bar}
            for c, bar in zip(best, bars, strict=True)
        ]
        return {"chosen": steps.chosen, "text": text, "candidates": rows, "ended": bool(steps.end)}

    def files(self) -> dict[str, tuple[str, bytes]]:
        """Path -> (content type, content): the page, with this model's name, and its script."""
        model, context = self.generator.model, self.generator.context
        size = f"{model.num_parameters():,} parameters, context {context} tokens"
        page = (PAGE / "demo.html").read_text(encoding="utf-8")
        for place, text in {
            "<!--css-->": f"<style>{html.CSS}</style>",
            "<!--model-->": escape(f"{model_name(self.generator.folder)}: {size}"),
            "<!--chat-sliders-->": _sliders("chat"),
            "<!--step-sliders-->": _sliders("step"),
        }.items():
            page = page.replace(place, text)
        script = (PAGE / "demo.js").read_bytes()
        return {
            "/": ("text/html; charset=utf-8", page.encode()),
            "/demo.js": ("text/javascript; charset=utf-8", script),
        }


def model_name(folder: Path | None) -> str:
    """Which model this is, for people: its run, and how far that had come at this checkpoint."""
    if folder is None or folder not in step_folders(run := folder.parent.parent):
        return folder.name if folder else "a model"
    return f"{run.name}, step {step_of(folder)} of {run_config(run).get('steps', '?')}"


def _row(piece: Written) -> dict:
    return {"text": piece.text, "html": html.written(piece), "note": piece.note}


def _messages(request: dict) -> list[dict]:
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) and messages else [None]:
        whole = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not whole or message.get("role") not in ("user", "assistant"):
            form = '[{"role": "user" or "assistant", "content": text}, …]'
            raise ValueError(f'expected "messages": {form}.')
    characters = sum(len(message["content"]) for message in messages)
    if len(messages) > MOST_MESSAGES or characters > MOST_CHARACTERS:
        most = f"{MOST_MESSAGES} messages or {MOST_CHARACTERS:,} characters"
        raise ValueError(f"the conversation has over {most}: begin a new one.")
    return messages


def _sampling(request: dict) -> Sampling:
    given = request.get("sampling", {})
    known = isinstance(given, dict) and set(given) <= set(SLIDERS)
    if not known or not all(type(value) in (int, float) for value in given.values()):
        raise ValueError(f'expected "sampling": numbers for some of {", ".join(SLIDERS)}.')
    if not all(abs(v) < 1e6 for v in given.values()):  # NaN is not, either
        raise ValueError('a number of "sampling" is too large.')
    return settings(**{**START, **given})


def _sliders(group: str) -> str:
    return "".join(
        f'<label title="{escape(tip)}"><span>{escape(label)}</span><input type="range"'
        f' name="{name}" data-group="{group}" min="{low}" max="{high}" step="{step}"'
        f' value="{START[name]}"><output>{START[name]:g}</output></label>'
        for name, (label, low, high, step, tip) in SLIDERS.items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    options = _parser().parse_args(argv)
    run = find_run(options.run)
    if not step_folders(run) and not weight_files(run):
        print(NO_RUN.format(run=run), file=sys.stderr)
        return 2
    try:
        generator = TextGenerator(run, device=options.device)
        classroom = Classroom(generator, max_new_tokens=options.max_new_tokens)
        server = Server((options.host, options.port), classroom, options.allow_host)
    except (OSError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"demo: {_explained(error, options)}", file=sys.stderr)
        return 2
    host, port = server.server_address[:2]
    what = f"The sampling explorer and a chat with {model_name(generator.folder)}"
    print(f"{what} are at http://{_reachable(host)}:{port}/ (Ctrl-C ends it)", flush=True)
    if not is_loopback(host):
        print(OPEN_TO_ALL, flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("The demo has ended.")
    finally:
        server.server_close()
    return 0


def _explained(error: Exception, options: argparse.Namespace) -> str:
    if is_out_of_memory(error):
        return "there is not enough memory for this model: end other programs, or try --device cpu."
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        taken = f"Port {options.port} is taken: is the demo running already?"
        return f"{error}. {taken} Choose another: make demo PORT={options.port + 1}."
    if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        expected = "an address or name of this machine, or 0.0.0.0 for all of them"
        return f"{error}. --host is {options.host}, expected {expected}."
    return str(error)


def _reachable(host: str) -> str:
    if ip_address(host).is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _allowed_host(text: str) -> str:
    if (name := host_name(text)) is None:
        told = "expected one like hub.example.org, without http:// and path"
        raise argparse.ArgumentTypeError(f"{text!r} is no host name: {told}")
    return name


def _parser() -> argparse.ArgumentParser:
    what = "A web page with the sampling explorer and a chat with your model, for many visitors."
    parser = argparse.ArgumentParser(prog="python -m tinyllm_lib.course.demo", description=what)

    def add(name: str, default: object, what: str, **options: object) -> None:
        said = what if default in (None, []) else f"{what} (default: {default})"
        parser.add_argument(name, default=default, help=said, **options)

    add("run", "chat", "run of the workspace, run or model folder", nargs="?", metavar="RUN")
    add("--host", "127.0.0.1", "address to listen on; 0.0.0.0: the whole network may visit")
    add("--port", 8866, "port; 0: any free one", type=int)
    name = {"action": "append", "type": _allowed_host, "metavar": "NAME"}
    add("--allow-host", [], "a further name that visitors reach it by; may be repeated", **name)
    add("--max-new-tokens", 256, "longest reply, in tokens", type=int)
    add("--device", None, "cpu, cuda or mps (default: cuda where there is one, else cpu)")
    return parser
