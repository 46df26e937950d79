"""A set of hashes small enough to remember every document of a corpus."""

from array import array


class HashTable:
    """A set of 64-bit hashes in one flat array: open addressing, at most two thirds full.

    Python's `set` of integers takes about four times the memory.
    """

    def __init__(self, slots: int = 1 << 12):
        self._slots = array("Q", [0]) * slots
        self._count = 0

    def add(self, digest: int) -> bool:
        """Add `digest`; False if it was there."""
        if 3 * self._count >= 2 * len(self._slots):
            self._grow()
        if not _insert(self._slots, digest or 1):  # 0 marks a free slot
            return False
        self._count += 1
        return True

    def _grow(self) -> None:
        old, self._slots = self._slots, array("Q", [0]) * (2 * len(self._slots))
        for digest in old:
            if digest:
                _insert(self._slots, digest)


def _insert(slots: array, digest: int) -> bool:
    mask = len(slots) - 1
    slot = digest & mask
    while (found := slots[slot]) != digest:
        if not found:
            slots[slot] = digest
            return True
        slot = (slot + 1) & mask
    return False
