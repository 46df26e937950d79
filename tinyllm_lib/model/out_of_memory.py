"""What is said when a GPU or the CPU has no memory left: where it came, and what to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class OutOfMemory(torch.OutOfMemoryError):
    """No memory left, with the place and what to change."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the CPU had no memory left."""
    said = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def explaining_out_of_memory(where: str, advice: Callable[[], str] | str) -> Iterator[None]:
    """Turns an error for want of memory into `OutOfMemory`, in the words of the outermost block,
    which knows why it was done; any other error passes as it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cause = error.__cause__ if isinstance(error, OutOfMemory) else error
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        what = advice if isinstance(advice, str) else advice()
        raise OutOfMemory(f"Out of memory {where}: {what} ({first})") from cause
