"""Prompts as text, as messages, as JSON text of messages, and with contents in parts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.gold import MISSING, NoAnswer
from siri.data.messages import NOT_TEXT, read_prompt, without_answer
from siri.data.problems import load_problems
from siri.errors import InputError

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "so it is 7"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        (" Q ", "Q"),
        ([SYSTEM, USER], [SYSTEM, USER]),
        (json.dumps([SYSTEM, USER]), [SYSTEM, USER]),
        (json.dumps([{"content": "Q", "role": "user"}], indent=1), [USER]),
        ([{"role": "user", "content": [{"type": "text", "text": "Q"}]}], [USER]),
        ([{"role": "user", "content": ["Q", {"type": "input_text", "text": ""}, {"text": ""}]}], [USER]),
        (json.dumps([{"role": "user", "content": [{"type": "text", "text": "Q"}]}]), [USER]),
        ([{"role": "user", "content": json.dumps([{"type": "text", "text": "Q"}])}], [USER]),
        ([{"role": "user", "content": (other := '[{"type": 7}] is?')}], [{"role": "user", "content": other}]),
        *(
            ([{"role": "user", "content": text}], [{"role": "user", "content": text}])
            for text in (
                '[{"text": "The movie was great", "label": 1}]',
                '[{"text": "Alice"}, {"text": "Bob"}]',
                '[{"type": "file", "name": "a.txt"}]',
                '[{"type": "text", "value": 3}]',
                '[{"type": ["text"], "text": 3}]',
            )
        ),
        ([{"role": "user", "content": "Q", "name": "x"}], [USER]),
        (USER, [USER]),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER]),
        (json.dumps({"messages": [SYSTEM, USER]}), [SYSTEM, USER]),
        (json.dumps(USER), [USER]),
        (json.dumps(json.dumps([SYSTEM, USER])), [SYSTEM, USER]),
        (json.dumps(json.dumps(json.dumps({"messages": [USER]}))), [USER]),
        ([{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Q"}], [SYSTEM, USER]),
        ({"conversations": [{"from": "human", "value": "Q"}]}, [USER]),
        (json.dumps([{"from": "user", "value": "Q"}]), [USER]),
        ('"{\\"" is a string of which length?', '"{\\"" is a string of which length?'),
        ("{'a', 'b'} has which size?", "{'a', 'b'} has which size?"),
        ("[1, 2] has which sum?", "[1, 2] has which sum?"),
        ('[{"a": 1}] is JSON of what?', '[{"a": 1}] is JSON of what?'),
    ],
)  # fmt: skip
def test_the_ways_of_writing_a_prompt(value, prompt):
    assert read_prompt(value) == prompt


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{"role": "human", "content": "Q"}], "'human' .* none of system, user, assistant, tool"),
        ([{"from": "alien", "value": "Q"}], "'alien' .* none of system, user, assistant, tool"),
        ([{"from": "human"}], "'from' and 'value'"),
        (json.dumps('[{"role": "user", "content'), "not JSON"),
        ([{"role": "user", "content": {"text": "Q"}}], "'role' and a 'content'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "no 'text'"),
        ([{"role": "user", "content": [3]}], "part of a chat message is of type int"),
        (["Q"], "a chat message is of type str"),
        ("[{'role': 'user', 'content': 'Q'}]", "not JSON"),
        ({"text": "Q"}, "'role' and a 'content'"),
        ({"messages": "Q"}, "of type str"),
    ],
)
def test_what_is_no_prompt_is_refused(value, words):
    with pytest.raises(TypeError, match=words):
        read_prompt(value)


@pytest.mark.parametrize("kind", ["image", "image_url", "input_image", "video", "audio"])
def test_prompts_with_other_parts_than_text_are_left_out(tmp_path, kind):
    pictured = [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": kind, kind: "x.png"}]}]
    with pytest.raises(NoAnswer) as caught:
        read_prompt(pictured)
    assert caught.value.why == NOT_TEXT
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"prompt": pictured, "answer": "7"}, {"prompt": [USER], "answer": "7"}]))
    problem_set = load_problems(path)
    assert [problem.prompt for problem in problem_set.problems] == [[USER]] and problem_set.left_out == {NOT_TEXT: 1}


@pytest.mark.parametrize("column", ["image", "images", "Images"])
def test_a_placeholder_for_an_image_beside_a_column_of_images_is_one(tmp_path, column):
    path = tmp_path / "set.parquet"
    prompts = ["<image>Find x.", "Find x.", "In <image 2>, find x."]
    pq.write_table(pa.table({"problem": prompts, "answer": ["1", "2", "3"], column: [[b"1"], [], [b"2"]]}), path)
    problem_set = load_problems(path)
    assert [problem.prompt for problem in problem_set.problems] == ["Find x."] and problem_set.left_out == {NOT_TEXT: 2}
    rows = [[{"role": "user", "content": prompt}] for prompt in prompts]
    path.with_suffix(".jsonl").write_text(
        "".join(json.dumps({"prompt": row, "answer": "7", column: ["x.png"]}) + "\n" for row in rows)
    )
    assert load_problems(path.with_suffix(".jsonl")).left_out == {NOT_TEXT: 2}


def test_a_placeholder_is_looked_at_in_each_file(tmp_path):
    row = {"problem": "What does <image> mean?", "answer": "7"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"images": ["x.png"]}))
    problem_set = load_problems(tmp_path)
    assert len(problem_set.problems) == 1 and problem_set.left_out == {NOT_TEXT: 1}


def test_a_tag_in_a_set_without_images_is_text(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"problem": "What does <image> mean in XML?", "answer": "7"}))
    assert len(load_problems(path).problems) == 1


@pytest.mark.parametrize("value", [[SYSTEM], [SYSTEM, ASSISTANT], json.dumps([SYSTEM])])
def test_a_conversation_in_which_nobody_asks_is_no_prompt(value):
    with pytest.raises(NoAnswer, match="no user asks"):
        read_prompt(value)


@pytest.mark.parametrize("value", [None, "", " \n", [], [{"role": "user", "content": " "}]])
def test_empty_prompts_are_missing(value):
    with pytest.raises(NoAnswer) as caught:
        read_prompt(value)
    assert caught.value.why == MISSING


def test_the_answer_at_the_end_of_a_conversation_is_cut_off_and_counted(tmp_path):
    assert without_answer([SYSTEM, USER, ASSISTANT]) == [SYSTEM, USER]
    assert without_answer([USER, ASSISTANT, ASSISTANT]) == [USER]
    assert without_answer([USER, ASSISTANT, USER]) == [USER, ASSISTANT, USER], "an earlier turn belongs to the prompt"
    assert without_answer([ASSISTANT]) == [] and without_answer("text") == "text"
    rows = [[USER, ASSISTANT], [USER], [ASSISTANT], json.dumps([USER, ASSISTANT])]
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"prompt": row, "answer": "7"} for row in rows]))
    problem_set = load_problems(path)
    assert [problem.prompt for problem in problem_set.problems] == [[USER]] * 3
    assert problem_set.answered == 2 and problem_set.left_out == {MISSING: 1}


def test_parts_in_parquet(tmp_path):
    """All parts of a column share one struct there: a text part has an image that is null."""
    parts = [{"type": "text", "text": "Q", "image": None}, {"type": "image", "text": None, "image": "x.png"}]
    rows = [[{"role": "user", "content": parts[:1]}], [{"role": "user", "content": parts}]]
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"prompt": rows, "answer": ["7", "8"]}), path)
    problem_set = load_problems(path)
    assert [(problem.prompt, problem.answer) for problem in problem_set.problems] == [
        ([USER], "7")
    ] and problem_set.left_out == {NOT_TEXT: 1}


def test_conversations_as_objects(tmp_path):
    rows = [{"prompt": {"messages": [SYSTEM, USER]}, "answer": "7"}, {"prompt": USER, "answer": "7"}]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    pq.write_table(pa.table({"prompt": [row["prompt"] for row in rows[:1]], "answer": ["7"]}), tmp_path / "set.parquet")
    assert [problem.prompt for problem in load_problems(tmp_path / "set.json").problems] == [[SYSTEM, USER], [USER]]
    assert load_problems(tmp_path / "set.parquet").problems[0].prompt == [SYSTEM, USER]


def test_roles_in_a_file(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "gpt", "content": "Q"}], "answer": "7"}))
    with pytest.raises(InputError, match=r"set\.jsonl: row 0: the role 'gpt' .* \(column 'prompt'\)"):
        load_problems(path)


def test_what_sharegpt_calls_the_turns_and_its_answer_is_cut_off(tmp_path):
    path = tmp_path / "share.jsonl"
    turns = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    path.write_text(json.dumps({"conversations": turns, "answer": "2"}))
    read = load_problems(path, prompt_key="conversations")
    assert [problem.prompt for problem in read.problems] == [[{"role": "user", "content": "1 + 1?"}]]
    assert read.answered == 1
