"""LaTeX that lost backslashes to escapes, and lists that Python wrote as text: restored, or left out with a line."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.escapes import LOST_IN_ANSWER, LOST_IN_PROMPT, LostBackslash, with_backslashes
from siri.data.gold import SEVERAL_IN_TEXT, NoAnswer, gold_answer
from siri.data.problems import load_problems
from siri.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        r"\frac{3}{2}", r"\theta", r"\beta", r"\rho", r"\binom{5}{2}", r"\bar{x}", r"5\times 3", r"3\text{ cm}",
        r"\tan(x)", r"\alpha+\varphi", r"\vec{a}", r"x\neq 0", r"x\notin A", r"\nabla f", r"\left(\frac12\right)",
        r"\tfrac12", r"\forall", r"\begin{cases}1\end{cases}", r"\boxed{5}", r"\triangle ABC", r"\approx 3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer", [True, False])
def test_what_is_certain_is_restored(text, answer):
    lost = text
    for sign in "abtnvfr":
        lost = lost.replace(f"\\{sign}", {"a": "\a", "b": "\b", "v": "\v", "f": "\f"}.get(sign, "\\" + sign))
    for sign, control in (("t", "\t"), ("n", "\n"), ("r", "\r")):
        lost = lost.replace(f"\\{sign}", control)
    assert lost != text and with_backslashes(lost, answer=answer) == text


@pytest.mark.parametrize("text", ["\tan x", "2\nu", "x\to 5", "x\ne 5", "a\nmid b", "\rangle ABC"])
def test_what_is_not_certain_is_no_answer(text):
    with pytest.raises(LostBackslash):
        with_backslashes(text, answer=True)
    assert with_backslashes(text, answer=False) == text


def test_a_prompt_that_lost_others_is_left_out():
    with pytest.raises(LostBackslash):
        with_backslashes("Solve \frac12 + x \to 3", answer=False)


@pytest.mark.parametrize(
    "text",
    [
        "one\ttwo\nthree",
        "Name\tan apple\nu = 3\nexists",
        "page\fNext page",
        "a\r\nb",
        "x=1\ny=2",
        "box\f box",
        "\theory",
        "5\n",
    ],
)
def test_text_stays_as_it_is(text):
    assert with_backslashes(text, answer=False) == text


def written(path, golds):
    prompts = [f"Q{place}" for place in range(len(golds))]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"problem": prompts, "answer": golds}), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("problem", "answer"), *zip(prompts, golds, strict=True)])
    else:
        path.write_text("\n".join(json.dumps({"problem": p, "answer": a}) for p, a in zip(prompts, golds, strict=True)))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_files_of_every_kind(tmp_path, suffix):
    read = load_problems(written(tmp_path / f"set.{suffix}", ["\frac{3}{2}", "\theta", "\tan x", "4", "\frac{3}{2}"]))
    assert [problem.answer for problem in read.problems] == [r"\frac{3}{2}", r"\theta", "4", r"\frac{3}{2}"]
    assert (read.restored, read.left_out) == (3, {LOST_IN_ANSWER: 1})


def test_messages_and_prompts_get_theirs_back(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [{"problem": [{"role": "user", "content": "What is \frac12?"}], "answer": "4"}]
    rows += [{"problem": "What is \theta?", "answer": "4"}, {"problem": "\theta \to 0", "answer": "4"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    read = load_problems(path)
    assert read.problems[0].prompt == [{"role": "user", "content": r"What is \frac12?"}]
    assert read.problems[1].prompt == r"What is \theta?"
    assert (read.restored, read.left_out) == (2, {LOST_IN_PROMPT: 1})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("['7']", "7"),
        ('["7",]', "7"),
        ("['\\\\frac{1}{2}']", r"\frac{1}{2}"),
        (r"['\frac{1}{2}']", r"\frac{1}{2}"),
        (r"['it\'s']", "it's"),
        ('["x=2"]', '["x=2"]'),  # JSON, as the reward reads it
        ("[7]", "[7]"),
    ],
)
def test_a_list_of_python_with_one_member(text, answer):
    assert gold_answer(text) == answer


@pytest.mark.parametrize("text", ["['3', '5']", "['3' '5']", "[\"3\", '5']", "['3', 5, '7']"])
def test_a_list_of_python_with_several_is_left_out(text):
    with pytest.raises(NoAnswer) as raised:
        gold_answer(text)
    assert raised.value.why == SEVERAL_IN_TEXT


@pytest.mark.parametrize("text", ['{\n"problem": "Q",\n"answer": "4"\n}\n', '{"problem": "Q",\n"answer": "4"}\n'])
def test_an_object_over_several_lines_of_jsonl_is_told(tmp_path, text):
    (tmp_path / "set.jsonl").write_text(text)
    with pytest.raises(InputError, match="write each object on a line of its own"):
        load_problems(tmp_path / "set.jsonl")
