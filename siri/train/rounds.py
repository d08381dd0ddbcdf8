"""What methods do to the responses of a rollout round once they are graded: sample hard prompts again (DARS), cut
outliers and grade them anew (DOT). The same functions on every rank; docs/methods.md has the formulas."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from siri.config import Config
from siri.rewards.pool import RewardBatch
from siri.rollout import Completion, Request

Grade = Callable[[Sequence[Completion], Sequence[str]], RewardBatch]
"""The rewards of responses, each against its gold answer."""


@dataclass(frozen=True)
class Sampled:
    """The responses to the prompts of a round, and their grades, response after response."""

    answers: list[list[Completion]]
    graded: RewardBatch
    uncut: tuple[tuple[int, ...], ...] = ()
    """Tokens of each response as it was sampled, where outliers may have been cut."""

    def starts(self) -> list[int]:
        """Where the grades of each prompt begin."""
        starts = [0]
        for group in self.answers:
            starts.append(starts[-1] + len(group))
        return starts


def extra_responses(right: int, size: int, most: int) -> int:
    """How many more responses DARS samples of a prompt with `right` of `size` right ones (arXiv 2508.13755, its variant
    that makes up for the weight that a hard prompt has lost): min(ceil((N/2 - N S) / S), most - N) with
    S = 2 a (1 - a). No right response counts as half a one; from half on there are none more."""
    if 2 * right >= size:
        return 0
    share = max(right, 0.5) / size
    weight = 2 * share * (1 - share)
    # what divides evenly must not be rounded up for a last bit
    return max(0, min(math.ceil((size / 2 - size * weight) / weight - 1e-9), most - size))


def hard_requests(config: Config, requests: Sequence[Request], sampled: Sampled) -> list[Request]:
    """What a second round asks for: each request once more, some for no response."""
    more = []
    for request, start, answers in zip(requests, sampled.starts()[:-1], sampled.answers, strict=True):
        places = range(start, start + len(answers))
        right = sum(
            sampled.graded.rewards[place] >= 1 and not (answer.truncated and config.overlong in ("zero", "mask"))
            for place, answer in zip(places, answers, strict=True)
        )
        late = any(place in sampled.graded.timed_out for place in places)
        wanted = 0 if late else extra_responses(right, len(answers), config.hard_responses)
        more.append(replace(request, n=wanted))
    return more


def joined(first: Sampled, second: Sampled) -> Sampled:
    """Both rounds, prompt by prompt."""
    answers, rewards, timed_out = [], [], set()
    rows = zip(first.answers, second.answers, first.starts(), second.starts(), strict=False)
    for earlier, later, *starts in rows:
        for answered, graded, start in zip((earlier, later), (first.graded, second.graded), starts, strict=True):
            for place in range(start, start + len(answered)):
                if place in graded.timed_out:
                    timed_out.add(len(rewards))
                rewards.append(graded.rewards[place])
        answers.append([*earlier, *later])
    return Sampled(answers, _combined(first.graded, second.graded, rewards, timed_out))


def outlier_length(lengths: Sequence[int], deviations: float) -> int:
    """DOT's threshold (arXiv 2601.03969): floor(mean + deviations * standard deviation), unbiased, of the lengths of a
    group, tokens."""
    return math.floor(fmean(lengths) + deviations * stdev(lengths)) if len(lengths) > 1 else lengths[0]


def cut_outliers(config: Config, sampled: Sampled, gold: Sequence[str], grade: Grade) -> Sampled:
    """Cut the outliers of every group whose responses are all right, and grade what is left of them. gold: the answer
    of each prompt. A response that was cut counts as one that ended by itself; its score is what it still earns."""
    answers = [list(group) for group in sampled.answers]
    places, cut, wanted = [], [], []
    for group, start, answer in zip(answers, sampled.starts()[:-1], gold, strict=True):
        known = range(start, start + len(group))
        if any(sampled.graded.rewards[place] < 1 or place in sampled.graded.timed_out for place in known):
            continue
        if any(completion.truncated for completion in group) and config.overlong != "grade":
            continue
        limit = outlier_length([len(completion.token_ids) for completion in group], config.outlier_deviations)
        for number, completion in enumerate(group):
            if len(completion.token_ids) - limit >= config.outlier_margin:
                group[number] = replace(
                    completion, token_ids=completion.token_ids[:limit], logp=completion.logp[:limit]
                )
                places.append(start + number)
                cut.append(group[number])
                wanted.append(answer)
    uncut = tuple(tuple(len(completion.token_ids) for completion in group) for group in sampled.answers)
    if not places:
        return replace(sampled, uncut=uncut)
    again = grade(cut, wanted)
    rewards, timed_out = list(sampled.graded.rewards), set(sampled.graded.timed_out)
    for number, (place, reward) in enumerate(zip(places, again.rewards, strict=True)):
        rewards[place] = reward
        if number in again.timed_out:
            timed_out.add(place)
    return Sampled(answers, _combined(sampled.graded, again, rewards, timed_out), uncut)


def _combined(first: RewardBatch, second: RewardBatch, rewards: list[float], timed_out: set[int]) -> RewardBatch:
    return RewardBatch(
        rewards,
        first.timeouts + second.timeouts,
        first.errors + second.errors,
        first.first_error or second.first_error,
        first.undecided + second.undecided,
        timed_out,
    )
