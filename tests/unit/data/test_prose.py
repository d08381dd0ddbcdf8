"""Gold answers that are proofs and explanations are left out for the math reward, with a count; short texts stay."""

import json
import time

import pytest
from transformers import AutoTokenizer

from siri.config import Config
from siri.data.gold import NoAnswer
from siri.data.problems import load_problems, resolve_path
from siri.data.prompts import load_prompts
from siri.data.prose import BROKEN, PROSE, is_prose, without_prose
from siri.errors import InputError
from tests.field.table import rows

PROOFS = [
    "proof by induction",
    "Proof. Let $n$ be even.",
    "\\text{proved above}",
    "Q.E.D.",
    "The statement is proved",
    "see the figure",
    "Refer to the solution",
    "answers may vary",
    "Yes, because n^2+n is even",
    "It follows from the AM-GM inequality that the sum is at least 3.",
    "\\text{The function is increasing on the whole real line}",
    "as desired",
    "Shown above",
    "we have $a=b$",
    "We have shown that $a=b$. $\\boxed{}$",
    "The inequality holds for all positive real numbers $a, b, c$.",
    "证明见解析",
    "Le nombre est pair parce que il est divisible par deux",
]
ANSWERS = [
    "even",
    "the first player wins",
    "does not exist",
    "x is at least 2",
    "June 20",
    "Alice, Bob, Carol, Dave, Eve, Frank, Grace, Heidi",
    "all real numbers except 0",
    "12 hours and 30 minutes",
    "waterproof",
    "(B) the second of the two boxes is the larger one by far",
    "\\text{no real solutions exist}",
    "x^2 \\text{ for } x > 0 \\text{ and } 0 \\text{ otherwise}",
    "\\begin{cases} x & \\text{if } x>0 \\\\ 0 & \\text{otherwise}\\end{cases}",
    "two thousand three hundred and forty-five",
    "无解",
    "We have $x = 3$, since the sum of both is known to be even. Hence the answer is $\\boxed{3}$.",
    "",
]


@pytest.mark.parametrize("answer", PROOFS)
def test_prose(answer):
    assert is_prose(answer)
    with pytest.raises(NoAnswer, match=PROSE):
        without_prose(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_response_can_be_compared_with(answer):
    assert not is_prose(answer) and without_prose(answer) == answer


def test_no_gold_answer_of_the_corpus_is_prose():
    golds = {row["gold"] for row in rows()} - {"\\text{see the figure}"}
    assert [gold for gold in golds if is_prose(gold)] == []


def test_alternatives_that_are_prose_go():
    assert without_prose('["5", "proof by induction"]') == "5"
    assert json.loads(without_prose('["5", "see the figure", "five"]')) == ["5", "five"]
    with pytest.raises(NoAnswer):
        without_prose('["see the figure", "proof by induction"]')


@pytest.mark.parametrize("answer", ["\\frac{1}{2}}", "5}", "}5{", "{{{5", "\\text{A}}"])
def test_braces_that_do_not_pair(answer):
    with pytest.raises(NoAnswer, match=BROKEN):
        without_prose(answer)
    assert without_prose(json.dumps([answer, "5"])) == "5"


@pytest.mark.parametrize("answer", ["\\frac{1}{2", "\\{1, 2\\}", "\\left\\{x\\right.", "{5}", "\\}", "5} \\boxed{3}"])
def test_braces_that_are_read(answer):
    assert without_prose(answer) == answer


def test_an_answer_of_a_megabyte_takes_no_time():
    began = time.thread_time()  # of this thread alone, on whatever machine
    for text in ("$", "\\(", "\\begin{a}", "see the ", "a b "):
        is_prose(text * 200_000)
    assert time.thread_time() - began < 5


def test_rows_are_left_out_with_a_count_for_the_math_reward_alone(tmp_path):
    path = tmp_path / "data.json"
    rows = [{"problem": "a3 b7 <think>", "answer": answer} for answer in ["5", *PROOFS]]
    path.write_text(json.dumps(rows))
    assert len(load_problems(path).problems) == len(rows)
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("siri:demo/model"))
    config = Config(model="siri:demo/model", data=str(path), template="plain")
    prompts = load_prompts(path, tokenizer, config)
    assert prompts.answers == ["5"] and f"{len(PROOFS)} rows {PROSE} left out" in prompts.notes("data")[0]
    path.write_text(json.dumps(rows[1:]))
    with pytest.raises(InputError, match=PROSE):
        load_problems(path, prose=False)
