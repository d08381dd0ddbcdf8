"""Problems rendered to the token ids of prompts."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from siri.data.messages import without_answer
from siri.data.problems import Problem, load_problems
from siri.errors import InputError, first_line

PORTION = 1024
"""Prompts rendered at once: of those that are too long no more are held."""


def render_prompts(
    problems: list[Problem], tokenizer, *, template: str = "auto", instruction: str = "", max_prompt_tokens: int = 1024
) -> tuple[list[list[int]], list[Problem], int]:
    """Token ids of the prompts, without those over `max_prompt_tokens`.

    `template`: "chat" renders the tokenizer's chat template up to the start of the answer, "plain" tokenises the text
    with the tokenizer's own special tokens, "auto" is chat where the tokenizer has a template. `instruction` is
    appended to prompts that are plain text and do not hold it yet; chat messages stay as they are.

    Returns (ids, the problems they belong to, how many were too long). Raises InputError when none is left.
    """
    if template not in ("auto", "chat", "plain"):
        raise InputError(f"template {template!r}: expected auto, chat or plain")
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_template:
        raise InputError("template 'chat': this tokenizer has no chat template; use plain or auto, or a chat model")

    prompts = [_instructed(without_answer(problem.prompt), instruction) for problem in problems]
    render = _chat_ids if template == "chat" or (template == "auto" and has_template) else _plain_ids
    keys = [prompt if isinstance(prompt, str) else (json.dumps(prompt),) for prompt in prompts]
    once = list(dict(zip(keys, prompts, strict=True)).items())  # a prompt that repeats is rendered once
    fitting: dict[str | tuple[str], list[int]] = {}
    shortest = 0
    for start in range(0, len(once), PORTION):
        portion = once[start : start + PORTION]
        for (key, _), tokens in zip(portion, render([prompt for _, prompt in portion], tokenizer), strict=True):
            shortest = min(shortest or len(tokens), len(tokens))
            if len(tokens) <= max_prompt_tokens:
                fitting[key] = tokens
    if not fitting:
        raise InputError(
            f"--max-prompt-tokens {max_prompt_tokens}: all {len(keys)} prompts are longer; the shortest has {shortest}"
        )
    kept_ids = [fitting[key] for key in keys if key in fitting]
    kept = [problem for problem, key in zip(problems, keys, strict=True) if key in fitting]
    return kept_ids, kept, len(keys) - len(kept)


def _instructed(prompt: str | list[dict[str, str]], instruction: str) -> str | list[dict[str, str]]:
    if isinstance(prompt, list) or not instruction or instruction in prompt:
        return prompt
    return f"{prompt} {instruction}"


def _chat_ids(prompts: list, tokenizer) -> list[list[int]]:
    from jinja2 import TemplateError

    conversations = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    try:
        # The template writes the special tokens itself: apply_chat_template tokenises without adding any.
        # return_dict=False: the default has been a BatchEncoding since transformers 5.
        return tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise InputError(f"the tokenizer's chat template refuses these messages: {first_line(error)}") from None


def _plain_ids(prompts: list, tokenizer) -> list[list[int]]:
    texts = [p if isinstance(p, str) else "\n\n".join(message["content"] for message in p) for p in prompts]
    ids = tokenizer(texts)["input_ids"]
    # Some tokenizers close every text with their end token; after it a model has nothing left to say.
    return [tokens[:-1] if len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id else tokens for tokens in ids]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Problems ready to be sampled: ids[i] is the rendered prompt whose gold answer is answers[i]."""

    ids: list[list[int]]
    answers: list[str]
    dropped: int
    """Rows without a prompt or an answer."""
    too_long: int
    """Prompts over the limit."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many rows were dropped for which reason (`ProblemSet.left_out`)."""
    answered: int = 0
    """Conversations whose last turn, the assistant's, was cut off."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids))

    def notes(self, source: str) -> list[str]:
        """Lines about what was left out of `source`, and what was changed in it."""
        lines = [f"{source}: {count} rows {why} left out" for why, count in self.left_out.items()]
        if self.answered:
            lines.append(f"{source}: {self.answered} prompts ended with the assistant's answer, which was cut off")
        return lines + ([f"{source}: {self.too_long} over-long prompts left out"] if self.too_long else [])


def load_prompts(source: str | Path, tokenizer, config, *, limit: int = 0) -> PromptSet:
    """`load_problems` and `render_prompts` with the settings of a `siri.config.Config`; `limit` > 0 keeps the first."""
    problem_set = load_problems(source, prompt_key=config.prompt_key, answer_key=config.answer_key)
    ids, problems, too_long = render_prompts(
        problem_set.problems[: limit or None],
        tokenizer,
        template=config.template,
        instruction=config.instruction,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    answers = [problem.answer for problem in problems]
    return PromptSet(ids, answers, problem_set.dropped, too_long, problem_set.left_out, problem_set.answered)
