"""Grading the responses of a rollout while others of it are still sampled."""

import queue
import threading
from collections.abc import Sequence

from siri.model.policy import Policy
from siri.rewards.pool import Grader, RewardBatch
from siri.rollout import Completion

TOGETHER = 64
"""Most responses that are graded at once."""


class AsTheyEnd:
    """Grades the responses of a `Rollout.generate` while others are still sampled; a context. Whatever an engine does
    not tell of is graded in the end."""

    def __init__(self, policy: Policy, grader: Grader, gold: Sequence[str]) -> None:
        """gold: the answer to each request."""
        self.policy, self.grader, self.gold = policy, grader, gold
        self._graded: dict[int, tuple[Completion, str, float, bool]] = {}
        """By the identity of a response: itself, its text, its reward, and whether its grading timed out."""
        self._batch = RewardBatch([])
        self._given: queue.SimpleQueue[tuple[int, Completion] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._left = False

    def __enter__(self) -> "AsTheyEnd":
        return self

    def __exit__(self, *exception: object) -> None:
        self._left = True
        self._join()

    def __call__(self, number: int, completion: Completion) -> None:
        """A response to request `number` has ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grading", daemon=True)
            self._thread.start()
        self._given.put((number, completion))

    def finish(self, answers: Sequence[Sequence[Completion]]) -> tuple[list[str], RewardBatch]:
        """The texts and rewards of all responses, request by request; those that are not graded yet are graded here."""
        self._join()
        if self._failure is not None:
            raise self._failure
        pairs = [(number, completion) for number, group in enumerate(answers) for completion in group]
        self._grade([pair for pair in pairs if id(pair[1]) not in self._graded])
        rows = [self._graded[id(completion)] for _, completion in pairs]
        batch = self._batch
        batch.rewards = [reward for _, _, reward, _ in rows]
        batch.timed_out = {place for place, (_, _, _, late) in enumerate(rows) if late}
        return [text for _, text, _, _ in rows], batch

    def _join(self) -> None:
        if self._thread is not None:
            self._given.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            while (first := self._given.get()) is not None and not self._left:
                given = [first]
                while len(given) < TOGETHER and not self._given.empty():
                    if (more := self._given.get()) is None:
                        self._given.put(None)
                        break
                    given.append(more)
                self._grade(given)
        except Exception as error:
            self._failure = error

    def _grade(self, given: Sequence[tuple[int, Completion]]) -> None:
        texts = [self.policy.decode(completion.token_ids) for _, completion in given]
        graded = self.grader.score(texts, [self.gold[number] for number, _ in given])
        for place, ((_, completion), text, reward) in enumerate(zip(given, texts, graded.rewards, strict=True)):
            # the response itself as well: its identity is its own as long as it lives
            self._graded[id(completion)] = (completion, text, reward, place in graded.timed_out)
        self._batch.timeouts += graded.timeouts
        self._batch.errors += graded.errors
        self._batch.undecided += graded.undecided
        self._batch.first_error = self._batch.first_error or graded.first_error
