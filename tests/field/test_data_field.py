"""Rows of public data sets and chat templates of public models, re-made small (data.md says after what)."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.problems import load_problems
from siri.data.prompts import render_prompts
from siri.errors import InputError
from siri.rewards import math_reward
from tests.support.tiny import bpe_tokenizer


def parquet(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# ---------------------------------------------------------------- rows

DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def test_numina_math_rows(tmp_path):
    """Competition problems; those to be proved have "proof" for an answer, those without a found answer "notfound"."""
    about = {"problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "olympiads", "synthetic": False}
    answers = ["\\frac{3}{4}", "proof", "notfound", "", None, "B", "12", "proof"]
    kinds = ["math-word-problem", "proof", "math-word-problem", "proof", "other", "MCQ", "math-word-problem", "proof"]
    rows = [
        {
            "problem": f"Problem {i}",
            "solution": "...",
            "answer": answer,
            "problem_type": "Algebra",
            "question_type": kind,
        }
        | about
        for i, (answer, kind) in enumerate(zip(answers, kinds, strict=True))
    ]
    problem_set = load_problems(parquet(tmp_path / "numina.parquet", rows))
    assert [(problem.id, problem.answer) for problem in problem_set.problems] == [
        ("numina/0", "\\frac{3}{4}"),
        ("numina/5", "B"),
        ("numina/6", "12"),
    ]
    assert problem_set.left_out == {
        "with a placeholder for an answer (proof 2, notfound 1)": 3,
        "without prompt or answer": 2,
    }


def test_dapo_rows(tmp_path):
    """verl's layout, every problem many times over."""
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"content": f"{DAPO_BEFORE}Problem {i % 4}{DAPO_AFTER}", "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(30 + i % 4), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"id-{i % 4}"},
        }
        for i in range(400)
    ]
    problem_set = load_problems(parquet(tmp_path / "dapo.parquet", rows))
    assert len(problem_set.problems) == 400 and problem_set.dropped == 0
    assert [problem.answer for problem in problem_set.problems[:5]] == ["30", "31", "32", "33", "30"]
    assert problem_set.problems[1].prompt == [{"role": "user", "content": f"{DAPO_BEFORE}Problem 1{DAPO_AFTER}"}]
    assert len({id(problem.prompt) for problem in problem_set.problems}) == 4


def test_gsm8k_rows(tmp_path):
    """The worked solution with its calculator's notes, then the answer, which may have a thousands separator."""
    rows = [
        {
            "question": "How many?",
            "answer": "She has 48/2=<<48/2=24>>24 of them.\nIn all 48+24=<<48+24=72>>72.\n#### 72",
        },
        {"question": "How much?", "answer": "It costs $<<1300*2=2600>>2600.\n#### 2,600"},
        {"question": "By how much?", "answer": "It falls.\n#### -5"},
    ]
    problem_set = load_problems(parquet(tmp_path / "gsm8k.parquet", rows))
    assert [problem.answer for problem in problem_set.problems] == ["72", "2,600", "-5"]
    assert math_reward("</think> \\boxed{2600}", problem_set.problems[1].answer) == 1


def test_rows_with_an_expected_answer(tmp_path):
    """OpenMathReasoning: the column has to be named; problems without an extracted answer have none."""
    rows = [
        {"expected_answer": "5", "problem_type": "has_answer_extracted", "problem": "P", "generated_solution": "..."},
        {"expected_answer": None, "problem_type": "no_answer_extracted", "problem": "P", "generated_solution": "..."},
        {"expected_answer": "n/a", "problem_type": "converted_proof", "problem": "P", "generated_solution": "..."},
    ]
    problem_set = load_problems(parquet(tmp_path / "omr.parquet", rows), answer_key="expected_answer")
    assert [problem.answer for problem in problem_set.problems] == ["5"] and problem_set.dropped == 2


# ---------------------------------------------------------------- chat templates

R1_DISTILL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ ns.system }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TEMPLATES = {
    "r1-distill": (R1_DISTILL, "<bos>{s}<|User|>{q}<|Assistant|><think>\n"),
    "qwen3": (QWEN3, "<|im_start|>system\n{s}<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"),
    "llama3": (
        LLAMA3,
        "<bos><|start_header_id|>system<|end_header_id|>\n\n{s}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{q}"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


@pytest.fixture(params=TEMPLATES)
def family(request):
    template, rendered = TEMPLATES[request.param]
    tokenizer = bpe_tokenizer(["Be brief. What is 1 + 1? so it is 2"])
    tokenizer.chat_template = template
    return tokenizer, rendered


SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}
GOLD = {"role": "assistant", "content": "<think>one and one</think>so it is 2"}


def test_prompts_end_where_the_answer_begins(family, tmp_path):
    """However a data set writes the conversation: messages, JSON text, parts, with the gold answer at the end."""
    tokenizer, rendered = family
    parts = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": USER["content"]}]}]
    path = tmp_path / "set.json"
    prompts = [
        [SYSTEM, USER],
        json.dumps([SYSTEM, USER]),
        parts,
        [SYSTEM, USER, GOLD],
        json.dumps([SYSTEM, USER, GOLD]),
    ]
    path.write_text(json.dumps([{"prompt": prompt, "answer": 2} for prompt in prompts]))
    problem_set = load_problems(path)
    ids, _, _ = render_prompts(problem_set.problems, tokenizer)
    expected = rendered.format(s=SYSTEM["content"], q=USER["content"])
    assert [tokenizer.decode(prompt_ids) for prompt_ids in ids] == [expected] * 5 and problem_set.answered == 2
    assert all(prompt_ids.count(tokenizer.bos_token_id) == expected.count("<bos>") for prompt_ids in ids)


def test_text_is_asked_by_the_user(family, tmp_path):
    tokenizer, rendered = family
    path = tmp_path / "set.jsonl"
    path.write_text('{"problem": "What is 1 + 1?", "answer": 2}')
    ids, _, _ = render_prompts(load_problems(path).problems, tokenizer, instruction="Box it.")
    text = tokenizer.decode(ids[0])
    assert text.endswith(rendered[rendered.index("{q}") :].format(q="What is 1 + 1? Box it."))
    assert "Be brief" not in text


SOLUTION = "We have $2x = 6$, so that each of the two numbers is three. Therefore the answer is $\\boxed{3}$."
FORMATS = {
    "DeepScaleR": ({"problem": "Q", "solution": SOLUTION, "answer": "3"}, {}, "3"),
    "MATH": (
        {"problem": "Q", "level": "Level 1", "type": "Algebra", "solution": SOLUTION},
        {"answer_key": "solution"},
        "3",
    ),
    "aime_2024": (
        {"id": 60, "problem": "Q", "solution": SOLUTION, "answer": "003", "url": "", "year": "2024"},
        {},
        "3",
    ),
    "AIME_2024": (
        {"ID": "2024-I-1", "Problem": "Q", "Solution": SOLUTION, "Answer": 3},
        {"prompt_key": "Problem", "answer_key": "Answer"},
        "3",
    ),
    "a1_math": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": SOLUTION}], "answer": "3"},
        {"prompt_key": "conversations"},
        "3",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_more_data_sets(tmp_path, name):
    row, keys, answer = FORMATS[name]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row]))
    if "answer_key" in keys:
        with pytest.raises(InputError, match="--answer-key"):
            load_problems(path, prompt_key=keys.get("prompt_key", ""), prose=False)
    [problem] = load_problems(path, **keys, prose=False).problems
    assert problem.prompt in ("Q", [{"role": "user", "content": "Q"}])
    assert math_reward(f"\\boxed{{{answer}}}", problem.answer, think=False) == 1
    assert math_reward("\\boxed{4}", problem.answer, think=False) == 0
