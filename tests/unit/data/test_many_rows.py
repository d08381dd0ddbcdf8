"""Millions of rows of a few thousand problems, as DAPO's data set has them: memory goes by what is different."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.problems import load_problems

DISTINCT, ROWS = 5000, 200_000
CODE = """
import resource, sys
from types import SimpleNamespace
from siri.data.content import Content
from siri.data.prompts import load_prompts
from siri.data.sampler import Sampler
from tests.support.tiny import bpe_tokenizer
settings = SimpleNamespace(reward="math", prompt_key="", answer_key="", template="plain", instruction="",
                           max_prompt_tokens=2000, template_variables=dict)
tokenizer = bpe_tokenizer(["Solve the problem step by step. 0123456789"])
Content.of("warm", load_prompts(sys.argv[1], tokenizer, settings), tokenizer)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prompts = load_prompts(sys.argv[2], tokenizer, settings, drop=False)
Content.of("all", prompts, tokenizer)
Sampler(len(prompts.ids), 0)
print(len(prompts.ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def row(number: int) -> dict:
    text = f"{number % DISTINCT}: " + "Solve the problem step by step. " * 20
    return {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": str(number % DISTINCT)}}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_is_that_of_what_is_different(tmp_path, kind):
    few, many = tmp_path / f"few.{kind}", tmp_path / f"many.{kind}"
    for path, count in ((few, 100), (many, ROWS)):
        if kind == "jsonl":
            lines = [json.dumps(row(number)) + "\n" for number in range(min(count, DISTINCT))]
            with path.open("w") as file:
                for _ in range(max(1, count // DISTINCT)):
                    file.writelines(lines)
        else:
            rows = pa.Table.from_pylist([row(number) for number in range(min(count, DISTINCT))])
            with pq.ParquetWriter(path, rows.schema) as writer:
                for _ in range(max(1, count // DISTINCT)):
                    writer.write_table(rows)
    run = subprocess.run([sys.executable, "-c", CODE, str(few), str(many)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    count, kilobytes = map(int, run.stdout.split())
    text = sum(len(row(number)["prompt"][0]["content"]) for number in range(DISTINCT))
    assert count == ROWS
    # the problems, their tokens, and some tens of bytes a row while it is read; as rows they would take 200 MB
    assert kilobytes * 1024 < 30 * text + 100 * ROWS


def test_a_nested_column_whose_dictionary_was_given_up(tmp_path):
    """More different texts in a row group than a parquet dictionary holds: Arrow refuses to read them as one."""
    rows = [row(number) for number in range(DISTINCT)]
    for number, each in enumerate(rows):
        each["prompt"][0]["content"] += f" {number}" * 300
    path = tmp_path / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows * 2), path, row_group_size=3000)
    content = "prompt.list.element.content"
    with pq.ParquetFile(path, read_dictionary=[content]) as file, pytest.raises(pa.ArrowNotImplementedError):
        list(file.iter_batches(1024, columns=[content]))
    problems = load_problems(path).problems
    assert [problem.answer for problem in problems] == [str(number % DISTINCT) for number in range(2 * DISTINCT)]
    assert [problem.prompt for problem in problems[:3]] == [each["prompt"] for each in rows[:3]]
    assert len({id(problem.prompt) for problem in problems}) == DISTINCT
