"""Sampling ahead of training with the embedded engine: the same prompts in the same order under their own caps, older
weights, bit for bit the same after any interruption."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import parquet

from siri.cli import main
from siri.config import Config
from siri.errors import InputError
from siri.rollout.draft import Draft
from siri.runtime.ranks import Ranks
from siri.store import checkpoint
from siri.train.ahead import Ahead
from siri.train.batches import Answer, Batch, from_arrays, merged, read, to_arrays
from siri.train.collect import Drawn
from siri.train.grading import Grading
from tests.support.training import SMALL, reproducible, rows, same_run, train

score = Grading.score
AHEAD = ["--staleness", "2", "--importance", "tis"]
COMMON = ["--save-every", "1", "--keep-checkpoints", "9", "--quiet"]


def prompts(folder: Path, step: int) -> list[str]:
    """The prompts of a step, in order."""
    (path,) = folder.glob(f"responses/step-{step:06d}*.parquet")
    table = parquet.read_table(path).to_pydict()
    return list(dict(zip(table["prompt_number"], table["prompt"], strict=True)).values())


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead") / "run"
    train(folder, *AHEAD, "--steps", "6", *COMMON)
    return folder


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_turn") / "run"
    train(folder, "--importance", "tis", "--steps", "6", *COMMON)
    return folder


def test_every_prompt_is_trained_once_in_order_under_its_own_cap(ahead, in_turn):
    assert [prompts(ahead, step) for step in range(6)] == [prompts(in_turn, step) for step in range(6)]
    for row, row_in_turn in zip(rows(ahead), rows(in_turn), strict=True):
        assert (row["step"], row["cap"], row["responses"]) == (
            row_in_turn["step"],
            row_in_turn["cap"],
            row_in_turn["responses"],
        )
        assert row["response_tokens_max"] <= row["cap"]


def test_the_weights_that_sample_are_k_steps_old(ahead, in_turn):
    assert [row["staleness_max"] for row in rows(ahead)] == [0, 1, 2, 2, 2, 2]
    assert [row["staleness_mean"] for row in rows(ahead)] == [0, 1, 2, 2, 2, 2]
    assert [row["stale_tokens_share"] for row in rows(ahead)] == [0, 1, 1, 1, 1, 1]
    assert not any("staleness" in key for key in rows(in_turn)[0])
    first = {
        key: value for key, value in reproducible(rows(ahead))[0].items() if key in rows(in_turn)[0] and key != "epoch"
    }
    assert first == {key: reproducible(rows(in_turn))[0][key] for key in first}, "the first batch is the same"
    assert rows(ahead)[1]["response_tokens_mean"] != rows(in_turn)[1]["response_tokens_mean"]
    table = parquet.read_table(next(ahead.glob("responses/step-000004*.parquet"))).to_pydict()
    assert set(table["weights"]) == {2}


def test_a_checkpoint_holds_what_is_in_flight(ahead):
    assert not (ahead / "checkpoints/step_000006" / checkpoint.PENDING).exists(), "nothing is left to train"
    for step in range(1, 6):
        arrays = read(ahead / f"checkpoints/step_{step:06d}" / checkpoint.PENDING, vocabulary=10**6)
        assert arrays["steps"].tolist() == list(range(step, min(step + 2, 6)))
        assert arrays["done"].all() and arrays["graded"].all()
    assert checkpoint.verify(ahead / "checkpoints/step_000003") is None


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_it_goes_on_bit_for_bit(ahead, tmp_path, stop):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(ahead, run, symlinks=True)
    for path in [*(run / "checkpoints").glob("*")]:
        if path.is_symlink() or int(path.name[5:] or 0) > stop:
            checkpoint.remove(path)
    (run / "saved.json").write_text(json.dumps({"step": stop}))
    train(run, *AHEAD, "--steps", "6", *COMMON, "--resume")
    assert reproducible(rows(run)) == reproducible(rows(ahead))
    for path in ahead.glob("responses/step-*.parquet"):
        assert parquet.read_table(path) == parquet.read_table(run / "responses" / path.name)
    from tests.support.training import assert_same_weights, weights

    assert_same_weights(weights(run, "step_000006"), weights(ahead, "step_000006"))


def test_another_k_is_told_and_loses_nothing(ahead, in_turn, tmp_path, capsys):
    run = tmp_path / "run"
    train(run, *AHEAD, "--steps", "6", "--save-every", "3", "--train-tokens", "1", "--quiet")
    done = len(rows(run))
    assert done == 1
    quiet = [option for option in COMMON if option != "--quiet"]
    train(run, "--staleness", "0", "--importance", "tis", "--steps", "6", *quiet, "--resume")
    said = capsys.readouterr().out
    assert "rollouts of 2 steps were in flight: 64 of 64 responses are finished, 0 go on" in said
    assert "staleness was 2 and is 0: what is in flight is trained as it was drawn, and step 3 is the first" in said
    assert [prompts(run, step) for step in range(6)] == [prompts(in_turn, step) for step in range(6)]
    assert [row.get("staleness_max") for row in rows(run)] == [0, 1, 2, None, None, None]


def test_prefixes_go_on_where_they_were(ahead, tmp_path, monkeypatch):
    """A checkpoint of servers, whose responses are begun: the embedded engine goes on after the tokens that are there,
    and grades nothing again."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(ahead, run, symlinks=True)
    for path in [*(run / "checkpoints").glob("*")]:
        if path.is_symlink() or int(path.name[5:] or 0) > 2:
            checkpoint.remove(path)
    (run / "saved.json").write_text(json.dumps({"step": 2}))
    folder = run / "checkpoints/step_000002"
    batches = from_arrays(read(folder / checkpoint.PENDING, vocabulary=10**6))
    begun = {}
    for batch in batches:
        for place, answers in batch.answers.items():
            for number, answer in enumerate(answers):
                if number % 2:
                    draft = answer.draft
                    kept = len(draft.tokens) if number % 4 == 3 else 3  # all of them: broken off before it said so
                    answer.draft = Draft(draft.prompt_ids, draft.max_tokens, (), spans=[(0, 0)], requests=1)
                    answer.draft.extend(draft.tokens[:kept], draft.logp[:kept])
                    answer.draft.confirm()
                    answer.graded = False
                    begun[batch.step, place, number] = draft.tokens[:kept].tolist(), kept == len(draft.tokens)
    from siri.store.shards import write_arrays

    write_arrays(folder / checkpoint.PENDING, to_arrays(batches))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[checkpoint.PENDING] = checkpoint.describe(folder, checkpoint.PENDING)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    scored = []
    monkeypatch.setattr(Grading, "score", lambda *given: scored.extend(given[1]) or score(*given))
    train(run, *AHEAD, "--steps", "3", *COMMON, "--resume")
    assert len(scored) == len(begun), "each is graded once, and what was is not graded again"
    arrays = read(run / "checkpoints/step_000003" / checkpoint.PENDING, vocabulary=10**6)
    (later,) = [batch for batch in from_arrays(arrays) if batch.step == 3]
    for (step, place, number), (tokens, whole) in begun.items():
        if step == 3:
            draft = later.answers[place][number].draft
            assert draft.done and draft.tokens[: len(tokens)].tolist() == tokens
            assert draft.requests == 1 + (not whole) and (draft.tokens.tolist() == tokens) >= whole
            assert draft.spans == [(0, 0)] if whole else [(0, 0), (2, 3)]
    assert any(whole for _, whole in begun.values()) and not all(whole for _, whole in begun.values())


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--staleness", "-1"], "staleness is -1; it must be 0 or more"),
        (
            ["--staleness", "2"],
            "takes for those of the weights that are trained; give --importance tis or icepop",
        ),
        (
            [*AHEAD, "--dynamic-sampling"],
            "dynamic_sampling draws prompts by what came of others; leave one",
        ),
        ([*AHEAD, "--hard-responses", "32"], "hard_responses samples prompts again by what came of them"),
        ([*AHEAD, "--schedule", "auto"], "schedule auto finds its cap by what came of them; give another --schedule"),
        ([*AHEAD, "--allow-bias"], "allow_bias is for importance none, but importance is tis"),
        (["--allow-bias"], "allow_bias is for staleness, which is 0"),
        ([*AHEAD, "--rollout", "vllm"], "shares the GPU with it; start servers on other GPUs and name them with"),
    ],
)
def test_what_cannot_be_known_ahead_is_refused_in_one_line(tmp_path, capsys, arguments, words):
    assert main(["train", "demo", *SMALL, *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_bias_may_be_asked_for_by_name():
    assert Config(staleness=4, allow_bias=True).importance == "none"
    with pytest.raises(InputError, match="importance"):
        Config(staleness=4)


# --- several ranks ---


class Others(Ranks):
    """Ranks of which the others have nothing to say."""

    def gather_arrays(self, arrays):
        return [arrays]

    def broadcast(self, value):
        return value


def ahead_of(ranks: Ranks, **config) -> Ahead:
    """What holds batches in flight, with an engine that knows no lengths."""
    policy = SimpleNamespace(decode=lambda tokens: "said")
    engine = SimpleNamespace(expected=lambda prompts, cap: None, independent=False)
    sampler = SimpleNamespace(state=lambda: {"epoch": 0, "cursor": 0, "seed": 1, "size": 9})
    collector = SimpleNamespace(ranks=ranks, engine=engine, policy=policy, grader=None, sampler=sampler)
    return Ahead(Config(staleness=1, importance="tis", **config), collector, SimpleNamespace(), done=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_checkpoint_is_dealt_to_any_number_of_ranks(size):
    """Each prompt to a single rank with the random numbers of its place, and faults of grading are counted once."""
    whole = to_arrays([batch(3, [0, 1, 2])])
    shares, seeds = [], set()
    for rank in range(size):
        (mine,) = from_arrays(whole)
        ahead_of(Others(rank, size))._deal(mine)
        shares.append(to_arrays([mine]))
        seeds |= {answer.draft.seed for answer in mine.everything()}
    assert len(seeds) == 9
    assert same(merged(shares), whole)


def test_a_checkpoint_has_a_grade_whole_or_not_at_all():
    """Grades are made in a thread of their own, while a checkpoint is written."""
    held = ahead_of(Others())
    held.batches[3] = waiting = batch(3, [0])
    answers = waiting.answers[0][:2]
    for answer in answers:
        answer.draft.end(truncated=False)
        answer.draft.confirm()
    arrays = []
    reader = threading.Thread(target=lambda: arrays.append(held.arrays()))
    with held.grading.changed:  # as in the middle of `keep`
        answers[0].graded = True
        reader.start()
        reader.join(0.3)
        assert reader.is_alive(), "it has read half a grade"
        answers[0].reward = 1.0
    reader.join(60)
    assert arrays[0]["graded"].tolist() == [True, False, True] and arrays[0]["rewards"].tolist() == [1.0, 0.0, 1.0]


# --- arrays ---


def batch(step: int, places: list[int], seed: int = 0) -> Batch:
    random = np.random.default_rng([step, seed])
    prompts, answers = {}, {}
    for place in places:
        prompts[place] = Drawn(random.integers(0, 90, 4).tolist(), f"answer {place} é", place)
        answers[place] = []
        for number in range(3):
            draft = Draft(prompts[place].ids, 8, ())
            for version in range(number):
                draft.begin(version)
                draft.extend(random.integers(0, 90, 3).tolist(), (-random.random(3)).tolist())
            draft.confirm()
            if number == 2:
                draft.end(truncated=False)
                draft.confirm()
            graded = number == 2
            answers[place].append(Answer(draft, "", float(graded), place == 1 and graded, graded))
    where = {"epoch": 0, "cursor": step, "seed": 1, "size": 9}
    return Batch(step, 8, where, prompts, answers, [], [1, 0, 2], 5.0, 6.0)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and np.array_equal(first[key], second[key]) for key in first
    )


def test_batches_travel_as_arrays():
    batches = [batch(3, [0, 1, 2]), batch(4, [0, 1, 2])]
    arrays = to_arrays(batches)
    assert same(to_arrays(from_arrays(arrays)), arrays) and same(to_arrays(from_arrays(to_arrays([]))), to_arrays([]))
    parts = [to_arrays([batch(3, [2, 0])]), to_arrays([batch(3, [1], seed=5)])]
    (whole,) = from_arrays(merged(parts))
    assert list(whole.prompts) == [0, 1, 2] == list(whole.answers) and whole.faults == [2, 0, 4]


def test_what_is_not_confirmed_is_not_saved():
    draft = Draft([1, 2], 9, (0,))
    draft.begin(0)
    draft.extend([5, 6, 7], [-1.0] * 3)
    draft.confirm(2)
    draft.end(truncated=False)
    kept = draft.copy()
    assert kept.tokens.tolist() == [5, 6] and not kept.ended and len(draft.tokens) == 3
    kept.begin(4)
    assert kept.spans == [(0, 0), (4, 2)] and kept.versions() == [(0, 2), (4, 0)]
    draft.cut()
    assert draft.tokens.tolist() == [5, 6] and draft.job((2,)).max_tokens == 7
    first = Draft([1, 2], 9, (0,)).job((2,)).seed
    assert draft.job((2,)).seed != first, "other random numbers than those of the tokens before"


@pytest.mark.parametrize("name", sorted(to_arrays([])))
def test_arrays_of_strangers_are_one_line(tmp_path, name):
    from siri.store.shards import write_arrays

    path = tmp_path / checkpoint.PENDING
    good = to_arrays([batch(3, [0, 1, 2])])
    write_arrays(path, good)
    assert same(read(path, vocabulary=90), good)
    longer = np.concatenate([good[name], good[name][:1]])
    other = good[name].astype(np.float16)
    for bad in (longer, other, *([np.full_like(good[name], -7)] if good[name].dtype.kind == "i" else [])):
        write_arrays(path, {**good, name: bad})
        with pytest.raises(InputError, match=r"holds no rollouts that can go on \(.*\); choose an older checkpoint"):
            read(path, vocabulary=90)
    write_arrays(path, {key: value for key, value in good.items() if key != name})
    with pytest.raises(InputError, match=f"no {name}"):
        read(path, vocabulary=90)
    with pytest.raises(InputError, match="a token is none of the model's"):
        write_arrays(path, good)
        read(path, vocabulary=20)


def test_a_file_that_is_none_is_one_line(tmp_path):
    path = tmp_path / checkpoint.PENDING
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="holds no rollouts that can go on"):
        read(path, vocabulary=90)


def test_same_run_is_told_apart(ahead, in_turn):
    with pytest.raises(AssertionError):
        same_run(ahead, in_turn)
