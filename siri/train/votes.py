"""Majority votes: which responses to a problem give the same answer, and how often the most frequent one is right."""

import json
import random
from collections import Counter
from collections.abc import Sequence

from siri.rewards import BUILT_IN, END_OF_THINKING, extracted_answer
from siri.rewards.pool import Grader

NO_VOTE = -1
"""Of a response in which no answer could be read."""
SUBSETS = 200
"""Draws of k responses over which a vote of fewer than all is averaged."""
MOST_COMPARED = 8
"""Different wrong answers to a problem that others are compared with by the grader; beyond these spelling decides."""


def read_votes(
    reward: str, texts: Sequence[str], rewards: Sequence[float], samples: int, grader: Grader, *, think: bool
) -> list[int]:
    """For each response the number of its answer among those to its problem, or NO_VOTE; empty for a reward whose
    answers nobody can read but itself.

    All right answers are one. Wrong ones are the same where they are spelt the same, and for the math reward where it
    takes one for the other.
    """
    if reward not in BUILT_IN:
        return []
    answers = [extracted_answer(reward, text, think=think) for text in texts]
    spelt = [None if answer is None or not answer.strip() else " ".join(answer.split()) for answer in answers]
    votes: list[int] = []
    wrong: list[list[str]] = []
    for start in range(0, len(spelt), samples):
        pairs = zip(spelt[start : start + samples], rewards[start : start + samples], strict=True)
        wrong.append(list(dict.fromkeys(text for text, score in pairs if text is not None and score < 1)))
    same = _same_answers(wrong, grader) if reward == "math" else [{text: text for text in texts} for texts in wrong]
    for number, start in enumerate(range(0, len(spelt), samples)):
        names = {text: place for place, text in enumerate(dict.fromkeys(same[number].values()), start=1)}
        for text, score in zip(spelt[start : start + samples], rewards[start : start + samples], strict=True):
            if text is None:
                votes.append(NO_VOTE)
            else:
                votes.append(0 if score >= 1 else names[same[number][text]])
    return votes


def _same_answers(wrong: Sequence[Sequence[str]], grader: Grader) -> list[dict[str, str]]:
    """For each problem, each of its different answers -> the first that means the same."""
    same: list[dict[str, str]] = [{} for _ in wrong]
    for _ in range(MOST_COMPARED):
        pairs = []
        for number, texts in enumerate(wrong):
            left = [text for text in texts if text not in same[number]]
            if left:
                same[number][left[0]] = left[0]
                pairs += [(number, left[0], text) for text in left[1:]]
        if not pairs:
            return same
        responses = [f"{END_OF_THINKING} \\boxed{{{text}}}" for _, _, text in pairs]
        # a list, so that an answer that looks like one is not taken apart
        graded = grader.score(responses, [json.dumps([first]) for _, first, _ in pairs])
        for (number, first, text), score in zip(pairs, graded.rewards, strict=True):
            if score >= 1:
                same[number][text] = first
    for number, texts in enumerate(wrong):
        same[number] |= {text: text for text in texts if text not in same[number]}
    return same


def majority_at_k(votes: Sequence[int], right: Sequence[bool], k: int) -> float:
    """Chance that the most frequent answer among k of these responses to a problem is right; answers that are as
    frequent win equally often, and a response without one does not vote. Exact for one response and for all of them,
    else over SUBSETS draws."""
    if k == 1:
        return sum(right) / len(right)
    if k == len(votes):
        return _won(votes, right)
    draw = random.Random(k)
    places = range(len(votes))
    won = 0.0
    for _ in range(SUBSETS):
        some = draw.sample(places, k)
        won += _won([votes[place] for place in some], [right[place] for place in some])
    return won / SUBSETS


def _won(votes: Sequence[int], right: Sequence[bool]) -> float:
    counts = Counter(vote for vote in votes if vote != NO_VOTE)
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = {vote for vote, count in counts.items() if count == most}
    hits = Counter(vote for vote, hit in zip(votes, right, strict=True) if hit)
    return sum(hits[vote] / counts[vote] for vote in winners) / len(winners)
