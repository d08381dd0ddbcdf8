"""Rules about numbers that go wrong (see `siri.train.judge`), read without anything heavy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from siri.errors import InputError

DEFAULTS = {
    "nonfinite": "skip:10",
    "ratio": "warn",
    "entropy": "warn",
    "reward": "warn",
    "variance": "warn",
    "truncation": "warn",
    "grader": "warn",
}
_RULE = re.compile(r"(\w+)=(off|warn|skip)(?::([1-9]\d{0,6}))?")


@dataclass(frozen=True)
class Rule:
    """What is done about a case."""

    action: str
    patience: int
    """The run ends at so many steps in a row; 0 = never."""


def read_rules(texts: Sequence[str]) -> dict[str, Rule]:
    """The rules of all cases: the defaults, but for those in `texts`. InputError for anything that is no rule."""
    rules = {}
    for text in [*(f"{case}={rule}" for case, rule in DEFAULTS.items()), *texts]:
        match = _RULE.fullmatch(text)
        if match is None or match[1] not in DEFAULTS:
            raise InputError(
                f"health: {text!r} is no rule; write case=action or case=action:K, where case is one of "
                f"{', '.join(DEFAULTS)} and action is off, warn or skip"
            )
        rules[match[1]] = Rule(match[2], int(match[3] or 0))
    if rules["nonfinite"].action != "skip":
        raise InputError("health: nonfinite can only be skip or skip:K; such an update would destroy the weights")
    return rules
