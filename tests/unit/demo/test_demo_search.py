"""The task of guess and verify: its words say what they should, and more tries of fewer words are the right policy."""

import random
import re

import pytest

from siri.demo import data, search
from siri.demo.task import END_THINK, Operand, apply


def problems(count: int, kind: str | None = None) -> list[search.Problem]:
    rng = random.Random(3)
    return [search.problem(rng, kind) for _ in range(count)]


def value_after(names: list[str], start: int) -> int:
    for name in names:
        digit = int(name[1])
        start = (start + digit) % 10 if name[0].islower() else (7 * start + 3 * digit + 4) % 10
    return start


def test_every_operand_is_a_bijection_so_that_there_is_one_answer():
    for digit in range(10):
        for twist in (False, True):
            assert {apply(value, Operand(digit, twist)) for value in range(10)} == set(range(10))
    for problem in problems(300):
        words = search.prompt_text(problem).split()
        target, names = int(words[0][1]), words[1:-1]
        assert [x for x in range(10) if value_after(names, x) == target] == [int(search.answer(problem))]


def test_traces_try_digits_until_one_succeeds_or_they_give_up():
    rng = random.Random(5)
    said_yes = slips = statements = 0
    for problem in problems(400):
        trace = search.trace_text(rng, problem)
        body, _, stated = trace.partition(END_THINK)
        tries = re.findall(r"try (\d) (.*?) (yes|no)(?= |$)", body.strip())
        assert " ".join(f"try {x} {words} {verdict}" for x, words, verdict in tries) == body.strip()
        assert [verdict for _, _, verdict in tries[:-1]] == ["no"] * (len(tries) - 1), "after a yes it stops"
        assert stated.strip() == tries[-1][0]
        said_yes += tries[-1][2] == "yes"
        for start, words, verdict in tries:
            value, last = int(start), None
            for wait, name, digit in re.findall(r"(wait )?([a-zA-Z]\d) (\d)", words):
                if wait:
                    assert (name, digit) == last, "a recheck says the same again"
                else:
                    expected, value = value_after([name], value), int(digit)
                    statements += 1
                    slips += value != expected
                last = (name, digit)
            assert (verdict == "yes") == (value == problem.target)
    assert slips / statements == pytest.approx(search.P_SLIP, abs=0.01)
    assert 0.25 < said_yes / 400 < 0.5


def test_tries_without_idle_words_find_more_under_the_same_cap():
    """What the task is for: k tries of 2n + 3 words find k in ten answers; the base's are longer and fewer."""
    rng = random.Random(6)
    for problem in problems(100):
        for tries in (1, 4, 10):
            words = search.shortest(problem, tries)
            assert len(words) == tries * (2 * len(problem.operands) + 3) + 2 and words.count("try") == tries
            assert words[-1] == search.answer(problem) and set(words) <= set(search.vocabulary())
            assert words[-3] == "yes" and words.count("no") == tries - 1
    cap, base, terse = 64, 0, 0.0
    drawn = problems(2000)
    for problem in drawn:
        words = search.trace_text(rng, problem).split()
        base += len(words) < cap and words[-1] == search.answer(problem)
        terse += min(10, (cap - 3) // (2 * len(problem.operands) + 3)) / 10
    assert base / len(drawn) < 0.36 and terse / len(drawn) > 0.65
    lower = sum(min(10, (cap // 2 - 3) // (2 * len(p.operands) + 3)) / 10 for p in drawn) / len(drawn)
    assert lower < 0.4, "the low cap leaves room for half of the tries"


def test_sets_and_tokenizer_are_of_this_task():
    from siri.demo.tokenizer import build_tokenizer
    from siri.demo.warmup import TASKS, build_model

    tokenizer = build_tokenizer(search)
    problem = problems(1, "long")[0]
    text = f"{search.prompt_text(problem)} {' '.join(search.shortest(problem, 3))}"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 1 + len(text.split()) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text
    draw = data.draw_problems(random.Random(0), 8, set(), search)
    assert [p.kind for p in draw] == list(search.KINDS) * 4
    assert 1e5 < sum(p.numel() for p in build_model(tokenizer, 0, TASKS["search"]).parameters()) < 1.3e5
    batch, _ = next(data.batches(random.Random(0), tokenizer, set(), search))
    assert batch.shape[1] <= search.MAX_TOKENS <= TASKS["search"].context


def test_the_demos_base_is_taken_from_the_package(tmp_path):
    from siri.demo.warmup import SEED, STEPS, taken_from_package

    assert not taken_from_package(tmp_path / "no", "settle", STEPS, SEED)
    assert not taken_from_package(tmp_path / "no", "demo", STEPS - 1, SEED) and not (tmp_path / "no").exists()
    assert taken_from_package(tmp_path / "yes", "demo", STEPS, SEED)
    assert (tmp_path / "yes" / "model" / "config.json").is_file()
    assert len((tmp_path / "yes" / "heldout.jsonl").read_text().splitlines()) == data.HELDOUT_ROWS
