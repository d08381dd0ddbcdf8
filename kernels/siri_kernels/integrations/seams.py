"""What an adapter asks of the trainer that it goes into: the signatures that it needs, checked; a version outside those
that its tests ran with, told."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

INSTEAD = "call siri_kernels.linear_logprob and linear_grpo_loss from your own code"


class UntestedVersion(UserWarning):
    """The trainer is of a version that the adapter's tests have not run with; its signatures fit."""


def tested(distribution: str, low: str, below: str) -> None:
    """ImportError in one line unless `distribution` is installed, a warning of one line unless in [low, below)."""
    wanted = f"{distribution}>={low},<{below}"
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise ImportError(
            f'this adapter of siri_kernels needs {distribution} and found none: pip install "{wanted}", or {INSTEAD}'
        ) from None
    if not release(low) <= release(installed) < release(below):
        warnings.warn(
            f"this adapter of siri_kernels was tested with {wanted} and found {installed}: the signatures that it "
            "needs are checked, its results are not",
            UntestedVersion,
            stacklevel=2,
        )


def release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"^\d+(?:\.\d+)*", version)[0].split("."))


def seam(module: str, name: str) -> Any:
    """`module.name` of the trainer; ImportError in one line where there is none."""
    path = f"{module}.{name}"
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        # the trainer may lack a dependency of its own, which is another fault than a seam that has moved
        if error.name is not None and not module.startswith(error.name):
            raise
        raise ImportError(f"{path} is no longer there: this adapter does not fit; {INSTEAD}") from None
    except AttributeError:
        raise ImportError(f"{path} is no longer there: this adapter does not fit; {INSTEAD}") from None


def takes(function: Callable[..., Any], where: str, *names: str, in_order: bool = False) -> None:
    """ImportError in one line unless `function` has parameters called `names`, or, `in_order`, begins with them."""
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "ctx")]
    fits = parameters[: len(names)] == [*names] if in_order else set(names) <= set(parameters)
    if not fits:
        raise ImportError(
            f"{where} takes ({', '.join(parameters)}), and this adapter needs ({', '.join(names)}): it does not fit; "
            f"{INSTEAD}"
        )


def takes_only(function: Callable[..., Any], where: str, *names: str) -> None:
    """ImportError in one line where `function` has a named parameter that is none of these: the adapter, in its place,
    would not know what a caller means by it."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    unknown = [
        parameter.name
        for parameter in parameters
        if parameter.kind not in kinds and parameter.name not in ("self", *names)
    ]
    if unknown:
        raise ImportError(f"{where} takes {', '.join(unknown)}, which this adapter does not know; {INSTEAD}")


def has(thing: object, where: str, *names: str) -> None:
    """ImportError in one line unless `thing` has all these attributes."""
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise ImportError(f"{where} has no {', '.join(missing)}: this adapter does not fit; {INSTEAD}")
