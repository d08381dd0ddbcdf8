import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.problems import Problem, load_problems, resolve_path, short_names
from siri.data.prompts import render_prompts
from siri.errors import InputError

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
BOS, EOS, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"
# DeepSeek-R1-Distill's template in small: the BOS token is part of it, and the answer starts inside the thinking
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)


def make_tokenizer(texts, chat_template=R1_TEMPLATE, closing=""):
    """A byte-level BPE tokenizer trained on `texts` that puts BOS before plain text, as Llama's and R1's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {closing}".strip(), special_tokens=special
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
    fast.chat_template = chat_template
    return fast


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(["What is two plus two? Add the numbers.", INSTRUCTION] * 20)


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rejected(source, **options) -> str:
    """The one line that `load_problems` refuses `source` with."""
    with pytest.raises(InputError) as caught:
        load_problems(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(str(source)).name in message
    return message


# ---------------------------------------------------------------- real problems


@pytest.mark.parametrize(
    ("file", "rows", "dropped"),
    [
        ("aime24.json", 30, 0),
        ("amc83.json", 83, 0),
        ("math500.json", 500, 0),
        ("math_train.json", 7474, 4),  # two null answers (rows 886, 1009), two empty ones (rows 5328, 5330)
        ("deepscaler_part.parquet", 24976, 1),  # row 2410 has "N/A" for an answer
    ],
)
def test_real_files(data_dir, file, rows, dropped):
    problem_set = load_problems(data_dir / file)
    assert (len(problem_set.problems), problem_set.dropped) == (rows - dropped, dropped)
    assert len({problem.id for problem in problem_set.problems}) == len(problem_set.problems)
    assert all(problem.prompt and problem.answer == problem.answer.strip() != "" for problem in problem_set.problems)


def test_ids_name_the_row_of_the_file(data_dir):
    raw = json.loads((data_dir / "math_train.json").read_text())
    problems = load_problems(data_dir / "math_train.json").problems
    assert not {f"math_train/{row}" for row in (886, 1009, 5328, 5330)} & {problem.id for problem in problems}
    for problem in problems[880:890] + problems[-3:]:
        row = raw[int(problem.id.removeprefix("math_train/"))]
        assert (problem.prompt, problem.answer) == (row["problem"].strip(), row["answer"].strip())


def test_real_answers_are_text(data_dir):
    answers = [problem.answer for problem in load_problems(data_dir / "amc83.json").problems]
    assert answers[0] == "142"  # 142.0 in the file
    assert not [answer for answer in answers if answer.endswith(".0")]


def test_deepscaler_parquet_is_recognised_as_verl_rows(data_dir):
    path = data_dir / "deepscaler_part.parquet"
    raw = pq.read_table(path).slice(0, 50).to_pylist()
    for problem, row in zip(load_problems(path).problems[:50], raw, strict=True):
        assert problem.prompt == [{"role": "user", "content": row["prompt"][0]["content"]}]
        assert problem.answer == row["reward_model"]["ground_truth"].strip()


def test_render_real_prompts(data_dir):
    problems = load_problems(data_dir / "math500.json").problems
    verl = load_problems(data_dir / "deepscaler_part.parquet").problems[:500]
    tokenizer = make_tokenizer(problem.prompt for problem in problems)
    ids, kept, too_long = render_prompts(problems, tokenizer, instruction=INSTRUCTION, max_prompt_tokens=200)
    assert too_long == len(problems) - len(kept) > 0
    assert len(ids) == len(kept) > 300
    assert max(map(len, ids)) <= 200
    for tokens, problem in zip(ids, kept, strict=True):
        assert tokens.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(tokens) == f"{BOS}{USER}{problem.prompt} {INSTRUCTION}{ASSISTANT}<think>\n"

    ids, kept, _ = render_prompts(verl, tokenizer, instruction=INSTRUCTION)
    for tokens, problem in zip(ids, kept, strict=True):
        text = tokenizer.decode(tokens)
        assert text == f"{BOS}{USER}{problem.prompt[0]['content']}{ASSISTANT}<think>\n"
        assert text.count(INSTRUCTION) == 1


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "Q", "answer": "7", "solution": "no"},
        {"prompt": [{"role": "user", "content": "Q"}], "reward_model": {"ground_truth": "7", "style": "rule"}},
        {"question": "Q", "answer": "three and four #### 7"},
        {"prompt": "Q", "answer": 7},
        {"data_source": "x", "prompt": "Q", "reward_model": {"ground_truth": ["7"]}, "answer": "wrong column"},
    ],
    ids=["deepscaler", "verl", "gsm8k", "prompt-answer", "verl-before-answer"],
)
@pytest.mark.parametrize("suffix", ["json", "json-data", "jsonl", "parquet"])
def test_known_rows_in_every_format(tmp_path, row, suffix):
    rows = [row, row]
    match suffix:
        case "json":
            path = write(tmp_path / "set.json", rows)
        case "json-data":
            path = write(tmp_path / "set.json", {"version": 1, "data": rows})
        case "jsonl":
            path = write(tmp_path / "set.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n")
        case _:
            path = tmp_path / "set.parquet"
            pq.write_table(pa.Table.from_pylist(rows), path)
    expected = [{"role": "user", "content": "Q"}] if isinstance(row.get("prompt"), list) else "Q"
    assert load_problems(path).problems == [Problem("set/0", expected, "7"), Problem("set/1", expected, "7")]


def test_named_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"in": {"q": "Q", "q.raw": "no"}, "meta": {"gold": {"text": "7"}}}))
    [problem] = load_problems(path, prompt_key="in.q", answer_key="meta.gold.text").problems
    assert (problem.prompt, problem.answer) == ("Q", "7")
    path = write(tmp_path / "b.json", [{"in.q": "Q", "answer": "7"}])
    assert load_problems(path, prompt_key="in.q").problems[0].prompt == "Q"


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (142.0, "142"),
        (0.5, "0.5"),
        (-3, "-3"),
        (1e300, "1" + 300 * "0"),  # as a number is written, not as a program prints it
        (" \\frac12 ", "\\frac12"),
        (["7"], "7"),
        (["1/2", None, 0.5], '["1/2", "0.5"]'),
    ],
)
def test_answers_become_text(tmp_path, value, answer):
    assert load_problems(write(tmp_path / "a.json", [{"problem": "Q", "answer": value}])).problems[0].answer == answer


@pytest.mark.parametrize("value", [np.array(["7"]), np.array("7"), np.float64(7.0), np.array([7.0])])
def test_numpy_answers_from_the_hub(monkeypatch, value):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: [{"problem": "Q", "answer": value}])
    assert load_problems("org/name").problems == [Problem("org/name/0", "Q", "7")]


def test_rows_without_prompt_or_answer_are_dropped_and_counted(tmp_path):
    rows = [{"problem": "Q", "answer": answer} for answer in (None, "", " ", [], [None], float("nan"), "7", 0)]
    problem_set = load_problems(write(tmp_path / "a.json", [*rows, {"answer": "7"}, {"problem": "", "answer": "7"}]))
    assert [(problem.id, problem.answer) for problem in problem_set.problems] == [("a/6", "7"), ("a/7", "0")]
    assert problem_set.dropped == 8


def test_unicode_line_separators_do_not_split_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"problem": "one\u2028two", "answer": "7"}\n')
    assert load_problems(path).problems[0].prompt == "one\u2028two"


def test_hub(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_list([{"question": "Q", "answer": "#### 7"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("openai/gsm8k:main", split="test").problems == [Problem("openai/gsm8k:main/0", "Q", "7")]
    assert calls == [(("openai/gsm8k", "main"), {"split": "test"})]


def test_package_data(tmp_path, monkeypatch):
    assert resolve_path("siri:errors.py").endswith(os.path.join("siri", "errors.py"))
    with pytest.raises(InputError, match="siri:demo/no-such"):
        resolve_path("siri:demo/no-such")
    assert resolve_path("org/model") == "org/model"
    assert resolve_path(tmp_path) == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/x.json") == str(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"siri:erors\.py: .*errors\.py"):
        resolve_path("siri:erors.py")


def test_names_tell_sources_apart():
    assert short_names(["x/a.json", "y/b.json"]) == {"x/a.json": "a.json", "y/b.json": "b.json"}
    assert list(short_names(["A/test.jsonl", "B/test.jsonl", "B/x/test.jsonl"]).values()) == [
        "A/test.jsonl",
        "B/test.jsonl",
        "x/test.jsonl",
    ]
    assert list(short_names(["test.jsonl", "A/test.jsonl", "org/name@test"]).values()) == [
        "test.jsonl",
        "A/test.jsonl",
        "name@test",
    ]


# ---------------------------------------------------------------- bad input


def test_missing_file(tmp_path):
    assert "no such file" in rejected(tmp_path / "nothing.json")
    assert "no such file" in rejected("siri-no-such.parquet")


def test_malformed_json(tmp_path):
    path = write(tmp_path / "a.json", '[\n {"problem": "Q",\n  answer: 7}]')
    assert "line 3, column 3" in rejected(path)
    path = write(tmp_path / "b.json", '{"problem": "Q", "answer": 1}\n{"problem": "Q", "answer": 1}\n')
    assert ".jsonl" in rejected(path)
    assert "'data'" in rejected(write(tmp_path / "c.json", {"rows": []}))
    assert "row 1 is of type int" in rejected(write(tmp_path / "d.json", [{"problem": "Q", "answer": 1}, 3]))
    (tmp_path / "e.json").write_bytes(b'["\xff"]')
    assert "UTF-8" in rejected(tmp_path / "e.json")


def test_malformed_json_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"problem": "Q", "answer": 1}\n\n{"problem": "Q", "answer": }\n')
    assert "line 3, column 28" in rejected(path)


def test_unreadable_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not parquet")
    assert "unreadable parquet" in rejected(tmp_path / "a.parquet")


@pytest.mark.parametrize("rows", [[], [{"problem": "Q", "answer": None}], [{"problem": "", "answer": "7"}]])
def test_empty_data_set(tmp_path, rows):
    assert "empty" in rejected(write(tmp_path / "a.json", rows))
    assert "empty" in rejected(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))


def test_missing_columns_are_listed_with_the_option(tmp_path):
    path = write(tmp_path / "a.json", [{"text": "Q", "reward_model": {"truth": "7"}}])
    message = rejected(path)
    assert message.endswith("columns found: text, reward_model.truth")
    assert "--prompt-key and --answer-key" in message
    message = rejected(path, prompt_key="text")
    assert "--answer-key" in message and "--prompt-key" not in message
    assert "'txt' (--prompt-key)" in rejected(path, prompt_key="txt", answer_key="reward_model.truth")
    assert "'truth' (--answer-key)" in rejected(path, prompt_key="text", answer_key="truth")


def test_values_of_the_wrong_kind(tmp_path):
    good = {"prompt": "Q", "answer": "7"}
    assert "row 1: the prompt is of type int" in rejected(
        write(tmp_path / "a.json", [good, {"prompt": 3, "answer": 1}])
    )
    messages = {"prompt": [{"role": "user", "content": None}], "answer": "7"}
    assert "row 1: a chat message" in rejected(write(tmp_path / "b.json", [good, messages]))
    nested = {"prompt": "Q", "answer": [{"x": 1}]}
    assert "row 1: the answer is of type dict" in rejected(write(tmp_path / "c.json", [good, nested]))


def test_unknown_kind_of_source(tmp_path):
    for path in (write(tmp_path / "a.tsv", "problem,answer"), tmp_path / "b.txt", tmp_path):
        assert ".jsonl" in rejected(path)


def test_hub_unreachable():
    code = "from siri.data.problems import load_problems\nload_problems('org/unreachable')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("siri.errors.InputError: org/unreachable: no such file, and as a hub dataset"), run.stderr


# ---------------------------------------------------------------- prompts


def test_auto_renders_chat_once_with_the_instruction(tokenizer):
    problems = [
        Problem("0", "What is two plus two?", "4"),
        Problem("1", f"What? {INSTRUCTION}", "4"),
        Problem("2", [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Hm"}], "4"),
    ]
    ids, kept, too_long = render_prompts(problems, tokenizer, instruction=INSTRUCTION)
    assert (kept, too_long) == (problems, 0)
    assert [tokenizer.decode(tokens) for tokens in ids] == [
        f"{BOS}{USER}What is two plus two? {INSTRUCTION}{ASSISTANT}<think>\n",
        f"{BOS}{USER}What? {INSTRUCTION}{ASSISTANT}<think>\n",
        f"{BOS}{USER}What?{ASSISTANT}<think>\n",  # the assistant's turn would show the answer to whom it is asked
    ]
    assert all(type(token) is int for tokens in ids for token in tokens)
    assert render_prompts(problems, tokenizer, template="chat", instruction=INSTRUCTION)[0] == ids


@pytest.mark.parametrize("closing", ["", EOS])
def test_plain(closing):
    plain = make_tokenizer(["one two three"], chat_template=None, closing=closing)
    problems = [Problem("0", "one two", "3"), Problem("1", [{"role": "user", "content": "three"}], "3")]
    for template in ("plain", "auto"):
        ids, _, _ = render_prompts(problems, plain, template=template, instruction="think")
        assert [plain.decode(tokens) for tokens in ids] == [f"{BOS}one two think", f"{BOS}three"]


def test_long_prompts_are_filtered_and_counted(tokenizer):
    problems = [Problem(str(n), "x " * n, "1") for n in (1, 30, 2, 40)]
    ids, kept, too_long = render_prompts(problems, tokenizer, template="plain", max_prompt_tokens=20)
    assert [problem.id for problem in kept] == ["1", "2"]
    assert too_long == 2 and len(ids) == 2
    limit = len(ids[1])
    assert len(render_prompts(problems, tokenizer, template="plain", max_prompt_tokens=limit)[0]) == 2
    assert len(render_prompts(problems, tokenizer, template="plain", max_prompt_tokens=limit - 1)[0]) == 1
    shortest = len(ids[0])
    with pytest.raises(InputError, match=rf"--max-prompt-tokens 1: all 4 prompts .* shortest has {shortest}"):
        render_prompts(problems, tokenizer, template="plain", max_prompt_tokens=1)


def test_bad_templates(tokenizer):
    problems = [Problem("0", [{"role": "tool", "content": "x"}], "1")]
    with pytest.raises(InputError, match="no tools here"):
        render_prompts(problems, tokenizer)
    with pytest.raises(InputError, match="no chat template"):
        render_prompts(problems, make_tokenizer(["x"], chat_template=None), template="chat")
    with pytest.raises(InputError, match="auto, chat or plain"):
        render_prompts(problems, tokenizer, template="jinja")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:hard", ("org/name", "hard", "train")),
        ("org/name@test", ("org/name", None, "test")),
        ("org/name:hard@test", ("org/name", "hard", "test")),
    ],
)
def test_hub_names_carry_configuration_and_split(source, asked, monkeypatch):
    import datasets

    calls = []

    def load_dataset(name, configuration, *, split):
        calls.append((name, configuration, split))
        return [{"problem": "1 + 1", "answer": "2"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [problem.answer for problem in load_problems(source).problems] == ["2"]
    assert calls == [asked]
