"""A chat in the terminal: what `python -m tinyllm_lib.generate RUN` starts.

    … generate RUN                                   talk; /help lists the commands
    … generate RUN --prompt 你好 --prompt 1+1等于多少？   answer each and end
    … generate RUN --json < questions.txt            a conversation from a pipe, one JSON object a reply

Only replies go to standard output. Notes and errors go to standard error; the exit code is 0, 2
after an error in what was asked for, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from tinyllm_lib.data import SYSTEM_PROMPT, get_workspace, utf8_output
from tinyllm_lib.generate.generator import Messages, TextGenerator, Written
from tinyllm_lib.generate.sampling import Sampling
from tinyllm_lib.model import is_out_of_memory

HELP = """/reset                forget the conversation
/system TEXT          start anew with another system prompt
/temperature NUMBER   0: always the likeliest token; about 0.7: varied; above 1: wild
/exit                 end (also Ctrl-D); Ctrl-C stops a reply"""


@dataclass
class Chat:
    """A conversation and how its replies are made."""

    generator: TextGenerator
    sampling: Sampling
    system: str = SYSTEM_PROMPT
    max_new_tokens: int = 256
    seed: int = 0
    turns: Messages = field(default_factory=list)

    def write(self, text: str) -> Iterator[Written]:
        """Streams the reply to `text`, and notes. What was streamed, even if it was stopped midway,
        joins the conversation.
        """
        user = {"role": "user", "content": text}
        messages = [{"role": "system", "content": self.system}, *self.turns, user]
        ids, limit, note = self.generator.chat_prompt(messages, self.max_new_tokens)
        pieces: list[str] = []
        seed = self.seed + len(self.turns)  # the same question asked twice may get two answers
        try:
            if note:
                yield Written("", note=note)
            for piece in self.generator.write_ids(ids, limit, self.sampling, seed=seed):
                pieces.append(piece.text)
                yield piece
        finally:
            self.turns += [user, {"role": "assistant", "content": "".join(pieces)}]

    def command(self, line: str) -> str | None:
        """Carries out a line that begins with a slash; returns what to tell the user, or None to
        end the chat.
        """
        name, _, argument = line.partition(" ")
        argument = argument.strip()
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


def converse(chat: Chat) -> int:
    """The loop at a terminal, with prompts; returns the exit code."""
    _tell("You can talk to the model now. /help lists the commands.")
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            return 130
        if line.startswith("/"):
            if (answer := chat.command(line)) is None:
                return 0
            _tell(answer)
        elif line:
            try:
                _show_reply(chat, line)
            except KeyboardInterrupt:
                print(" …", flush=True)
            except (ValueError, RuntimeError, MemoryError) as error:
                _tell(f"error: {_explained(error)}")


def answer_lines(chat: Chat, lines: Iterator[str], *, as_json: bool, forget: bool) -> int:
    """Replies to each line on standard output, streamed, or as a JSON object each; returns the exit
    code.

    Args:
        forget: every line begins a conversation of its own.
    """
    code = 0
    for line in lines:
        line = line.strip()
        if not line and not forget:
            continue
        if line.startswith("/") and not forget:
            if (told := chat.command(line)) is None:
                break
            _tell(told)
            continue
        if forget:
            chat.turns.clear()
        try:
            if as_json:
                pieces = list(chat.write(line))
                reply, notes = "".join(p.text for p in pieces), [p.note for p in pieces if p.note]
                print(
                    json.dumps(
                        {"prompt": line, "reply": reply, "notes": notes}, ensure_ascii=False
                    ),
                    flush=True,
                )
            else:
                _show_reply(chat, line)
        except (ValueError, RuntimeError, MemoryError) as error:
            _tell(f"error: {_explained(error)}")
            code = 2
    return code


def _explained(error: Exception) -> str:
    """What to tell the user; what is no mistake of theirs, and no want of memory, goes on as it is."""
    if is_out_of_memory(error):
        return (
            "the memory is used up. End other programs, or try --device cpu, a shorter"
            " --max-new-tokens or a smaller model."
        )
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


def _show_reply(chat: Chat, line: str) -> None:
    """Streams a reply to standard output; notes, to standard error, have lines of their own."""
    begun = ended = False
    with closing(chat.write(line)) as pieces:
        for piece in pieces:
            if piece.note:
                if begun and not ended:
                    print(flush=True)
                    ended = True
                _tell(f"note: {piece.note}")
            else:
                print(piece.text, end="", flush=True)
                begun, ended = True, False
    if not ended:
        print(flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        sys.stdin.reconfigure(
            encoding="utf-8-sig", errors="replace"
        )  # Windows pipes are not UTF-8 by themselves
    options = _parser().parse_args(argv)
    try:
        sampling = Sampling(
            options.temperature,
            options.top_k,
            options.top_p,
            options.min_p,
            options.repetition_penalty,
        )
        run = Path(options.run) if Path(options.run).exists() else get_workspace().run(options.run)
        generator = TextGenerator(run, device=options.device)
        chat = Chat(generator, sampling, options.system, options.max_new_tokens, options.seed)
        if options.prompt:
            return answer_lines(chat, iter(options.prompt), as_json=options.json, forget=True)
        if sys.stdin is None:
            raise ValueError(
                "standard input is closed, so there is nothing to reply to: give a --prompt."
            )
        if options.json or not sys.stdin.isatty():
            return answer_lines(
                chat, iter(sys.stdin.readline, ""), as_json=options.json, forget=False
            )
        _line_editing()
        return converse(chat)
    except BrokenPipeError:  # the reader, for example `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        _tell(f"error: {_explained(error)}")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.generate", description="Chat with a model you trained."
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="a run folder, a checkpoint or Hugging Face folder, or a run's name in the workspace",
    )
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="answer this and end; may be given several times",
    )
    add("--json", action="store_true", help="one JSON object a reply: prompt, reply, notes")
    add(
        "--system",
        default=SYSTEM_PROMPT,
        metavar="TEXT",
        help="system prompt (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        default=0.7,
        help="0: always the likeliest token (default: %(default)s)",
    )
    add(
        "--top-k",
        type=int,
        default=50,
        help="keep the likeliest so many tokens (default: %(default)s)",
    )
    add("--top-p", type=float, help="keep the likeliest tokens that sum to this probability")
    add("--min-p", type=float, help="keep tokens at least this share as likely as the likeliest")
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: repeat less (default: %(default)s)",
    )
    add(
        "--max-new-tokens",
        type=int,
        default=256,
        help="longest reply, in tokens (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="same seed, same replies (default: %(default)s)")
    add("--device", help="cpu, cuda or mps (default: cuda where there is one, else cpu)")
    return parser


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _line_editing() -> None:
    try:
        import readline  # noqa: F401  arrow keys and history in input(); Windows has its own
    except ImportError:
        pass
