"""The order of the problems: seeded, endless, and resumable."""

from collections.abc import Sequence

import numpy as np

from siri.errors import InputError

MOST_DRAWS = 10**8
"""Of an epoch whose sources have weights: its order is made whole."""


class Sampler:
    """Endless problem indices 0..n-1: each epoch is a permutation seeded by (seed, epoch); none is lost or repeated.

    The whole state is (epoch, cursor, seed) and `size`, how many problems the epoch in progress is made of: those that
    were there when it began. `Sampler(n, **state)` goes on exactly where `state()` was taken, with n of `size` problems
    or more; the others follow in the next epoch.

    weights: (problems, weight) of each source, one after the other. In an epoch each problem is drawn `weight` times on
    average: a source goes through permutations of its own, of which an epoch takes the next weight x problems places.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        epoch: int = 0,
        cursor: int = 0,
        size: int | None = None,
        *,
        weights: Sequence[tuple[int, float]] = (),
    ):
        size = n if size is None else size
        self.weights = tuple(weights)
        if n < 1:
            raise InputError("cannot sample from an empty data set")
        if seed < 0:
            raise InputError(f"seed {seed}: must not be negative")
        if self.weights and (sum(count for count, _ in self.weights) != n or size != n):
            raise InputError(f"sampler: sources with weights make up {n} problems, and the epoch has {size}")
        draws = sum(weight * count for count, weight in self.weights)
        if draws > MOST_DRAWS:
            raise InputError(
                f"data: weights up to {max(weight for _, weight in self.weights):g} make an epoch of {draws:.3g} "
                f"problems; {MOST_DRAWS:,} are the most; lower them"
            )
        if self.weights and sum(int(weight * count) for count, weight in self.weights) < 1:
            raise InputError("data: with these weights an epoch has no problem; raise them")
        self.n, self.seed, self.epoch, self.cursor, self.size = n, seed, epoch, cursor, size
        self._order = self._permutation() if epoch >= 0 and 0 < size <= n else np.empty(0, np.int64)
        if not 0 <= cursor < len(self._order):
            raise InputError(f"sampler state (epoch {epoch}, cursor {cursor}) does not fit a data set of {n} problems")

    @property
    def draws(self) -> int:
        """Problems drawn in the epoch in progress."""
        return len(self._order)

    def _permutation(self) -> np.ndarray:
        generator = np.random.default_rng([self.seed, self.epoch])
        if not self.weights:
            return generator.permutation(self.size)
        drawn, start = [], 0
        for number, (count, weight) in enumerate(self.weights):
            places = np.arange(int(self.epoch * weight * count), int((self.epoch + 1) * weight * count))
            turns, at = np.divmod(places, count)
            for turn in np.unique(turns).tolist():
                order = np.random.default_rng([self.seed, turn, number, 1]).permutation(count)
                drawn.append(start + order[at[turns == turn]])
            start += count
        return generator.permutation(np.concatenate(drawn))

    def take(self, k: int) -> list[int]:
        """The next `k` indices. A draw that crosses the end of an epoch goes on in the next one."""
        taken: list[int] = []
        while len(taken) < k:
            portion = self._order[self.cursor : self.cursor + k - len(taken)]
            taken += portion.tolist()
            self.cursor += len(portion)
            if self.cursor == len(self._order):
                self.epoch, self.cursor, self.size = self.epoch + 1, 0, self.n
                self._order = self._permutation()
        return taken

    def drawn(self) -> set[int]:
        """Indices that were drawn at least once."""
        return set(range(self.size)) if self.epoch else set(self._order[: self.cursor].tolist())

    def state(self) -> dict[str, int]:
        """Where it is, as keyword arguments."""
        return {"epoch": self.epoch, "cursor": self.cursor, "seed": self.seed, "size": self.size}
