"""A chat in the terminal: what `python -m tinyllm_lib.generate RUN` starts.

    … generate RUN                                   talk; /help lists the commands
    … generate RUN --prompt 你好 --prompt 1+1等于多少？   answer each and end
    … generate RUN --json < questions.txt            a conversation from a pipe, a JSON line a reply

Only replies go to standard output. Notes and errors go to standard error; the exit code is 0, 2
after an error in what was asked for, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

from tinyllm_lib.data import SYSTEM_PROMPT, find_run, utf8_output
from tinyllm_lib.generate.generator import CHAT, Messages, TextGenerator
from tinyllm_lib.generate.sampling import Sampling
from tinyllm_lib.generate.text import Written
from tinyllm_lib.model import is_out_of_memory

HELP = """/reset                forget the conversation
/system TEXT          start anew with another system prompt
/temperature NUMBER   0: always the likeliest token; about 0.7: varied; above 1: wild
/exit                 end (also Ctrl-D); Ctrl-C stops a reply"""
SAMPLING = {  # options that are fields of `Sampling`
    "temperature": (float, "0: always the likeliest token"),
    "top_k": (int, "keep the likeliest so many tokens"),
    "top_p": (float, "keep the likeliest tokens that sum to this probability"),
    "min_p": (float, "keep tokens at least this share as likely as the likeliest"),
    "repetition_penalty": (float, "above 1: repeat less"),
    "max_new_tokens": (int, "longest reply, in tokens"),
    "seed": (int, "same seed, same replies"),
}
CLOSED = "standard input is closed, so there is nothing to reply to: give a --prompt."
NO_MEMORY = "the memory is used up: end other programs, or try --device cpu or a smaller model."


@dataclass
class Chat:
    """A conversation and how its replies are made."""

    generator: TextGenerator
    sampling: Sampling = CHAT
    system: str = SYSTEM_PROMPT
    turns: Messages = field(default_factory=list)

    def write(self, text: str) -> Generator[Written, None, None]:
        """Streams the reply to `text`, and notes; what was streamed joins the conversation."""
        user = {"role": "user", "content": text}
        messages = [{"role": "system", "content": self.system}, *self.turns, user]
        ids, limit, note = self.generator.chat_prompt(messages, self.sampling.max_new_tokens)
        seed = self.sampling.seed + len(self.turns)  # a question asked twice may get two answers
        pieces: list[str] = []
        try:
            if note:
                yield Written("", note=note)
            for piece in self.generator.write_ids(ids, limit, self.sampling, seed=seed):
                pieces.append(piece.text)
                yield piece
        finally:  # also where it was stopped midway
            self.turns += [user, {"role": "assistant", "content": "".join(pieces)}]

    def command(self, line: str) -> str | None:
        """What to tell the user after a line that begins with a slash; None ends the chat."""
        name, _, argument = (part.strip() for part in line.partition(" "))
        if name in ("/exit", "/quit"):
            return None
        if name == "/reset":
            self.turns.clear()
            return "The conversation is forgotten."
        if name == "/system" and argument:
            self.system = argument
            self.turns.clear()
            return f"A new conversation; the system prompt is: {argument}"
        if name == "/temperature" and argument:
            try:
                self.sampling = replace(self.sampling, temperature=float(argument))
            except ValueError as error:
                return str(error)
            return f"The temperature is {self.sampling.temperature:g}."
        return HELP


def converse(
    chat: Chat, lines: Iterable[str] | None = None, *, as_json: bool = False, alone: bool = False
) -> int:
    """Replies to each line on standard output; returns the exit code.

    Args:
        lines: None: what is typed, where Ctrl-C stops no more than a reply.
        as_json: a JSON object for each reply, instead of its text as it comes.
        alone: every line, even an empty one or a command, begins a conversation of its own.
    """
    code = 0
    for line in map(str.strip, _typed() if lines is None else lines):
        if alone:
            chat.turns.clear()
        elif not line:
            continue
        elif line.startswith("/"):
            if (answer := chat.command(line)) is None:
                break
            _tell(answer)
            continue
        try:
            with closing(chat.write(line)) as pieces:
                (_print_json if as_json else _print_text)(line, pieces)
        except KeyboardInterrupt:
            if lines is not None:
                raise
            print(" …", flush=True)
        except (ValueError, RuntimeError, MemoryError) as error:
            code = _report(error)
    return code if lines is not None else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        # Windows pipes are not UTF-8 by themselves.
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    args = _parser().parse_args(argv)
    try:
        sampling = Sampling(**{name: getattr(args, name) for name in SAMPLING})
        chat = Chat(TextGenerator(find_run(args.run), device=args.device), sampling, args.system)
        if args.prompt:
            return converse(chat, args.prompt, as_json=args.json, alone=True)
        if sys.stdin is None:
            raise ValueError(CLOSED)
        if args.json or not sys.stdin.isatty():
            return converse(chat, iter(sys.stdin.readline, ""), as_json=args.json)
        return converse(chat)
    except BrokenPipeError:  # the reader, for example `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return _report(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.generate", description="Chat with a model you trained."
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run, checkpoint or Hugging Face folder, or a run's name")
    add("--prompt", action="append", metavar="TEXT", help="answer this and end; may be repeated")
    add("--json", action="store_true", help="one JSON object a reply: prompt, reply, notes")
    add("--system", default=SYSTEM_PROMPT, metavar="TEXT", help="system prompt: %(default)s")
    for name, (kind, text) in SAMPLING.items():
        default = getattr(CHAT, name)
        shown = "" if default is None else f" (default: {default})"
        add(f"--{name.replace('_', '-')}", type=kind, default=default, help=text + shown)
    add("--device", help="cpu, cuda or mps (default: cuda where there is one, else cpu)")
    return parser


def _typed() -> Iterator[str]:
    with suppress(ImportError):  # Windows has its own
        import readline  # noqa: F401  arrow keys and history in input()
    _tell("You can talk to the model now. /help lists the commands.")
    try:
        while True:
            yield input("\n> ")
    except EOFError:
        print()
    except KeyboardInterrupt:
        print()
        raise


def _print_json(prompt: str, pieces: Iterable[Written]) -> None:
    written = list(pieces)
    reply, notes = "".join(p.text for p in written), [p.note for p in written if p.note]
    row = {"prompt": prompt, "reply": reply, "notes": notes}
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _print_text(prompt: str, pieces: Iterable[Written]) -> None:
    """Text as it comes; notes, to standard error, before it or after it."""
    begun, end = False, "\n"
    for piece in pieces:
        if not piece.note:
            print(piece.text, end="", flush=True)
            begun = True
            continue
        if begun:
            print(end=end, flush=True)
            end = ""
        _tell(f"note: {piece.note}")
    print(end=end, flush=True)


def _report(error: Exception) -> int:
    """Tells of an error in what was asked for, or of no memory left; any other goes on as it is."""
    no_memory = is_out_of_memory(error)
    if isinstance(error, RuntimeError) and not no_memory:
        raise error
    _tell(f"error: {NO_MEMORY if no_memory else error}")
    return 2


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
