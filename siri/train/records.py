"""What a run keeps of its responses: groups and answers become rows of `siri.store.responses`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from siri.config import Config
from siri.data.prompts import PromptSet
from siri.model.policy import Policy
from siri.rewards import extracted_answer
from siri.rollout import Completion
from siri.store import files
from siri.store.responses import Response, Responses
from siri.train.groups import Group


class Records:
    """Keeps responses on rank 0. What cannot be written is told and costs no step."""

    def __init__(
        self,
        config: Config,
        run: Path,
        policy: Policy,
        note: Callable[[str], None],
        table: Callable[[str, Sequence[Response], int], None] = lambda name, responses, step: None,
    ) -> None:
        """note: says a line to the user. table: gets the responses of ends of phases and of evaluations, for the
        loggers."""
        self.config, self.policy, self.note, self.table = config, policy, note, table
        self.responses = Responses(run, config.keep_responses)

    @property
    def wanted(self) -> bool:
        """Whether any are kept."""
        return self.config.keep_responses > 0

    def step(self, step: int, groups: Sequence[Group], name: str | None) -> None:
        """Keep the groups of a step. name: of the end of a phase."""
        rows = [
            self._row(number, self.policy.decode(group.prompt_ids), text, group.answer, completion, score, reward,
                      weights, group.trained and graded)
            for number, group in enumerate(groups)
            for text, completion, score, reward, graded, weights in zip(
                group.texts, group.completions, group.scores, group.rewards, group.graded,
                group.weights or [step] * len(group.texts), strict=True
            )
        ]  # fmt: skip
        self._write(lambda: self.responses.write_step(step, rows, name), f"step {step}")
        if name:
            self.table(name, rows, step)

    def evaluation(self, done: int, benchmark: str, prompts: PromptSet, answers: Sequence["Answer"]) -> None:
        """Keep the answers to a benchmark, in the order of its problems."""
        samples = len(answers) // len(prompts.ids)
        rows = [
            self._row(place // samples, self.policy.decode(prompts.ids[place // samples]), text,
                      prompts.answers[place // samples], completion, score, score, done, True)
            for place, (text, completion, score) in enumerate(answers)
        ]  # fmt: skip
        self._write(lambda: self.responses.write_evaluation(done, benchmark, rows), f"{benchmark} after {done} steps")
        self.table(f"{benchmark}-after-{done}", rows, done)

    def _row(
        self, number: int, prompt: str, text: str, gold: str, completion: Completion, score: float, reward: float,
        weights: int, trained: bool,
    ) -> Response:  # fmt: skip
        return Response(
            prompt_number=number,
            prompt=prompt,
            text=text,
            gold=gold,
            extracted=extracted_answer(self.config.reward, text, think=self.config.think),
            score=score,
            reward=reward,
            tokens=len(completion.token_ids),
            truncated=completion.truncated,
            logp_mean=sum(completion.logp) / len(completion.logp),
            weights=weights,
            trained=trained,
        )

    def _write(self, write: Callable[[], None], what: str) -> None:
        try:
            write()
        except OSError as error:
            self.note(f"warning: the responses of {what} could not be kept ({files.reason(error)})")


Answer = tuple[str, Completion, float]
"""Text, tokens and score of a response of an evaluation."""
