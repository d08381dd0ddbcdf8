"""Grading while responses are still sampled: a thread that decodes and grades each once it is done, and never again."""

import queue
import threading
import time
from collections.abc import Sequence

from siri.model.policy import Policy
from siri.rewards.pool import Grader, RewardBatch
from siri.train.batches import Answer, Batch

TOGETHER = 64
"""Most responses that are graded at once: the answers of an evaluation wait for no more."""


class Grading:
    """Grades the answers that it is given, in a thread of its own once it is given some there."""

    def __init__(self, policy: Policy, grader: Grader) -> None:
        self.policy, self.grader = policy, grader
        self.failure: Exception | None = None
        """Why nothing more will be graded."""
        self.changed = threading.Condition()
        """Notified whenever answers have been graded."""
        self._given: queue.SimpleQueue[tuple[Batch, Answer, str] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False

    def score(self, answers: Sequence[Answer], gold: Sequence[str]) -> tuple[list[str], RewardBatch]:
        """The texts of answers that are done, and their rewards."""
        texts = [self.policy.decode(answer.draft.tokens.tolist()) for answer in answers]
        return texts, self.grader.score(texts, gold)

    def keep(self, batch: Batch, answers: Sequence[Answer], texts: Sequence[str], graded: RewardBatch) -> None:
        """Note what `score` has said of answers of a batch."""
        with self.changed:
            for place, (answer, text, reward) in enumerate(zip(answers, texts, graded.rewards, strict=True)):
                answer.text, answer.reward, answer.timed_out = text, reward, place in graded.timed_out
                answer.graded = True
            for place, count in enumerate((graded.timeouts, graded.errors, graded.undecided)):
                batch.faults[place] += count
            if all(answer.graded for answer in batch.everything()):
                batch.ended = time.time()
            self.changed.notify_all()

    def begin(self) -> None:
        """From now on what is given is graded."""
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True)
        self._thread.start()

    def give(self, batch: Batch, answer: Answer, gold: str) -> None:
        """Have an answer graded soon; any thread may."""
        self._given.put((batch, answer, gold))

    def close(self) -> None:
        """Grade no more; waits for what is being graded."""
        if self._thread is not None:
            self._closing = True
            self._given.put(None)
            self._thread.join()

    def _work(self) -> None:
        try:
            while (first := self._given.get()) is not None and not self._closing:
                given = [first]
                while len(given) < TOGETHER and not self._given.empty():
                    if (more := self._given.get()) is None:
                        return
                    given.append(more)
                for batch in {id(batch): batch for batch, _, _ in given}.values():
                    mine = [(answer, gold) for source, answer, gold in given if source is batch]
                    answers = [answer for answer, _ in mine]
                    self.keep(batch, answers, *self.score(answers, [gold for _, gold in mine]))
        except Exception as error:
            self.failure = error
            with self.changed:
                self.changed.notify_all()
