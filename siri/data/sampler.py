"""The order of the problems: seeded, endless, and resumable."""

import numpy as np

from siri.errors import InputError


class Sampler:
    """Endless problem indices 0..n-1: each epoch is a permutation seeded by (seed, epoch); none is lost or repeated.

    The whole state is (epoch, cursor, seed) and `size`, how many problems the epoch in progress is made of: those that
    were there when it began. `Sampler(n, **state)` goes on exactly where `state()` was taken, with n of `size` problems
    or more; the others follow in the next epoch.
    """

    def __init__(self, n: int, seed: int, epoch: int = 0, cursor: int = 0, size: int | None = None):
        size = n if size is None else size
        if n < 1:
            raise InputError("cannot sample from an empty data set")
        if seed < 0:
            raise InputError(f"seed {seed}: must not be negative")
        if epoch < 0 or not 0 <= cursor < size <= n:
            raise InputError(f"sampler state (epoch {epoch}, cursor {cursor}) does not fit a data set of {n} problems")
        self.n, self.seed, self.epoch, self.cursor, self.size = n, seed, epoch, cursor, size
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.size)

    def take(self, k: int) -> list[int]:
        """The next `k` indices. A draw that crosses the end of an epoch goes on in the next one."""
        taken: list[int] = []
        while len(taken) < k:
            portion = self._order[self.cursor : self.cursor + k - len(taken)]
            taken += portion.tolist()
            self.cursor += len(portion)
            if self.cursor == self.size:
                self.epoch, self.cursor, self.size = self.epoch + 1, 0, self.n
                self._order = self._permutation()
        return taken

    def drawn(self) -> set[int]:
        """Indices that were drawn at least once."""
        return set(range(self.size)) if self.epoch else set(self._order[: self.cursor].tolist())

    def state(self) -> dict[str, int]:
        """Where it is, as keyword arguments."""
        return {"epoch": self.epoch, "cursor": self.cursor, "seed": self.seed, "size": self.size}
