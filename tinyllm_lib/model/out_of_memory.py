"""What is said when a GPU or the CPU has no memory left: where it came, and what to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the CPU had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


class OutOfMemory(torch.OutOfMemoryError):
    """No memory left, with the place and what to change."""


@contextmanager
def explaining_out_of_memory(where: str, advice: str | Callable[[], str]) -> Iterator[None]:
    """An error for want of memory says where it came and what to change, in the words of the
    outermost, which knows why it was done; any other passes as it is.

    Raises:
        OutOfMemory: instead of torch's, Python's or the allocator's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        error = error.__cause__ if isinstance(error, OutOfMemory) else error
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfMemory(
            f"Out of memory {where}: {advice if isinstance(advice, str) else advice()} ({first})"
        ) from error
