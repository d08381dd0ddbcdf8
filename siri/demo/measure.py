"""What a model does on the demo's problems, sampled by transformers' own `generate`: a check beside `siri eval`."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from siri.demo import task as demo_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_RESPONSE = 96  # tokens, the demo's largest cap


@dataclass(frozen=True)
class Response:
    """One graded response: the problem's kind, and counts of its tokens (`<eos>` included), words and rechecks."""

    kind: str
    right: bool
    tokens: int
    truncated: bool
    rechecks: int
    statements: int


@dataclass(frozen=True)
class Figures:
    """Means over some responses; all but `tokens` are shares in 0..1, `rechecks` of the statements."""

    accuracy: float
    tokens: float
    truncated: float
    rechecks: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.3f}, {self.tokens:.1f} tokens, {self.truncated:.1%} truncated, "
            f"a recheck after {self.rechecks:.1%} of statements"
        )


def grade(
    problem: demo_task.Problem, response: str, truncated: bool, tokens: int, task: ModuleType = demo_task
) -> Response:
    """Grade a response's text: right if it ended by itself and what follows `</think>` is the answer."""
    final = response.partition(demo_task.END_THINK)[2].strip()
    words = response.partition(demo_task.END_THINK)[0].split()
    right = not truncated and final == task.answer(problem)
    statements = sum(word.isdigit() for word in words)
    return Response(problem.kind, right, tokens, truncated, words.count(demo_task.WAIT), statements)


def summarise(responses: list[Response]) -> Figures:
    """The figures of at least one response."""
    n = len(responses)
    return Figures(
        accuracy=sum(r.right for r in responses) / n,
        tokens=sum(r.tokens for r in responses) / n,
        truncated=sum(r.truncated for r in responses) / n,
        rechecks=sum(r.rechecks for r in responses) / max(1, sum(r.statements for r in responses)),
    )


def measure(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: list[demo_task.Problem],
    temperature: float,
    seed: int = 0,
    batch: int = 256,
    task: ModuleType = demo_task,
) -> dict[str, Figures]:
    """Sample one response of at most 96 tokens to each problem; the figures under "all", "easy" and "hard".

    A kind without a problem is left out. The same seed and batch give the same figures; torch's global generator is
    left as it was.
    """
    import torch
    from transformers import GenerationConfig

    sampling = GenerationConfig(
        max_new_tokens=MAX_RESPONSE,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    generate = cast(Any, model).generate  # its type wants attributes that unquantised models lack
    model.eval()
    responses = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(problems), batch):
            chunk = problems[start : start + batch]
            inputs = tokenizer([task.prompt_text(p) for p in chunk], return_tensors="pt", padding=True)
            outputs_BT = generate(**inputs, generation_config=sampling)[:, inputs["input_ids"].shape[1] :]
            for problem, ids in zip(chunk, outputs_BT.tolist(), strict=True):
                truncated = tokenizer.eos_token_id not in ids
                tokens = len(ids) if truncated else ids.index(tokenizer.eos_token_id) + 1
                text = cast(str, tokenizer.decode(ids[:tokens], skip_special_tokens=True))
                responses.append(grade(problem, text, truncated, tokens, task))
    groups = {"all": responses, **{kind: [r for r in responses if r.kind == kind] for kind in task.KINDS}}
    return {name: summarise(group) for name, group in groups.items() if group}
