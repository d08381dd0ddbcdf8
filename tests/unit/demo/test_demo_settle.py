"""The study's task: what its words say, and that thought is needed where the module says it is."""

import random
import re
from collections import Counter

import pytest

from siri.demo import data, settle

TABLE = settle.SETTLING


def problems(count: int, kind: str | None = None) -> list[settle.Problem]:
    rng = random.Random(3)
    return [settle.problem(rng, kind) for _ in range(count)]


def solve(prompt: str) -> str:
    """The answer, by reading the prompt's words alone."""
    key, value = int(re.match(r"key(\d)", prompt).group(1)), 0
    for name in prompt.split()[1:-1]:
        if name[0].islower():
            value = (value + int(name[1])) % 10
        else:
            value = (7 * value + 3 * int(name[1]) + 4) % 10
            for _ in range(10):
                value = TABLE[key][value]
    return str(value)


def test_answers_agree_with_an_independent_solution():
    for problem in problems(300):
        assert settle.answer(problem) == solve(settle.prompt_text(problem))


def test_every_key_has_five_settled_values_three_a_step_away_and_two_two_steps():
    for row in TABLE:
        steps = []
        for value in range(10):
            count = 0
            while row[value] != value:
                value, count = row[value], count + 1
            steps.append(count)
        assert Counter(steps) == {0: 5, 1: 3, 2: 2}


def test_the_value_that_a_twist_settles_to_depends_on_the_key():
    """One statement alone would have to know value, digit and key at once."""
    ends = [len({row[row[value]] for row in TABLE}) for value in range(10)]
    assert min(ends) >= 2 and sum(ends) >= 40, "no value settles alike under all keys"


def test_kinds_spread_the_shortest_responses():
    lengths = {kind: [len(settle.shortest(p)) + 1 for p in problems(400, kind)] for kind in settle.KINDS}
    means = [sum(values) / len(values) for values in lengths.values()]
    assert means[0] < 10 < means[1] < 17 < means[2] < 30
    everything = sorted(length for values in lengths.values() for length in values)
    assert everything[0] == 7 and everything[-1] > 36
    over = [sum(length > cap for length in everything) / len(everything) for cap in (24, 48)]
    assert 0.1 < over[0] < 0.25 and over[1] < 0.01, "the study's short cap cuts some right responses, the long one none"


def test_shortest_is_a_trace_that_the_base_could_give():
    for problem in problems(100):
        words = settle.shortest(problem)
        names = [word for word, before in zip(words[2:], words[1:], strict=False) if before != settle.WAIT]
        assert words[-2] == settle.END_THINK
        assert set(words) <= set(settle.vocabulary())
        assert names
        body = " ".join(words[:-2])
        said = re.findall(r"(wait )?([a-zA-Z]\d) (\d)", body)
        assert " ".join(f"{w}{n} {v}" for w, n, v in said) == body


def test_traces_wait_at_random_and_only_upper_case_values_move():
    rng = random.Random(5)
    waits = statements = 0
    for problem in problems(300):
        trace = settle.trace_text(rng, problem)
        previous = None
        for wait, name, value in re.findall(r"(wait )?([a-zA-Z]\d) (\d)", trace.partition(settle.END_THINK)[0]):
            statements += not wait
            waits += bool(wait)
            if wait:
                expected = TABLE[problem.key][previous] if name.isupper() else previous
                assert int(value) == expected
            previous = int(value)
        assert trace.split()[-1] == str(previous)
    assert waits / statements == pytest.approx(1.0, abs=0.06), "P_WAIT of 0.5 makes one wait a statement"


def test_the_base_has_room_above_it():
    rng = random.Random(6)
    for kind, low, high in (("plain", 0.7, 0.95), ("mixed", 0.3, 0.6), ("deep", 0.1, 0.3)):
        problems_of_kind = problems(500, kind)
        right = [settle.trace_text(rng, p).split()[-1] == settle.answer(p) for p in problems_of_kind]
        assert low < sum(right) / len(problems_of_kind) < high, kind


def test_sets_and_tokenizer_are_of_this_task():
    from siri.demo.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(settle)
    problem = problems(1, "deep")[0]
    text = f"{settle.prompt_text(problem)} {' '.join(settle.shortest(problem))}"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 1 + len(text.split()) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text
    draw = data.draw_problems(random.Random(0), 9, set(), settle)
    assert [p.kind for p in draw] == list(settle.KINDS) * 3


def test_fingerprint_follows_what_is_taught(monkeypatch):
    from siri.demo.warmup import fingerprint

    first = fingerprint("settle", 1500, 0)
    assert first == fingerprint("settle", 1500, 0)
    assert (
        len({first, fingerprint("settle", 1499, 0), fingerprint("settle", 1500, 1), fingerprint("demo", 1500, 0)}) == 4
    )
    monkeypatch.setattr(settle, "P_WAIT", 0.4)
    assert fingerprint("settle", 1500, 0) != first


def test_the_bigger_reasoner_has_a_longer_task_and_more_parameters():
    from siri.demo import settle_long
    from siri.demo.tokenizer import build_tokenizer
    from siri.demo.warmup import TASKS, build_model

    rng = random.Random(1)
    drawn = [settle_long.problem(rng) for _ in range(300)]
    lengths = sorted(len(settle_long.shortest(p)) + 1 for p in drawn)
    assert lengths[0] == 11 and 50 < lengths[-1] <= 96
    assert all(settle_long.answer(p) == solve(settle_long.prompt_text(p)) for p in drawn)
    tokenizer = build_tokenizer(settle_long)
    texts = [f"{settle_long.prompt_text(p)} {settle_long.trace_text(rng, p)}" for p in drawn]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])
    parameters = sum(p.numel() for p in build_model(tokenizer, 0, TASKS["settle-long"]).parameters())
    assert 10e6 < parameters < 50e6
    batch, _ = next(data.batches(rng, tokenizer, set(), settle_long))
    assert batch.shape[1] <= settle_long.MAX_TOKENS <= TASKS["settle-long"].context
