"""Data files that are odd: JSON with doubled keys and wrong endings, parquet that is made to fill the memory."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.problems import load_problems
from siri.data.prompts import load_prompts, render_prompts
from siri.errors import InputError

ROW = '{"problem": "Q", "answer": "7"}'


def refused(tmp_path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_problems(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    return str(caught.value)


def test_an_array_in_a_jsonl_file_is_told(tmp_path):
    for text in (f"[{ROW}, {ROW}]", f"[\n {ROW},\n {ROW}\n]", f"\ufeff [{ROW}]\n"):
        assert "line 1" in refused(tmp_path, "set.jsonl", text)
        assert "a file that is one array is named .json" in refused(tmp_path, "set.jsonl", text)


def test_lines_in_a_json_file_are_told(tmp_path):
    assert "name the file .jsonl" in refused(tmp_path, "set.json", f"{ROW}\n{ROW}\n")


def test_closing_commas_are_told_with_their_line(tmp_path):
    assert "line 2, column 32: Extra data; no comma" in refused(tmp_path, "set.jsonl", f"{ROW}\n{ROW},\n{ROW}\n")
    message = refused(tmp_path, "set.json", f"[{ROW},\n{ROW},\n]")
    assert "line 3" in message or "line 2" in message  # Python 3.13 names the comma, 3.11 what follows it
    assert "comma" in message
    assert "line 1" in refused(tmp_path, "set.jsonl", '{"problem": "Q", "answer": "7",}')


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    twice = '{"problem": "Q", "answer": "7", "answer": "8"}'
    assert "line 2 cannot be read: an object has the key 'answer' twice" in refused(
        tmp_path, "set.jsonl", f"{ROW}\n{twice}"
    )
    assert "the key 'answer' twice" in refused(tmp_path, "set.json", f"[{twice}]")


def test_windows_files_and_literals_that_are_no_json(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f'{ROW}\r\n\r\n{{"problem": "Q", "answer": NaN, "x": Infinity}}\r\n'.encode())
    problem_set = load_problems(path)
    assert [problem.answer for problem in problem_set.problems] == ["7"] and problem_set.dropped == 1


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table([["Q"], ["7"], ["8"]], names=["problem", "answer", "answer"]), path)
    with pytest.raises(InputError, match=r"set\.parquet: has two columns 'answer'"):
        load_problems(path)


def test_names_with_dots_in_parquet(tmp_path):
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"in.q": ["Q"], "meta": [{"gold": {"text": "7", "other": "8"}}]}), path)
    [problem] = load_problems(path, prompt_key="in.q", answer_key="meta.gold.text").problems
    assert (problem.prompt, problem.answer) == ("Q", "7")


def hostile(path, kind: str) -> None:
    """Files of a few KB: one prompt for a million rows, pages that compress to nothing, an answer of millions."""
    if kind == "rows":
        prompts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_300_000, pa.int32()), ["x" * 1000])
    elif kind == "text":
        prompts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 100_000])
    elif kind == "messages":
        value = pa.array([{"role": "user", "content": "x" * 100_000}])
        flat = value.take(pa.array([0] * 5000, pa.int32()))
        prompts = pa.ListArray.from_arrays(pa.array(range(5001), pa.int32()), flat)
    elif kind == "values":
        value = pa.DictionaryArray.from_arrays(pa.array([0] * 9_000_000, pa.int8()), ["x"])
        table = pa.table(
            {"prompt": ["Q"], "answer": pa.ListArray.from_arrays(pa.array([0, len(value)], pa.int32()), value)}
        )
        pq.write_table(table, path, compression="zstd")
        return
    else:
        prompts = pa.array(["x" * 100_000]).take(pa.array([0] * 4000, pa.int32()))
    answers = pa.DictionaryArray.from_arrays(pa.array([0] * len(prompts), pa.int32()), ["7"])
    table = pa.table({"prompt": prompts, "answer": answers})
    pq.write_table(table, path, compression="zstd", use_dictionary=kind != "pages")


@pytest.mark.parametrize("kind", ["rows", "text", "messages", "pages", "values"])
def test_a_small_parquet_file_takes_little_memory(tmp_path, kind):
    path = tmp_path / "set.parquet"
    hostile(path, kind)
    assert path.stat().st_size < 200_000
    code = f"""
import resource, sys
from siri.data.problems import load_problems
from siri.errors import InputError
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_problems({str(path)!r})
except InputError as error:
    print(error, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 120_000, "KiB"
    assert ("would take" in run.stderr) == (kind in ("rows", "pages", "values")), run.stderr


def test_a_prompt_that_repeats_is_rendered_once(tmp_path):
    class Counting:
        chat_template, eos_token_id, seen = None, None, 0

        def __call__(self, texts):
            self.seen += len(texts)
            return {"input_ids": [[ord(char) for char in text] for text in texts]}

    path = tmp_path / "set.parquet"
    texts = ["one", "two", "three"]
    pq.write_table(pa.table({"prompt": [texts[i % 3] for i in range(3000)], "answer": ["7"] * 3000}), path)
    problems, tokenizer = load_problems(path).problems, Counting()
    assert len({id(problem.prompt) for problem in problems}) == 3
    ids, kept, too_long = render_prompts(problems, tokenizer, max_prompt_tokens=3)
    assert tokenizer.seen == 3 and too_long == 1000 and len(ids) == len(kept) == 2000
    assert ids[:2] == [[111, 110, 101], [116, 119, 111]]


def test_notes_say_what_was_left_out_a_line_each(tmp_path):
    from types import SimpleNamespace

    from tests.support.tiny import bpe_tokenizer

    path = tmp_path / "set.jsonl"
    rows = [
        ROW,
        '{"problem": "Q", "answer": "proof"}',
        '{"problem": "Q"}',
        ROW.replace("Q", "x " * 50),
    ]
    rows += ['{"problem": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "7"}], "answer": 7}']
    path.write_text("\n".join(rows))
    settings = SimpleNamespace(
        reward="math",
        prompt_key="",
        answer_key="",
        template="plain",
        instruction="",
        max_prompt_tokens=20,
        template_variables=dict,
    )
    prompts = load_prompts(path, bpe_tokenizer(["Q x"]), settings)
    assert prompts.notes("SET") == [
        "SET: 1 rows with a placeholder for an answer (proof 1) left out",
        "SET: 1 rows without prompt or answer left out",
        "SET: 1 prompts ended with the assistant's answer, which was cut off",
        "SET: 1 over-long prompts left out",
        "SET: 1 of 2 problems repeat another",
    ]
    assert len(prompts.ids) == 2 and prompts.dropped == 2


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
def test_a_pointer_of_git_lfs_is_told_from_the_file(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match=rf"{name}: a pointer of Git LFS, .* git lfs pull"):
        load_problems(tmp_path / name)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).write_text(" \n")
    with pytest.raises(InputError, match="the data set is empty"):
        load_problems(tmp_path / name)


def test_a_matrix_is_no_list_of_alternatives(tmp_path):
    (tmp_path / "data.json").write_text('[{"problem": "q", "answer": [[1, 2], [3, 4]]}]')
    with pytest.raises(InputError, match="row 0: the answer is a list of lists"):
        load_problems(tmp_path / "data.json")


OTHER_KINDS = {
    "gzip": (gzip.compress(ROW.encode()), "packed with gzip: name it .gz"),
    "zip": (b"PK\x03\x04" + bytes(80), "a zip archive"),
    "parquet": (b"PAR1" + bytes(80), "a parquet file"),
    "UTF-16 with its mark": (ROW.encode("utf-16"), "UTF-16"),
    "UTF-16 without": (ROW.encode("utf-16-le"), "a zero at byte 1; UTF-16 has such"),
    "zeros at the end": (ROW.encode() + b"\n" + bytes(512), f"a zero at byte {len(ROW) + 1}"),
}


@pytest.mark.parametrize("name", ["set.jsonl", "set.json", "set.csv"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_text_is_told_by_its_kind(tmp_path, kind, name):
    content, said = OTHER_KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_problems(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_lines_that_end_with_a_carriage_return_alone_are_told(tmp_path):
    for name, lines in (("set.jsonl", (ROW, ROW)), ("set.csv", ("problem,answer", "Q,7"))):
        path = tmp_path / name
        path.write_bytes("\r".join(lines).encode())
        with pytest.raises(InputError, match="a carriage return alone ends no line"):
            load_problems(path)


@pytest.mark.parametrize("answer", ["\u200b", "\x00", " \ufeff ", "\u2060\u200d"])
def test_an_answer_of_which_nothing_is_seen_is_none(tmp_path, answer):
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps({"problem": "Q", "answer": text}) for text in (answer, f"7{answer}")))
    read = load_problems(path)
    assert [problem.answer for problem in read.problems] == ["7"]
    assert read.left_out == {"without prompt or answer": 1}


@pytest.mark.parametrize("name", ["set.jsonl", "set.json"])
def test_an_integer_of_endless_digits_is_told_as_what_it_is(tmp_path, name):
    row = '{"problem": "Q", "answer": ' + "9" * 5000 + "}"
    said = refused(tmp_path, name, f"[{row}]" if name.endswith(".json") else row)
    assert "a number of more than 4000 digits" in said and "sys." not in said
