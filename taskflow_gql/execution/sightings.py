"""Counts how often things were seen lately, so that a cache keeps what is popular."""

from collections.abc import Hashable


class Sightings:
    """Counts by hash. Keys are not kept, because clients could fill the memory with them.

    After `memory` sightings all counts are halved, so formerly popular things can be evicted.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._counts: dict[int, int] = {}
        self._total = 0

    def add(self, key: Hashable) -> int:
        """Count one more sighting. Return the count, this one included."""
        if self._total >= self._memory:
            self._counts = {key_hash: count // 2 for key_hash, count in self._counts.items() if count > 1}
            self._total = sum(self._counts.values())
        self._total += 1
        key_hash = hash(key)
        count = self._counts[key_hash] = self._counts.get(key_hash, 0) + 1
        return count

    def of(self, key: Hashable) -> int:
        return self._counts.get(hash(key), 0)

    def __len__(self) -> int:
        return len(self._counts)
