"""Problems rendered to the token ids of prompts."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from siri.data.asked import AskedLengths
from siri.data.columns import Gold, Wanted
from siri.data.messages import without_answer
from siri.data.problems import Problem, Problems, ProblemSet, RowsRead, load_problems
from siri.data.repeated import Repeated
from siri.errors import InputError, first_line
from siri.sources import Source, read_source

PORTION = 256
"""Prompts rendered at once: of those that are too long no more are held."""
DIGEST = 8
"""Bytes kept of the SHA-256 of a problem."""


class Rendered(NamedTuple):
    """Prompts as token ids, without those that are too long."""

    ids: Repeated[list[int]]
    problems: Problems
    """Those that the ids belong to."""
    too_long: int
    places: np.ndarray
    """Where each was among the problems that were given."""


def render_prompts(problems: Sequence[Problem], tokenizer, **options: Any) -> tuple[Sequence[list[int]], Problems, int]:
    """(ids, the problems they belong to, how many were too long): `render` in short."""
    return render(problems, tokenizer, **options)[:3]


def render(
    problems: Sequence[Problem],
    tokenizer,
    *,
    template: str = "auto",
    variables: Mapping[str, Any] = MappingProxyType({}),
    instruction: str = "",
    max_prompt_tokens: int = 1024,
) -> Rendered:
    """Token ids of the prompts, without those over `max_prompt_tokens`.

    `template`: "chat" renders the tokenizer's chat template up to the start of the answer, "plain" tokenises the text
    with the tokenizer's own special tokens, "auto" is chat where the tokenizer has a template, which gets `variables`.
    `instruction` is
    appended to prompts that are plain text and do not hold it yet; chat messages stay as they are.

    Raises InputError when none is left.
    """
    if template not in ("auto", "chat", "plain"):
        raise InputError(f"template {template!r}: expected auto, chat or plain")
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_template:
        raise InputError("template 'chat': this tokenizer has no chat template; use plain or auto, or a chat model")

    if variables:
        check_variables(tokenizer, variables)
    problems = Problems.of(problems)
    prompts = [_instructed(without_answer(pair.prompt), instruction) for pair in problems.pairs.values]
    chat = partial(_chat_ids, variables=variables)
    rendered = chat if template == "chat" or (template == "auto" and has_template) else _plain_ids
    keys = [prompt if isinstance(prompt, str) else (json.dumps(prompt),) for prompt in prompts]
    once = list(dict(zip(keys, prompts, strict=True)).items())  # a prompt that repeats is rendered once
    fitting: dict[str | tuple[str], list[int]] = {}
    tokens_once: dict[int, int] = {}  # a number of Python's is as large as ten letters
    shortest = 0
    for start in range(0, len(once), PORTION):
        portion = once[start : start + PORTION]
        for (key, _), tokens in zip(portion, rendered([prompt for _, prompt in portion], tokenizer), strict=True):
            shortest = min(shortest or len(tokens), len(tokens))
            if len(tokens) <= max_prompt_tokens:
                fitting[key] = [tokens_once.setdefault(token, token) for token in tokens]
    if not fitting:
        raise InputError(
            f"--max-prompt-tokens {max_prompt_tokens}: all {len(problems)} prompts are longer; the shortest has "
            f"{shortest}"
        )
    fits = np.array([key in fitting for key in keys], bool)
    places = np.flatnonzero(fits[problems.pairs.which])
    kept = problems.chosen(places)
    ids = Repeated([fitting.get(key, []) for key in keys], kept.pairs.which)
    return Rendered(ids, kept, len(problems) - len(kept), places)


def _instructed(prompt: str | list[dict[str, str]], instruction: str) -> str | list[dict[str, str]]:
    if isinstance(prompt, list) or not instruction or instruction in prompt:
        return prompt
    return f"{prompt} {instruction}"


def check_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """InputError for a variable that the tokenizer's chat template does not look at: it would be ignored silently."""
    text = getattr(tokenizer, "chat_template", None)
    if not text:
        raise InputError("template_args: this tokenizer has no chat template that could take them; leave them out")
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in variables:
        if name in taken or not re.search(rf"\b{re.escape(name)}\b", json.dumps(text)):
            raise InputError(f"template_args: {name!r} is no variable of this tokenizer's chat template; leave it out")


def _chat_ids(prompts: list, tokenizer, *, variables: Mapping[str, Any]) -> list[list[int]]:
    from jinja2 import TemplateError

    conversations = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    try:
        # The template writes the special tokens itself: apply_chat_template tokenises without adding any.
        # return_dict=False: the default has been a BatchEncoding since transformers 5.
        return tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
        )
    except TemplateError as error:
        raise InputError(f"the tokenizer's chat template refuses these messages: {first_line(error)}") from None


def _plain_ids(prompts: list, tokenizer) -> list[list[int]]:
    texts = [p if isinstance(p, str) else "\n\n".join(message["content"] for message in p) for p in prompts]
    ids = tokenizer(texts)["input_ids"]
    # Some tokenizers close every text with their end token; after it a model has nothing left to say.
    return [tokens[:-1] if len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id else tokens for tokens in ids]


@dataclass(frozen=True, slots=True)
class Part:
    """One of several sources that make a set of prompts."""

    source: str
    problems: int
    """How many of the set are its, one after the other."""
    weight: float
    prompts: "PromptSet"
    """What was left out of it; its ids are not kept."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Problems ready to be sampled: ids[i] is the rendered prompt whose gold answer is answers[i]."""

    ids: Sequence[list[int]]
    answers: Sequence[str]
    dropped: int
    """Rows without a prompt or an answer."""
    too_long: int
    """Prompts over the limit."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many rows were dropped for which reason (`ProblemSet.left_out`)."""
    answered: int = 0
    """Conversations whose last turn, the assistant's, was cut off."""
    restored: int = 0
    """Rows whose LaTeX had lost backslashes."""
    asked: list[int] = field(default_factory=list)
    """Tokens that each prompt asks for; empty where they ask for none."""
    parts: tuple[Part, ...] = ()
    """The sources, where there are several or they have weights."""
    told: tuple[str, ...] = ()
    """Lines about problems that repeat."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, Repeated.of(self.ids).used()))

    @property
    def epoch(self) -> int:
        """Problems that are drawn in an epoch, on average."""
        return round(sum(weight * count for count, weight in self.weights())) or len(self.ids)

    def notes(self, source: str) -> list[str]:
        """Lines about what was left out of `source`, and what was changed in it."""
        if self.parts:
            return [*(line for part in self.parts for line in part.prompts.notes(part.source)), *self.told]
        lines = [f"{source}: {count} rows {why} left out" for why, count in self.left_out.items()]
        if self.answered:
            lines.append(f"{source}: {self.answered} prompts ended with the assistant's answer, which was cut off")
        if self.restored:
            lines.append(
                f"{source}: {self.restored} rows held LaTeX whose backslashes were read as escapes (\\frac as a form "
                "feed and rac), which is restored; escape each as \\\\"
            )
        lines += [f"{source}: {self.too_long} over-long prompts left out"] if self.too_long else []
        return lines + [f"{source}: {line}" for line in self.told]

    def weights(self) -> tuple[tuple[int, float], ...]:
        """(problems, weight) of each source, for the sampler; empty where all count the same."""
        if all(part.weight == 1 for part in self.parts):
            return ()
        return tuple((part.problems, part.weight) for part in self.parts)

    def pairs(self) -> Repeated[tuple[list[int], str]]:
        """ids and answers, each pair of them once."""
        ids, answers = Repeated.of(self.ids), Repeated.of(self.answers)
        if ids.which is answers.which:
            return Repeated(list(zip(ids.values, answers.values, strict=True)), ids.which)
        return Repeated(list(zip(self.ids, self.answers, strict=True)))


def load_prompts(
    source: str | Path | Sequence[str],
    tokenizer,
    config,
    *,
    limit: int = 0,
    asked: AskedLengths | None = None,
    wanted: Wanted | None = None,
    told: Callable[[str], RowsRead] | None = None,
    drop: bool | None = None,
) -> PromptSet:
    """`load_problems` and `render_prompts` with the settings of a `siri.config.Config`; `limit` > 0 keeps the first.
    The math reward has no use for answers that are prose, which another one may want. Several sources make one set.
    asked: the lengths that the prompts are to ask for. wanted: columns that the reward asks for. told: gives what
    hears of the progress of a source. drop: `_once`."""
    words = [str(source)] if isinstance(source, str | Path) else list(source)
    read: list[tuple[Source, ProblemSet, Sequence[Problem]]] = []
    for word in words:
        given = read_source(word)
        problem_set = load_problems(
            given,
            prompt_key=config.prompt_key,
            answer_key=config.answer_key,
            prose=config.reward != "math",
            wanted=wanted,
            told=told(word) if told else None,
        )
        read.append((given, problem_set, problem_set.problems.chosen(slice(limit)) if limit else problem_set.problems))
    lengths = asked.of(sum(len(problems) for _, _, problems in read)) if asked else []
    sets: list[PromptSet] = []
    start = 0
    for word, (_, problem_set, problems) in zip(words, read, strict=True):
        share = lengths[start : start + len(problems)]
        start += len(problems)
        if asked:
            prompts = [_instructed(without_answer(problem.prompt), config.instruction) for problem in problems]
            problems = [replace(problem, prompt=prompt) for problem, prompt in zip(problems, prompts, strict=True)]
            problems = asked.ask(problems, share)
        try:
            rendered = render(
                problems,
                tokenizer,
                template=config.template,
                variables=config.template_variables(),
                instruction=config.instruction,
                max_prompt_tokens=config.max_prompt_tokens,
            )
        except InputError as error:
            raise InputError(f"{word}: {error}" if len(words) > 1 else str(error)) from None
        answers = Repeated([pair.answer for pair in rendered.problems.pairs.values], rendered.ids.which)
        counts = {"dropped": problem_set.dropped, "too_long": rendered.too_long, "left_out": problem_set.left_out}
        answered, restored = problem_set.answered, problem_set.restored
        kept = [share[place] for place in rendered.places.tolist()] if asked else []
        sets.append(PromptSet(rendered.ids, answers, **counts, answered=answered, restored=restored, asked=kept))
    return _deduplicated(_joined(words, [given.weight for given, _, _ in read], sets), drop=drop)


def _joined(words: Sequence[str], weights: Sequence[float], sets: Sequence[PromptSet]) -> PromptSet:
    """The sets one after the other."""
    if len(sets) == 1 and weights[0] == 1:
        return sets[0]
    parts = tuple(
        Part(word, len(each.ids), weight, replace(each, ids=[], answers=[], asked=[]))
        for word, weight, each in zip(words, weights, sets, strict=True)
    )
    return PromptSet(
        Repeated.joined([Repeated.of(each.ids) for each in sets]),
        Repeated.joined([Repeated.of(each.answers) for each in sets]),
        sum(each.dropped for each in sets),
        sum(each.too_long for each in sets),
        asked=[tokens for each in sets for tokens in each.asked],
        parts=parts,
    )


def _deduplicated(prompts: PromptSet, *, drop: bool | None) -> PromptSet:
    """The set with lines about problems that repeat (the same prompt and answer), without all but the first of each if
    they are to be dropped; None = they cannot be."""
    pairs = prompts.pairs()
    first: dict[bytes, int] = {}
    alike = np.array([first.setdefault(digest(*pair), place) for place, pair in enumerate(pairs.values)], np.int32)
    _, places = np.unique(alike[pairs.which], return_index=True)
    places, lines = np.sort(places), list[str]()
    total, repeats = len(pairs), len(pairs) - len(places)
    if repeats:
        hint = "" if drop is None else "; --duplicates drop takes each once"
        lines.append(
            f"{repeats:,} problems that repeat another left out"
            if drop
            else f"{repeats:,} of {total:,} problems repeat another{hint}"
        )
    answers: dict[bytes, set[str]] = {}
    for place in np.unique(alike[pairs.which]).tolist():
        ids, answer = pairs.values[place]
        answers.setdefault(digest(ids, ""), set()).add(answer)
    if differing := sum(len(each) > 1 for each in answers.values()):
        lines.append(f"{differing:,} prompts come with more than one answer, each of which is taken as it is")
    if not lines:
        return prompts
    prompts = replace(prompts, told=tuple(lines))
    if not drop or not repeats:
        return prompts
    ends = np.cumsum([0, *(part.problems for part in prompts.parts)])
    left = np.searchsorted(places, ends)
    return replace(
        prompts,
        ids=Repeated.of(prompts.ids).chosen(places),
        answers=Repeated.of(prompts.answers).chosen(places),
        asked=[prompts.asked[place] for place in places.tolist()] if prompts.asked else [],
        parts=tuple(
            replace(part, problems=int(end - begin))
            for part, begin, end in zip(prompts.parts, left, left[1:], strict=False)
        ),
    )


def digest(ids: Sequence[int], answer: str) -> bytes:
    """What a problem is known by: of the token ids of its prompt, its answer, and the columns that go with that."""
    row = np.array(ids, "<i4").tobytes() + b"\0" + answer.encode()
    if isinstance(answer, Gold):
        row += b"\0" + answer.written().encode()
    return hashlib.sha256(row).digest()[:DIGEST]


def common(prompts: PromptSet, others: PromptSet) -> int:
    """How many of `others` have a prompt that is among `prompts`."""
    known = {digest(ids, "") for ids in Repeated.of(prompts.ids).used()}
    return sum(digest(ids, "") in known for ids in others.ids)
