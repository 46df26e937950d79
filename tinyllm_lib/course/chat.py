"""A conversation with a model: what the panels, the demo and the terminal have in common.

    python -m tinyllm_lib.course.chat RUN                  talk; /help lists the commands
    python -m tinyllm_lib.course.chat RUN --prompt 你好     answer, and end

Replies go to standard output, notes and errors to standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields, replace

from tinyllm_lib.course.workspace import find_run
from tinyllm_lib.data import SYSTEM_PROMPT, utf8_output
from tinyllm_lib.generate import Sampling, TextGenerator, rows_of

START = Sampling(temperature=0.7, top_k=50, max_new_tokens=256)
HELP = """/reset                forget the conversation
/system TEXT          start anew with another system prompt
/temperature NUMBER   0: always the likeliest token; about 0.7: varied; above 1: wild
/exit                 end (also Ctrl-D); Ctrl-C stops a reply"""


@dataclass(frozen=True)
class Written:
    """A piece of text as soon as it is certain, or a note for the reader, such as turns left out.

    `probabilities` are those of its tokens under the model itself, before temperature and filters.
    """

    text: str
    probabilities: tuple[float, ...] = ()
    note: str = ""  # if there is one, there is no text


def write_ids(
    generator: TextGenerator, ids: list[int], limit: int, sampling: Sampling
) -> Generator[Written, None, None]:
    """The `limit` tokens after the prompt `ids`, piece by piece; a note if the context ends."""
    [row] = rows_of([ids], [limit], sampling.seed)
    told = 0  # tokens whose text was given
    for _, text in generator.pieces([row], sampling):
        yield Written(text, tuple(math.exp(logprob) for logprob in row.logprobs[told:]))
        told = len(row.ids)
    if row.note:
        yield Written("", note=row.note)


@dataclass
class Chat:
    """A conversation and how its replies are made."""

    generator: TextGenerator
    sampling: Sampling = START
    system: str = SYSTEM_PROMPT
    turns: list[dict[str, str]] = field(default_factory=list)

    def write(self, text: str) -> Generator[Written, None, None]:
        """Streams the reply to `text`, and notes; what was streamed joins the conversation."""
        user = {"role": "user", "content": text}
        messages = [{"role": "system", "content": self.system}, *self.turns, user]
        ids, limit, note = self.generator.chat_prompt(messages, self.sampling.max_new_tokens)
        # A question asked twice may get two answers.
        sampling = replace(self.sampling, seed=self.sampling.seed + len(self.turns))
        pieces: list[str] = []
        try:
            if note:
                yield Written("", note=note)
            for piece in write_ids(self.generator, ids, limit, sampling):
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


def answer(chat: Chat, question: str) -> None:
    """Prints the reply as it comes; notes, to standard error, below it."""
    notes = []
    with closing(chat.write(question)) as pieces:
        for piece in pieces:
            print(piece.text, end="", flush=True)
            notes += [piece.note] if piece.note else []
    print(flush=True)
    for note in notes:
        tell(f"note: {note}")


def talk(chat: Chat) -> None:
    """Replies to each line that is typed; Ctrl-C stops no more than a reply."""
    with suppress(ImportError):  # Windows has its own
        import readline  # noqa: F401  arrow keys and history in input()
    tell("You can talk to the model now. /help lists the commands.")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            line = input("\n> ").strip()
            try:
                if not line.startswith("/"):
                    if line:
                        answer(chat, line)
                elif (told := chat.command(line)) is None:
                    return
                else:
                    tell(told)
            except KeyboardInterrupt:
                print(" …", flush=True)
            except ValueError as error:
                tell(f"error: {error}")


def tell(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 after an error in what was asked for."""
    utf8_output()
    args = vars(_parser().parse_args(argv))
    try:
        sampling = Sampling(**{name: args[name] for name in _numbers()})
        generator = TextGenerator(find_run(args["run"]), device=args["device"])
        for question in args["prompt"]:
            answer(Chat(generator, sampling, args["system"]), question)
        if not args["prompt"]:
            talk(Chat(generator, sampling, args["system"]))
    except (OSError, ValueError) as error:
        tell(f"error: {error}")
        return 2
    return 0


def _numbers() -> Iterator[str]:
    """The fields of `Sampling` that are options of the command."""
    return (field.name for field in fields(Sampling) if field.name != "stop")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.course.chat", description="Chat with a model you trained."
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run, checkpoint or Hugging Face folder, or a run's name")
    text = {"default": [], "action": "append", "metavar": "TEXT"}
    add("--prompt", **text, help="answer this and end; may be repeated")
    add("--system", default=SYSTEM_PROMPT, metavar="TEXT", help="system prompt: %(default)s")
    for name in _numbers():
        kind = int if name in ("top_k", "max_new_tokens", "seed") else float
        options = {"type": kind, "default": getattr(START, name), "help": "default: %(default)s"}
        add(f"--{name.replace('_', '-')}", **options)
    add("--device", help="cpu, cuda or mps (default: cuda where there is one, else cpu)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
