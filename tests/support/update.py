"""One update of a policy, for tests that look at what comes of it."""

from collections.abc import Sequence
from typing import Any

from siri.train.learner import Learner
from siri.train.samples import Sample


def update_policy(
    policy, optimizer, mini_batches: Sequence[Sequence[Sample]], config, **options: Any
) -> dict[str, Any]:
    """The metrics of `Learner(policy, optimizer, config, **options).update(mini_batches)`, with its plan and FLOPs."""
    update = Learner(policy, optimizer, config, **options).update(mini_batches)
    return update.metrics | {"plan": update.plan, "training_flops": update.flops}
