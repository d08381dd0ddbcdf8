"""Sources of problems: several of them, folders and patterns, packed files, rows and columns of their own, weights."""

import gzip
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri import cli
from siri.config import Config
from siri.config.recipe import from_settings
from siri.data.content import Content, continue_sampler
from siri.data.problems import load_problems
from siri.data.prompts import common, load_prompts
from siri.data.sampler import Sampler
from siri.errors import InputError
from siri.sources import Source, read_source
from tests.support.tiny import word_tokenizer

ROWS = [{"problem": f"w{3 + i}", "answer": str(i)} for i in range(6)]


def write(path: Path, rows=ROWS) -> Path:
    """A data file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = "\n".join(map(json.dumps, rows)) + "\n"
    if name.endswith(".json"):
        text = json.dumps(rows)
    elif name.endswith(".csv"):
        keys = list(rows[0])
        text = "\r\n".join([",".join(keys), *(",".join(f'"{row[key]}"' for key in keys) for row in rows)]) + "\r\n"
    if path.name.endswith(".zst"):
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(text.encode())
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def answers(source) -> list[str]:
    return [problem.answer for problem in load_problems(source).problems]


def refused(source, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_problems(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("a.parquet", Source("a.parquet")),
        ("a.parquet@problem,answer", Source("a.parquet", prompt_key="problem", answer_key="answer")),
        ("a.jsonl@[:100]", Source("a.jsonl", rows="[:100]")),
        ("org/name@train[:100]", Source("org/name", split="train", rows="[:100]")),
        ("org/name:main@train[:10%]@q,a,weight=0.5", Source("org/name:main", "train", "[:10%]", "q", "a", 0.5)),
        ("org/name@train+test", Source("org/name", split="train+test")),
        ("a.jsonl@weight=2", Source("a.jsonl", weight=2)),
        ("a.jsonl@answer=meta.gold", Source("a.jsonl", answer_key="meta.gold")),
        ("odd@name.jsonl", Source("odd@name.jsonl")),
        ("odd@name.jsonl@[1:2]", Source("odd@name.jsonl", rows="[1:2]")),
    ],
)
def test_words_are_read_and_written(word, meant):
    assert read_source(word) == meant and meant.text() == word


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("a.jsonl@problem,", "columns are named two"),
        ("a.jsonl@p,q,r", "columns are named two"),
        ("a.jsonl@p,q,answer=r", "columns are named two"),
        ("a.jsonl@weight=two", "weight is 'two'; it must be a number above 0"),
        ("a.jsonl@weight=0", "weight is 0; it must be a number above 0"),
        ("a.jsonl@weight=nan", "it must be a number above 0"),
        ("a.jsonl@wieght=2", "'wieght=2' is unknown"),
        ("org/name@train@test", "gives split twice"),
        ("a.jsonl@weight=2,weight=3", "gives weight twice"),
        ("org/name@tr!in", "is no split with rows"),
    ],
)
def test_words_that_mean_nothing_are_refused(word, told, capsys):
    with pytest.raises(InputError, match=told.replace("'", ".")):
        Config(data=(word,))
    assert cli.main(["train", "demo", "--data", word, "--run-dir", "nowhere"]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1 and not Path("nowhere").exists()


def test_tables_of_toml():
    text = """
        data = [{ source = "a.parquet", prompt_key = "q", answer_key = "a", weight = 2 },
                "b.jsonl", { source = "org/n", split = "train", rows = "[:100]" }]
        eval_data = [{ source = "aime24.json" }]
    """
    config = from_settings(tomllib.loads(text), Config, "recipe x")
    assert config.data == ("a.parquet@q,a,weight=2", "b.jsonl", "org/n@train[:100]")
    assert config.eval_data == ("aime24.json",)
    assert from_settings({"data": "one.jsonl"}, Config, "recipe x").data == ("one.jsonl",)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"source": "a", "wieght": 2}, "unknown key 'wieght', did you mean weight?"),
        ({"source": "a", "weight": "2"}, "weight is '2'; it must be a number"),
        ({"source": "a", "weight": True}, "it must be a number"),
        ({"source": "a", "weight": -1}, "it must be a number above 0"),
        ({"weight": 2}, "needs a source"),
        (
            {"source": "a", "prompt_key": "x,y", "answer_key": "z"},
            "data 'a@x,y,z': columns are named two",
        ),
        ({"source": "a@b", "split": "c"}, "gives split twice"),
        ({"source": "a@b"}, "cannot be told from another source"),
    ],
)
def test_tables_that_mean_nothing_are_refused(table, told):
    with pytest.raises(InputError, match=r"recipe x") as caught:
        from_settings({"data": [table]}, Config, "recipe x")
    assert told in str(caught.value)


def test_sources_together():
    with pytest.raises(InputError, match=r"data names 'a\.jsonl' twice; give it a weight"):
        Config(data=("a.jsonl", "a.jsonl"))
    with pytest.raises(InputError, match=r"eval_data: 'a\.jsonl@weight=2' has a weight"):
        Config(eval_data=("a.jsonl@weight=2",))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name",
    ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.json.gz", "a.jsonl.gz", "a.csv.gz", "a.jsonl.zst", "A.CSV.ZST"],
)
def test_every_kind_of_file(tmp_path, name):
    path = write(tmp_path / name.lower())
    path = path.rename(tmp_path / name)
    problems = load_problems(path).problems
    assert [(problem.id, problem.prompt, problem.answer) for problem in problems] == [
        (f"{name.split('.')[0]}/{i}", row["problem"], row["answer"]) for i, row in enumerate(ROWS)
    ]


def test_packed_files_in_several_members(tmp_path):
    line = [(json.dumps(row) + "\n").encode() for row in ROWS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, line)))
    assert answers(tmp_path / "a.jsonl.gz") == list("012345")
    codec = pa.Codec("zstd")
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(codec.compress(member, asbytes=True) for member in line))
    assert answers(tmp_path / "a.jsonl.zst") == list("012345")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.json.zst"])
def test_packed_files_that_are_cut_or_none(tmp_path, name):
    rows = [{"problem": str(number) * 50, "answer": str(number)} for number in range(5000)]
    whole = write(tmp_path / name, rows).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert f"{name}: cannot be unpacked" in refused(tmp_path / name)
    (tmp_path / name).write_bytes(b"problem,answer\n1,2\n" * 10)
    assert f"{name}: cannot be unpacked" in refused(tmp_path / name)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused(tmp_path / name)


def test_parquet_is_not_packed_again(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    assert "leave out .gz" in refused(tmp_path / "a.parquet.gz")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("problem,answer\n1,2,3\n", "line 2 has 3 values for 2 columns"),
        ("problem,problem,answer\n1,2,3\n", "two columns 'problem'"),
        ("problem;answer\n1;2\n", "not separated by commas"),
        ('problem,answer\n"1,2\n', "malformed CSV at line 2"),
        ("problem,answer\n", "the data set is empty"),
        ("", "the data set is empty"),
        ("question,gold\n1,2\n", "columns found: question, gold"),
    ],
)
def test_csv_that_is_wrong(tmp_path, text, told):
    (tmp_path / "a.csv").write_text(text)
    assert told in refused(tmp_path / "a.csv")


def test_csv_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffproblem,answer,more\r\n"Say ""x"",\ntwice",7,\r\n\r\nw4,,y\r\n'.encode())
    problem_set = load_problems(tmp_path / "a.csv")
    assert [(problem.prompt, problem.answer) for problem in problem_set.problems] == [
        ('Say "x",\ntwice', "7")
    ] and problem_set.dropped == 1


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("siri.data.text_files.LONGEST_LINE", 2**21)
    (tmp_path / "a.jsonl").write_bytes(b'{"problem": "' + b"x" * 2**23)
    assert "a line of more than 2,097,152 bytes (from byte 0 on)" in refused(tmp_path / "a.jsonl")


def test_columns_that_appear_late_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("siri.data.text_files.FIRST", 2)
    path = write(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}, *ROWS])
    problem_set = load_problems(path)
    assert len(problem_set.problems) == 6 and problem_set.dropped == 2


def test_folders_and_patterns(tmp_path):
    for number in (10, 9, 1):
        write(tmp_path / f"part-{number}.jsonl", [{"problem": f"w{number}", "answer": str(number)}])
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")
    assert answers(tmp_path) == ["1", "9", "10"]
    assert answers(f"{tmp_path}/part-*.jsonl") == ["1", "9", "10"]
    assert answers(f"{tmp_path}/part-?.jsonl@[1:]") == ["9"]
    assert answers(f"{tmp_path}@[:2]") == ["1", "9"]
    ids = [problem.id for problem in load_problems(tmp_path).problems]
    assert ids == ["part-1/0", "part-9/0", "part-10/0"]


def test_folders_that_hold_no_one_set(tmp_path):
    assert "no .json" in refused(tmp_path)
    assert "no file matches this pattern" in refused(f"{tmp_path}/*.jsonl")
    write(tmp_path / "train-0.jsonl")
    write(tmp_path / "test-0.jsonl")
    assert "holds files of train and test; name one by a pattern, as in train-*.jsonl" in refused(tmp_path)
    (tmp_path / "test-0.jsonl").unlink()
    write(tmp_path / "train-1.parquet")
    assert "holds jsonl and parquet files" in refused(tmp_path)
    write(tmp_path / "train-2.jsonl", [{"question": "q", "gold": "7"}])
    message = refused(f"{tmp_path}/*.jsonl")
    assert "train-2.jsonl: no columns" in message and "question, gold" in message


def test_rows(tmp_path):
    path = write(tmp_path / "a.jsonl")
    assert answers(f"{path}@[:2]") == ["0", "1"] and answers(f"{path}@[4:]") == ["4", "5"]
    assert answers(f"{path}@[2:3]") == ["2"]
    assert "holds no row" in refused(f"{path}@[3:3]")
    assert "rows of files are counted" in refused(f"{path}@[:10%]")
    assert "it has 6 rows" in refused(f"{path}@[6:]")
    assert "files have no split 'train'" in refused(f"{path}@train")


def test_rows_of_the_hub_go_to_the_hub(monkeypatch):
    import datasets

    calls = []

    def load_dataset(name, configuration, *, split):
        calls.append((name, configuration, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_problems("org/name:c@train[:10%]").problems) == 6
    assert len(load_problems("org/name@[:100]").problems) == 6
    assert calls == [("org/name", "c", "train[:10%]"), ("org/name", None, "train[:100]")]


# ---------------------------------------------------------------- several


def settings(**changes) -> SimpleNamespace:
    given = {"reward": "math", "prompt_key": "", "answer_key": "", "template": "plain", "instruction": ""}
    return SimpleNamespace(**given | {"max_prompt_tokens": 20, "template_variables": dict} | changes)


def prompts(words, **options):
    return load_prompts([str(word) for word in words], word_tokenizer(), settings(), **options)


def test_several_sources_with_keys_of_their_own(tmp_path):
    first = write(tmp_path / "one.jsonl", ROWS[:2])
    second = write(tmp_path / "two.csv", [{"q": "w9", "gold": "9"}])
    both = prompts([first, f"{second}@q,gold"])
    assert both.answers == ["0", "1", "9"] and both.ids == [[3], [4], [9]]
    assert [(Path(part.source).name, part.problems) for part in both.parts] == [("one.jsonl", 2), ("two.csv@q,gold", 1)]
    with pytest.raises(InputError, match=r"two\.csv: no columns .*columns found: q, gold"):
        prompts([first, second])
    with pytest.raises(InputError, match=r"two\.csv: no column 'problem' \(--prompt-key\)"):
        load_prompts([str(first), str(second)], word_tokenizer(), settings(prompt_key="problem", answer_key="answer"))
    with pytest.raises(InputError, match=r"two\.csv@q,gold: --max-prompt-tokens 1: all 1 prompts are longer"):
        write(second, [{"q": "w9 w9", "gold": "9"}])
        load_prompts([str(first), f"{second}@q,gold"], word_tokenizer(), settings(max_prompt_tokens=1))


def test_what_is_left_out_is_told_by_source(tmp_path):
    first = write(tmp_path / "one.jsonl", [*ROWS[:2], {"problem": "w5", "answer": "proof"}])
    second = write(tmp_path / "two.jsonl", [*ROWS[2:4], {"problem": "w5 " * 30, "answer": "7"}])
    both = prompts([first, second])
    assert both.notes("ignored") == [
        f"{first}: 1 rows with a placeholder for an answer (proof 1) left out",
        f"{second}: 1 over-long prompts left out",
    ]
    assert (both.dropped, both.too_long) == (1, 1)


def test_duplicates_are_told_and_dropped_on_request(tmp_path):
    first = write(tmp_path / "one.jsonl", [ROWS[0], ROWS[0], ROWS[1]])
    second = write(tmp_path / "two.jsonl", [ROWS[1], ROWS[2], {**ROWS[2], "answer": "other"}])
    kept = prompts([first, second], drop=False)
    assert len(kept.ids) == 6 and kept.notes("")[-2:] == [
        "2 of 6 problems repeat another; --duplicates drop takes each once",
        "1 prompts come with more than one answer, each of which is taken as it is",
    ]
    dropped = prompts([first, second], drop=True)
    assert dropped.answers == ["0", "1", "2", "other"] and dropped.ids == [[3], [4], [5], [5]]
    assert [part.problems for part in dropped.parts] == [2, 2]
    assert dropped.notes("")[0] == "2 problems that repeat another left out"
    (line,) = prompts([first]).notes("SET")
    assert line == "SET: 1 of 3 problems repeat another", "of what is measured nothing is dropped"


def test_weights_make_an_epoch(tmp_path):
    first, second = write(tmp_path / "one.jsonl", ROWS[:4]), write(tmp_path / "two.jsonl", ROWS[4:])
    both = prompts([f"{first}@weight=0.5", f"{second}@weight=3"])
    assert both.weights() == ((4, 0.5), (2, 3.0)) and prompts([first, second]).weights() == ()
    sampler = Sampler(6, 0, weights=both.weights())
    assert sampler.draws == 8
    epochs = [np.bincount(sampler.take(8), minlength=6) for _ in range(4)]
    for epoch in epochs:
        assert epoch[4:].tolist() == [3, 3] and epoch[:4].sum() == 2
    for pair in (epochs[0] + epochs[1], epochs[2] + epochs[3]):
        assert pair[:4].tolist() == [1, 1, 1, 1], "a source is gone through before anything of it comes again"


@pytest.mark.parametrize("before", [0, 5, 8, 21])
def test_weighted_draws_resume_exactly(before):
    weights = ((4, 0.5), (2, 3.0))
    sampler = Sampler(6, 3, weights=weights)
    sampler.take(before)
    state = json.loads(json.dumps(sampler.state()))
    assert Sampler(6, **state, weights=weights).take(30) == sampler.take(30)


def test_weights_that_draw_nothing_are_refused():
    with pytest.raises(InputError, match="an epoch has no problem"):
        Sampler(3, 0, weights=((1, 0.1), (2, 0.2)))


def test_the_identity_of_the_data_covers_all_sources_and_their_weights(tmp_path):
    first, second = write(tmp_path / "one.jsonl", ROWS[:4]), write(tmp_path / "two.jsonl", ROWS[4:])
    tokenizer = word_tokenizer()

    def content(*words) -> Content:
        return Content.of(", ".join(map(str, words)), prompts(words), tokenizer)

    begun = content(first, f"{second}@weight=2")
    begun_again = Content.read(_kept(tmp_path, begun))
    assert begun_again == begun and begun_again.weights == ((4, 1.0), (2, 2.0))
    state = Sampler(6, 7, weights=begun.weights)
    state.take(5)
    sampler, notes = continue_sampler(state.state(), begun, begun_again, seed=7, accept=False)
    assert notes == [] and sampler.take(20) == state.take(20)

    for other in (content(first, second), content(first, f"{second}@weight=3"), content(f"{second}@weight=2", first)):
        with pytest.raises(InputError, match="--data-changed accept"):
            continue_sampler(state.state(), other, begun, seed=7, accept=False)
        sampler, notes = continue_sampler(state.state(), other, begun, seed=7, accept=True)
        assert any(note.endswith("accepted") for note in notes) and len(sampler.take(20)) == 20
    write(second, [*ROWS[4:], {"problem": "w20", "answer": "20"}])
    with pytest.raises(InputError, match="other weights or sizes"):
        continue_sampler(state.state(), content(first, f"{second}@weight=2"), begun, seed=7, accept=False)
    plain = content(first, tmp_path / "two.jsonl")
    with pytest.raises(InputError, match="of 7 problems 1 are gone or changed"):
        changed = write(tmp_path / "two.jsonl", ROWS[4:])
        continue_sampler(None, content(first, changed), plain, seed=7, accept=False)


def _kept(folder: Path, content: Content) -> Path:
    (folder / "data.json").write_bytes(content.written())
    return folder / "data.json"


def test_held_out_problems_that_are_trained_on_are_counted(tmp_path):
    first, second = write(tmp_path / "one.jsonl", ROWS[:4]), write(tmp_path / "two.jsonl", ROWS[3:])
    assert common(prompts([first]), prompts([second])) == 1


def test_columns_that_nobody_knows_are_named_for_that_set_first(tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text('{"words": "Q", "gold": "7"}\n')
    with pytest.raises(InputError, match=r"b\.jsonl: no columns .* name them as .*b\.jsonl@PROMPT,ANSWER, or for all"):
        load_problems(path)
