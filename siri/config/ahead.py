"""What `staleness` cannot be had with: prompts, caps and weights of the loss that are not known ahead of a step."""

from typing import Any

from siri.errors import InputError


def refuse_unknown_steps(config: Any) -> None:
    """InputError for settings of a `siri.config.Config` that sampling ahead of training cannot keep."""
    if not config.staleness:
        if config.allow_bias:
            raise InputError("allow_bias is for staleness, which is 0: leave it out, or give --staleness")
        return
    name = f"staleness {config.staleness} samples steps before the ones in front of them are trained"
    for there, what, way in (
        (config.dynamic_sampling, "dynamic_sampling draws prompts by what came of others", "leave one of them out"),
        (config.hard_responses, "hard_responses samples prompts again by what came of them", "leave one of them out"),
        (config.schedule == "auto", "schedule auto finds its cap by what came of them", "give another --schedule"),
    ):
        if there:
            raise InputError(f"{name}, but {what}; {way}")
    if config.importance == "none" and not config.allow_bias:
        raise InputError(
            f"staleness {config.staleness} trains on responses of older weights, which importance none takes for those "
            "of the weights that are trained; give --importance tis or icepop, or --allow-bias to compare"
        )
    if config.importance != "none" and config.allow_bias:
        raise InputError(f"allow_bias is for importance none, but importance is {config.importance}; leave one out")
