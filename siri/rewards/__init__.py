"""What a response is worth: the math reward of the paper, exact match, and any function of the user's."""

import difflib
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import cast

from siri.data.decimals import readings
from siri.errors import InputError
from siri.rewards.answers import final_boxes, given_answers, same_answer
from siri.rewards.shaping import kimi_length_rewards as kimi_length_rewards

END_OF_THINKING = "</think>"

Reward = Callable[..., float]
"""Takes a response and its gold answer, and by name the columns that its parameters ask for."""


def final_text(response: str, think: bool = True) -> str | None:
    """What is graded: the text after the last `</think>`, or the whole response where the model does not think in tags.

    None when the thinking has not ended, as in a response that was cut at the length cap.
    """
    if not think:
        return response
    _, closed, text = response.rpartition(END_OF_THINKING)
    return text if closed else None


def math_reward(response: str, answer: str, *, think: bool = True) -> float:
    r"""1.0 if the last `\boxed{}` after the thinking holds `answer`, else 0.0: the paper's length-capping reward.

    Boxes that differ are one list, unless the last one concludes, so that several guesses are not paid; where there is
    no box at all, what follows "Answer:" on the last line counts. The cap is the sampler's (arXiv 2509.25176): a
    response cut inside its thinking has nothing to grade. `answer` is LaTeX or plain text, or a JSON list of strings of
    which any will do; a float with all its digits is also what it stands for (`siri.data.decimals`). With `think=False`
    everything is graded. Nothing is executed, but the symbolic comparison of a hostile response can take for ever: a
    training run calls this through `siri.rewards.pool.RewardPool`, which can kill it.
    """
    text = final_text(response, think)
    boxes, join = given_answers(text) if text else ([], "")
    golds = [reading for gold in accepted_answers(answer) for reading in readings(gold)]
    return float(any(_holds(boxes, join, gold) for gold in golds))


def _holds(boxes: list[str], join: str, gold: str) -> bool:
    """Whether the boxes together are the answer, or each of them is, as where it is given twice."""
    if len(boxes) > 1 and same_answer(gold, join.join(boxes)):
        return True
    return bool(boxes) and all(box and same_answer(gold, box) for box in boxes)


def exact_reward(response: str, answer: str, *, think: bool = True) -> float:
    """1.0 if the graded text is `answer` (or one of a JSON list of answers), surrounding space apart, else 0.0."""
    text = final_text(response, think)
    return float(text is not None and text.strip() in (answer.strip(), *map(str.strip, accepted_answers(answer))))


def extracted_answer(reward: str, response: str, *, think: bool = True) -> str | None:
    """What a built-in reward compares with the gold answer, to be shown; None where there is nothing, and for functions
    of the user's, which look at the whole response."""
    text = final_text(response, think) if reward in BUILT_IN else None
    if text is None or reward == "exact":
        return text if text is None else text.strip()
    return ", ".join(box or "" for box in final_boxes(text)) or None


def accepted_answers(answer: str) -> list[str]:
    """The alternatives in a JSON list of strings, which is how `siri.data` keeps several; else `answer` alone."""
    if answer.lstrip().startswith('["'):
        try:
            texts = json.loads(answer)
        except json.JSONDecodeError:
            return [answer]
        if all(isinstance(text, str) for text in texts):
            return texts
    return [answer]


BUILT_IN: dict[str, Callable[..., float]] = {"math": math_reward, "exact": exact_reward}


def resolve_reward(name: str, *, think: bool = True) -> Reward:
    """The reward called `name`: "math", "exact", or `module:function` with `function(response, answer) -> float`,
    whose further parameters are columns of the data.

    Such a module is looked for in the current directory first; what it imports comes from there last, so that no file
    there stands in for a module of Python's or of a library. `think` concerns the built-in rewards; a user's function
    gets the whole response. Raises InputError, in one line, when there is no such reward.
    """
    if name in BUILT_IN:
        return functools.partial(BUILT_IN[name], think=think)
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown reward {name!r}: expected {', '.join(BUILT_IN)} or module:function{hint}")
    if module_name.endswith(".py") or "/" in module_name:
        path = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise InputError(
            f"reward {name!r}: that is a path; it wants the module's name, {path}:{function_name}, with the folder as "
            "current one or in PYTHONPATH"
        )
    try:
        module = _import_from_here(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(f"reward {name!r}: cannot import {module_name}: {type(error).__name__}: {reason}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function_name, functions, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        where = getattr(module, "__file__", None) or "built in"
        raise InputError(f"reward {name!r}: {module_name} ({where}) has no function {function_name!r}{hint}")
    return cast(Reward, function)


def _import_from_here(name: str) -> ModuleType:
    """Import a module of the user's, in the current directory if it is there and has no name of Python's."""
    here, top = os.getcwd(), name.partition(".")[0]
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    if top not in sys.modules and top not in sys.stdlib_module_names:
        spec = PathFinder.find_spec(top, [here])
        if spec is not None and spec.origin is not None and spec.loader is not None:
            sys.modules[top] = module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[top])
            except BaseException:
                sys.modules.pop(top, None)
                raise
    return importlib.import_module(name)
