"""Examples that are made when they are asked for: images in memory would be too many."""

from collections.abc import Callable

from mlic_jax.data.records import Example, RandomAccess


class OnDemand(RandomAccess[Example]):
    """So many examples, of which `make` makes the one at a position, each time anew."""

    def __init__(self, count: int, make: Callable[[int], Example]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int, /) -> Example:
        return self._make(range(self._count)[position])
