"""The paper's table: its own figures agree with each other, and ours stand beside them."""

import json

import pytest

from siri.cli import main
from siri.errors import InputError
from siri.report.paper import (
    BENCHMARKS,
    PROTOCOL,
    SCORES,
    TABLE,
    base_verdict,
    benchmark_of,
    check_scores,
    expand,
    read_result,
    remarks,
    score_of,
    size_of,
)


def result_file(path, figures, model="base", samples=64, **protocol):
    """A result file of `siri eval`: figures maps a source to (accuracy, tokens, problems)."""
    benchmarks = {
        source: {
            "accuracy": accuracy,
            "tokens_mean": tokens,
            "problems": problems,
            "samples": samples,
            "pass_at_k": {"1": accuracy, **({"2": min(1.0, 1.2 * accuracy)} if samples > 1 else {})},
        }
        for source, (accuracy, tokens, problems) in figures.items()
    }
    row = {"model": model, **PROTOCOL, "samples": samples, "benchmarks": benchmarks, **protocol}
    path.write_text(json.dumps(row))
    return str(path)


PAPERS_BASE = {
    "aime24.json": (0.282, 12333, 30),
    "math-ai/aime25@test": (0.215, 12264, 30),
    "amc83.json": (0.618, 8449, 83),
    "MATH-500.parquet": (0.824, 4745, 500),
}


def test_printed_scores_follow_from_the_printed_figures():
    """To a unit of the last printed digit, and not closer: SIRI-high at 1.5B has 0.389 against 0.38."""
    for size, scores in check_scores().items():
        assert scores.keys() == SCORES[size].keys() == TABLE[size].keys()
        for model, score in scores.items():
            assert score == pytest.approx(SCORES[size][model], abs=0.01), (size, model)


def test_figures_are_the_ones_of_the_abstract_and_the_text():
    base, low = TABLE["1.5b"]["base"], TABLE["1.5b"]["SIRI-low"]
    assert 1 - low["AIME25"][1] / base["AIME25"][1] == pytest.approx(0.469, abs=5e-4)
    assert low["AIME24"][0] / base["AIME24"][0] - 1 == pytest.approx(0.432, abs=2e-3)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("some/where/aime24.json", "AIME24"),
        ("HuggingFaceH4/aime_2024@train", "AIME24"),
        ("AIME-2025.jsonl", "AIME25"),
        ("amc83.json", "AMC"),
        ("HuggingFaceH4/MATH-500@test", "MATH500"),
        ("math_train.json", None),
        ("AI-MO/aimo-validation-aime@train", None),
    ],
)
def test_benchmarks_are_known_by_their_names(source, name):
    assert benchmark_of(source) == name


def test_paper_stands_for_the_four_hub_sets():
    sources = expand(("mine.json", "paper"))
    assert sources[0] == "mine.json" and [benchmark_of(source) for source in sources[1:]] == list(BENCHMARKS)


def test_a_base_that_is_the_papers_agrees_and_another_does_not(tmp_path):
    base = read_result(result_file(tmp_path / "base.json", PAPERS_BASE))
    assert base.label == "base" and remarks([base]) == []
    assert "agrees" in base_verdict([base], "1.5b")
    # sampling error of AIME24: sqrt(0.2 * 0.282 / (30 * 64)) = 0.54 points; twice the root of two of it is 1.5
    near = read_result(result_file(tmp_path / "base2.json", PAPERS_BASE | {"aime24.json": (0.295, 12333, 30)}))
    assert near.figures["AIME24"].error == pytest.approx(0.554, abs=5e-3)
    assert "agrees" in base_verdict([near], "1.5b")
    far = read_result(result_file(tmp_path / "base3.json", PAPERS_BASE | {"aime24.json": (0.30, 12333, 30)}))
    assert "AIME24 by +1.8 points" in base_verdict([far], "1.5b")
    assert base_verdict([base], "7b").count("by -") == 4


def test_score_is_over_the_benchmarks_of_both(tmp_path):
    base = read_result(result_file(tmp_path / "base.json", PAPERS_BASE))
    low = read_result(result_file(tmp_path / "my-low.json", {"aime24.json": (0.423, 6166.5, 30)}, model="x"))
    assert low.label == "SIRI-low"
    assert score_of(low, base) == pytest.approx(0.5 / 0.5) and score_of(low, None) is None
    assert [line for line in remarks([base, low]) if "AIME25, AMC, MATH500 not measured" in line]


def test_another_protocol_is_named(tmp_path):
    odd = result_file(tmp_path / "base.json", {"amc.json": (0.5, 100, 40)}, samples=1, cap=8192)
    lines = "\n".join(remarks([read_result(odd)]))
    assert "samples 1, not 64" in lines and "cap 8192, not 16384" in lines and "40 problems, not 83" in lines
    assert read_result(odd).figures["AMC"].error is None


def test_size_follows_the_models_name(tmp_path):
    for model, size in (("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "7b"), ("DeepSeek-R1-Distill-Qwen-1.5B", "1.5b")):
        assert size_of([read_result(result_file(tmp_path / "b.json", PAPERS_BASE, model=model))]) == size
    assert size_of([read_result(result_file(tmp_path / "b.json", PAPERS_BASE, model="runs/1.7b-x"))]) == "1.5b"


def test_the_command_prints_ours_beside_theirs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    base = result_file(tmp_path / "base.json", PAPERS_BASE)
    high = result_file(tmp_path / "high.json", {"aime24.json": (0.5, 9000, 30)}, model="runs/x")
    assert main(["report", "--paper", base, high]) == 0
    text = capsys.readouterr().out
    assert "43.6 / 10,049" in text and "/ 9,000" in text and "28.2 ± 0.5 / 12,333" in text
    assert "the base agrees" in text and "SIRI-high: AIME25, AMC, MATH500 not measured" in text
    assert main(["report", "--paper", base, "--size", "7b"]) == 0
    assert "the base differs" in capsys.readouterr().out
    assert main(["report", "--paper"]) == 2
    assert main(["report", "--paper", str(tmp_path / "none.json")]) == 2


@pytest.mark.parametrize("text", ["[]", "{", '{"model": "x", "benchmarks": {"aime24": {}}}', '{"model": "x"}'])
def test_other_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"result\.json: not a result file"):
        read_result(str(path))


def test_a_result_without_the_papers_benchmarks_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of its benchmarks"):
        read_result(result_file(tmp_path / "r.json", {"mine.json": (0.5, 10, 3)}))


# --- the whole way, small


SMALLEST = {"max_position_embeddings": 2048, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
SMALLEST |= {"num_key_value_heads": 1}
TINY = ["--l-max", "12", "--l-min", "8", "--cycle", "2", "--steps", "2", "--prompts-per-step", "3", "--group-size", "2"]
TINY += ["--mini-batch-prompts", "2", "--device", "cpu", "--checkpointing", "none", "--reward-workers", "1", "--quiet"]


def test_the_papers_pipeline_on_a_tiny_model_and_the_real_problems(tmp_path, data_dir, capsys, monkeypatch):
    """train siri-1.5b -> export -> eval of base, low and high on every set at hand -> report --paper; no file edited.
    The model is random, so the figures only have to be there."""
    from tests.support.tiny import bpe_tokenizer, save_tiny

    monkeypatch.setenv("COLUMNS", "160")
    questions = [row["problem"] for row in json.loads((data_dir / "math500.json").read_text())]
    model = str(save_tiny(tmp_path / "tiny", bpe_tokenizer(questions, 4000), **SMALLEST))
    run = tmp_path / "run"
    train = ["train", "siri-1.5b", "--model", model, "--data", str(data_dir / "deepscaler_part.parquet")]
    assert main([*train, *TINY, "--run-dir", str(run)]) == 0
    files_ = []
    sets = [str(data_dir / name) for name in ("aime24.json", "amc83.json", "math500.json")]
    for label in ("base", "low", "high"):
        source = model
        if label != "base":
            source = str(tmp_path / f"exported-{label}")
            assert main(["export", str(run / "checkpoints" / f"siri-{label}-1"), source]) == 0
        out = str(tmp_path / f"{label}.json")
        options = ["--cap", "4", "--samples", "2", "--reward-workers", "1", "--device", "cpu", "--out", out]
        options += ["--max-prompt-tokens", "2000"]  # this tokenizer is a coarse one
        assert main(["eval", source, "--data", *sets, *options]) == 0
        files_.append(out)
    capsys.readouterr()
    assert main(["report", "--paper", *files_]) == 0
    text = capsys.readouterr().out
    assert text.count(" here ") == 3 and text.count(" paper ") == len(TABLE["1.5b"])
    assert "base: measured with samples 2, not 64; cap 4, not 16384" in text and "AIME25 not measured" in text
    assert "problems, not" not in text, "the sets at hand are the paper's: 30, 83 and 500 problems"


def test_the_recipes_need_no_editing():
    from siri.config import Config
    from siri.config.recipe import resolve

    for size, model in (("1.5b", "1.5B"), ("7b", "7B")):
        config = resolve(f"siri-{size}", Config, [])
        assert config.model.endswith(model) and config.data and config.rollout == config.token_budget == "auto"
