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
from html import escape
from ipaddress import ip_address
from pathlib import Path

from tinyllm_lib.course.demo.visitors import Server, host_name, is_loopback
from tinyllm_lib.course.widgets import views
from tinyllm_lib.course.widgets.sampling import CANDIDATES, SLIDERS, steps_html
from tinyllm_lib.course.widgets.steps import Steps, settings
from tinyllm_lib.data import get_workspace, utf8_output
from tinyllm_lib.generate import Sampling, TextGenerator, Written
from tinyllm_lib.model import is_out_of_memory, step_folders, step_of, weight_files
from tinyllm_lib.train import run_config

PAGE = Path(__file__).resolve().parent / "page"
MOST_MESSAGES, MOST_CHARACTERS = 400, 60_000  # of one request; a context holds far less
MOST_STEPS = 10  # tokens of one request of the explorer
START = {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


class Classroom:
    """The model that all visitors share, and what each of their requests is answered with.

    Args:
        max_new_tokens: longest reply.
    """

    def __init__(self, generator: TextGenerator, *, max_new_tokens: int = 256):
        self.generator, self.max_new_tokens = generator, max_new_tokens
        self._model = (
            threading.Lock()
        )  # one computation at a time: two at once would only slow each other down

    def chat(self, request: dict) -> Iterator[dict]:
        """The reply to the last of `messages`, piece by piece; the last row says end. Closing the
        iterator ends it, too.

        Raises:
            ValueError: a request that cannot be answered, before the first piece.
        """
        messages, sampling = request.get("messages"), _sampling(request)
        if (
            not isinstance(messages, list)
            or not messages
            or not all(_is_message(m) for m in messages)
        ):
            raise ValueError(
                'expected "messages": [{"role": "user" or "assistant", "content": text}, …].'
            )
        if (
            len(messages) > MOST_MESSAGES
            or sum(len(m["content"]) for m in messages) > MOST_CHARACTERS
        ):
            raise ValueError(
                f"the conversation has over {MOST_MESSAGES} messages or {MOST_CHARACTERS:,}"
                " characters: begin a new one."
            )
        ids, limit, note = self.generator.chat_prompt(messages, self.max_new_tokens)
        if note:
            yield _row(Written("", note=note))
        with closing(
            self.generator.write_ids(ids, limit, sampling, seed=secrets.randbits(32))
        ) as pieces:
            while True:
                with (
                    self._model
                ):  # not while a piece is sent: a visitor who reads slowly keeps nobody waiting
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
        prompt, chosen, sampling = (
            request.get("prompt"),
            request.get("chosen", []),
            _sampling(request),
        )
        draw, take = request.get("draw", 0), request.get("take")
        if (
            not isinstance(prompt, str)
            or not isinstance(chosen, list)
            or not all(type(t) is int for t in chosen)
        ):
            raise ValueError('expected "prompt": text and "chosen": [token ids].')
        if type(draw) is not int or type(take) not in (int, type(None)):
            raise ValueError('expected "draw": how many tokens, or "take": a token id.')
        if len(prompt) > MOST_CHARACTERS:
            raise ValueError(
                f"the prompt has {len(prompt):,} characters, expected at most {MOST_CHARACTERS:,}."
            )
        if not all(0 <= token < len(self.generator.tokenizer) for token in chosen):
            raise ValueError("a chosen token is not in the vocabulary.")
        steps = Steps(
            self.generator,
            prompt,
            chat=bool(request.get("chat")),
            chosen=chosen,
            seed=secrets.randbits(32),
        )
        with self._model:
            if take is not None:
                steps.take(take)
            for _ in range(min(draw, MOST_STEPS)):
                if not steps.end:
                    steps.draw(sampling)
            best = [] if steps.end else steps.candidates(sampling, CANDIDATES)
            text = steps_html(steps, prompt, 0 if steps.end else steps.kept(sampling))
        largest = max((max(c.before, c.after) for c in best), default=1.0)
        rows = [
            {"token": c.token, "name": c.name, "bar": views.candidate_bar(c, largest)} for c in best
        ]
        return {"chosen": steps.chosen, "text": text, "candidates": rows, "ended": bool(steps.end)}

    def files(self) -> dict[str, tuple[str, bytes]]:
        """Path -> (content type, content): the page, with this model's name and the sliders, and
        its script.
        """
        generator = self.generator
        facts = (
            f"{model_name(generator.folder)}: {generator.model.num_parameters():,} parameters,"
            f" context {generator.context} tokens"
        )
        html = (PAGE / "demo.html").read_text(encoding="utf-8")
        for place, text in {
            "<!--css-->": f"<style>{views.CSS}</style>",
            "<!--model-->": escape(facts),
        }.items():
            html = html.replace(place, text)
        html = html.replace("<!--chat-sliders-->", _sliders("chat")).replace(
            "<!--step-sliders-->", _sliders("step")
        )
        script = (PAGE / "demo.js").read_bytes()
        return {
            "/": ("text/html; charset=utf-8", html.encode()),
            "/demo.js": ("text/javascript; charset=utf-8", script),
        }


def model_name(folder: Path | None) -> str:
    """Which model this is, for people: its run, and how far that had come when this checkpoint was
    written.
    """
    if folder is None or folder not in step_folders(run := folder.parent.parent):
        return folder.name if folder else "a model"
    return f"{run.name}, step {step_of(folder)} of {run_config(run).get('steps', '?')}"


def _row(piece: Written) -> dict:
    return {"text": piece.text, "html": views.written(piece), "note": piece.note}


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("user", "assistant")
        and isinstance(message.get("content"), str)
    )


def _sampling(request: dict) -> Sampling:
    given = request.get("sampling", {})
    if (
        not isinstance(given, dict)
        or set(given) - set(SLIDERS)
        or not all(type(v) in (int, float) for v in given.values())
    ):
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
    run = Path(options.run) if Path(options.run).exists() else get_workspace().run(options.run)
    if not step_folders(run) and not weight_files(run):
        print(
            f"demo: there is no chat run yet: {run} holds no checkpoint. Run `make course` (or"
            " notebooks 05 and 06) first, set TINYLLM_PROFILE to the profile that you ran, or name"
            " another run: python -m tinyllm_lib.course.demo RUN.",
            file=sys.stderr,
        )
        return 2
    try:
        classroom = Classroom(
            TextGenerator(run, device=options.device), max_new_tokens=options.max_new_tokens
        )
        server = Server((options.host, options.port), classroom, options.allow_host)
    except (OSError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"demo: {_explained(error, options)}", file=sys.stderr)
        return 2
    host, port = server.server_address[:2]
    name = model_name(classroom.generator.folder)
    print(
        f"The sampling explorer and a chat with {name} are at http://{_reachable(host)}:{port}/"
        " (Ctrl-C ends it)",
        flush=True,
    )
    if not is_loopback(host):
        print(
            "Everybody who can reach this machine can open it. They can talk to the model, and"
            " nothing else.",
            flush=True,
        )
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
        return (
            f"{error}. Port {options.port} is taken: is the demo running already? Choose another:"
            f" make demo PORT={options.port + 1}."
        )
    if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        return (
            f"{error}. --host is {options.host}, expected an address or name of this machine, or"
            " 0.0.0.0 for all of them."
        )
    return str(error)


def _reachable(host: str) -> str:
    if ip_address(host).is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _allowed_host(text: str) -> str:
    if (name := host_name(text)) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no host name: expected one like hub.example.org, without http:// and path"
        )
    return name


def _parser() -> argparse.ArgumentParser:
    what = "A web page with the sampling explorer and a chat with your model, for many visitors."
    parser = argparse.ArgumentParser(prog="python -m tinyllm_lib.course.demo", description=what)
    add = parser.add_argument
    add(
        "run",
        nargs="?",
        default="chat",
        metavar="RUN",
        help="a run of the workspace, or a run or model folder (default: %(default)s)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: the whole network may visit (default: %(default)s)",
    )
    add("--port", type=int, default=8866, help="port; 0: any free one (default: %(default)s)")
    add("--allow-host", action="append", default=[], type=_allowed_host, metavar="NAME",
        help="a further name that visitors reach it by, such as a proxy's; may be given several times")  # fmt: skip
    add(
        "--max-new-tokens",
        type=int,
        default=256,
        help="longest reply, in tokens (default: %(default)s)",
    )
    add("--device", help="cpu, cuda or mps (default: cuda where there is one, else cpu)")
    return parser
