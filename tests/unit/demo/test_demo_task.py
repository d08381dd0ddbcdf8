"""The demo's task, tokenizer, data and base model."""

import itertools
import json
import math
import random
import re

import pytest

from siri.demo import ASSETS, HELDOUT, MODEL, TRAIN, data, task
from siri.demo.measure import Response, grade, measure
from siri.errors import InputError

L_MAX, L_MIN = 96, 20  # the caps of the demo's recipe


def solve(prompt: str) -> list[int]:
    """The running values of a prompt, worked out from its text alone."""
    values, value = [], 0
    for letter, digit in re.findall(r"([a-nA-N])(\d)", prompt):
        value = value + int(digit) if letter.islower() else 7 * value + 3 * int(digit) + 4
        value %= 10
        values.append(value)
    return values


def problems(count: int, kind: str | None = None, seed: int = 0) -> list[task.Problem]:
    rng = random.Random(seed)
    return [task.problem(rng, kind) for _ in range(count)]


def statements(trace: str) -> list[tuple[bool, str, int]]:
    """(recheck?, operand, stated value) for each statement of a trace."""
    matches = re.findall(r"(wait )?([a-nA-N]\d) (\d)", trace.partition("</think>")[0])
    return [(bool(wait), operand, int(value)) for wait, operand, value in matches]


@pytest.fixture(scope="module")
def tokenizer():
    from siri.demo.tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="module")
def shipped_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- task


def test_example_of_the_module_docstring():
    problem = task.Problem("hard", (task.Operand(3, False), task.Operand(7, False), task.Operand(1, True)))
    assert task.prompt_text(problem) == "a3 b7 C1 <think>"
    assert task.answer(problem) == "7"


def test_answers_agree_with_an_independent_solution():
    for problem in problems(2000):
        assert task.answer(problem) == str(solve(task.prompt_text(problem))[-1])


def test_kinds_have_the_stated_sizes_and_shares():
    drawn = problems(4000)
    easy = [p for p in drawn if p.kind == "easy"]
    hard = [p for p in drawn if p.kind == "hard"]
    assert len(hard) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert {len(p.operands) for p in easy} == {4, 5, 6, 7}
    assert {len(p.operands) for p in hard} == {9, 10, 11, 12}
    assert not any(operand.twist for p in easy for operand in p.operands)
    assert not any(p.operands[0].twist for p in hard)
    later = [operand.twist for p in hard for operand in p.operands[1:]]
    assert sum(later) / len(later) == pytest.approx(0.6, abs=0.02)


def test_a_trace_names_each_operand_in_order_and_ends_with_its_last_value():
    rng = random.Random(1)
    for problem in problems(1000):
        trace = task.trace_text(rng, problem)
        said = statements(trace)
        assert [operand for recheck, operand, _ in said if not recheck] == task.prompt_text(problem).split()[:-1]
        for (_, before, _), (recheck, operand, _) in itertools.pairwise(said):
            assert not recheck or operand == before
        head, mark, final = trace.partition(" </think> ")
        assert mark and final == str(said[-1][2])
        assert len(head.split()) == sum(3 if recheck else 2 for recheck, _, _ in said)


def test_a_trace_whose_values_are_right_ends_in_the_right_answer():
    rng = random.Random(2)
    right = wrong = 0
    for problem in problems(2000):
        trace = task.trace_text(rng, problem)
        last = {operand: value for _, operand, value in statements(trace)}
        if list(last.values()) == solve(task.prompt_text(problem)):
            right += 1
            assert trace.endswith(f"</think> {task.answer(problem)}")
        else:
            wrong += 1
    assert right > 500 and wrong > 500


def test_the_base_errs_always_in_the_same_way_and_a_recheck_never_spoils():
    rng = random.Random(3)
    first: dict[tuple[int, str], list[int]] = {}
    rechecked = of_statements = corrected = of_wrong = 0
    for problem in problems(3000, "hard"):
        value, stated = 0, 0
        for recheck, operand, said in statements(task.trace_text(rng, problem)):
            of_statements += 1
            rechecked += recheck
            if not recheck:
                value = stated if operand[0] not in "aA" else 0
                first.setdefault((value, operand.translate(str.maketrans("", "", "a"))), []).append(said)
            right = (value + int(operand[1]) if operand[0].islower() else 7 * value + 3 * int(operand[1]) + 4) % 10
            if recheck and stated != right:
                of_wrong += 1
                corrected += said == right
            if recheck and stated == right:
                assert said == right
            stated = said
    assert rechecked / of_statements == pytest.approx(0.55, abs=0.01)
    assert corrected / of_wrong == pytest.approx(0.5, abs=0.02)
    assert all(len(set(said)) <= 2 for said in first.values())


def test_beliefs_are_wrong_where_and_as_often_as_stated():
    twists = [cell for (_, operand), cell in task.BELIEFS.items() if operand.twist]
    adds = [cell for (_, operand), cell in task.BELIEFS.items() if not operand.twist]
    assert len(twists) == len(adds) == 100
    assert all(cell.wrong != cell.right for cell in task.BELIEFS.values())
    assert all(cell.wrong == (cell.right + 1) % 10 for cell in adds)
    assert {cell.confidence for cell in twists} == {0.9, 0.55, 0.3}
    assert {cell.confidence for cell in adds} == {0.97, 0.4}
    assert sum(cell.confidence == 0.4 for cell in adds) == pytest.approx(15, abs=8)


# --- tokenizer


@pytest.mark.parametrize("which", ["tokenizer", "shipped_tokenizer"])
def test_text_round_trips_one_token_a_word(which, request):
    tokenizer = request.getfixturevalue(which)
    rng = random.Random(4)
    for problem in problems(200):
        prompt, trace = task.prompt_text(problem), task.trace_text(rng, problem)
        prompt_ids = tokenizer(prompt)["input_ids"]
        assert prompt_ids[0] == tokenizer.bos_token_id and len(prompt_ids) == 1 + len(prompt.split())
        assert tokenizer.decode(prompt_ids, skip_special_tokens=True) == prompt
        whole_ids = tokenizer(f"{prompt} {trace}{tokenizer.eos_token}")["input_ids"]
        assert whole_ids[: len(prompt_ids)] == prompt_ids
        response_ids = whole_ids[len(prompt_ids) :]
        assert len(response_ids) == len(trace.split()) + 1 and response_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response_ids, skip_special_tokens=True).strip() == trace


@pytest.mark.parametrize("which", ["tokenizer", "shipped_tokenizer"])
def test_special_tokens(which, request):
    tokenizer = request.getfixturevalue(which)
    assert set(tokenizer.all_special_tokens) == {"<pad>", "<bos>", "<eos>", "<unk>"}
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    ids = tokenizer.encode(" </think> 4<eos>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == " </think> 4"
    batch = tokenizer(["a3 <think>", "a3 b7 C1 <think>"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_the_shipped_tokenizer_is_the_one_that_the_code_builds(tokenizer, shipped_tokenizer):
    assert shipped_tokenizer.get_vocab() == tokenizer.get_vocab()


# --- data


def test_shipped_problems():
    train, heldout = rows(TRAIN), rows(HELDOUT)
    assert (len(train), len(heldout)) == (4096, 2048)
    for row in train + heldout:
        assert row["answer"] == str(solve(row["problem"])[-1])
        assert row["level"] == ("easy" if len(row["problem"].split()) < 10 else "hard")
    for part in (train, heldout):
        for prefix in (2, 100, len(part)):
            assert sum(row["level"] == "hard" for row in part[:prefix]) == prefix // 2
    assert len({row["problem"] for row in train + heldout}) == len(train) + len(heldout)


def test_shipped_problems_are_the_ones_that_the_code_draws(tmp_path):
    for path, problems_ in zip((TRAIN, HELDOUT), data.draw_sets(seed=0), strict=True):
        data.write_problems(tmp_path / path.name, problems_)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_shortest_solutions_of_hard_problems_fit_the_large_cap_and_not_the_small(shipped_tokenizer):
    lengths = set()
    for row in rows(HELDOUT):
        if row["level"] == "hard":
            names = row["problem"].split()[:-1]
            said = " ".join(f"{name} {value}" for name, value in zip(names, solve(row["problem"]), strict=True))
            text = f" {said} </think> {row['answer']}{shipped_tokenizer.eos_token}"
            lengths.add(len(shipped_tokenizer.encode(text, add_special_tokens=False)))
    assert lengths == {21, 23, 25, 27}
    assert min(lengths) > L_MIN and max(lengths) <= L_MAX


def test_batches_teach_the_response_only_and_leave_out_excluded_prompts(tokenizer):
    exclude = {task.prompt_text(p) for p in problems(300, seed=5)}
    tokens, labels = next(data.batches(random.Random(5), tokenizer, exclude))
    assert tokens.shape == labels.shape and len(tokens) == data.BATCH
    for token_row, label_row in zip(tokens.tolist(), labels.tolist(), strict=True):
        start = token_row.index(tokenizer.convert_tokens_to_ids(" <think>"))
        end = token_row.index(tokenizer.eos_token_id)
        assert tokenizer.decode(token_row[1 : start + 1]) not in exclude
        assert label_row[start:end] == token_row[start + 1 : end + 1]
        assert set(label_row[:start] + label_row[end:]) <= {data.IGNORE}
        assert set(token_row[end + 1 :]) <= {tokenizer.pad_token_id}


# --- warm-up


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    import torch

    from siri.demo.warmup import make

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for i, (name, seed) in enumerate((("one", 7), ("two", 7), ("other", 8))):
            torch.manual_seed(i)  # what the caller did with the global generator does not matter
            make(tmp_path / name, steps=3, seed=seed)
    finally:
        torch.set_num_threads(threads)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    weights = "model/model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


def test_warm_up_learns(tokenizer):
    from siri.demo.warmup import build_model, train

    model = build_model(tokenizer, seed=0)
    assert train(model, tokenizer, steps=25, seed=0, exclude=set()) < 0.8 * math.log(len(tokenizer))


@pytest.mark.parametrize(("arguments", "culprit"), [(["--steps", "0"], "--steps"), (["--out", __file__], "--out")])
def test_bad_input_is_one_line_and_exit_code_2(arguments, culprit, capsys):
    from siri.demo.warmup import main

    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and culprit in lines[0]


def test_make_raises_input_error(tmp_path):
    from siri.demo.warmup import make

    with pytest.raises(InputError, match="steps"):
        make(tmp_path / "new", steps=0, seed=0)
    assert not (tmp_path / "new").exists()


# --- base model


@pytest.mark.parametrize(
    ("response", "truncated", "right", "rechecks", "statements"),
    [
        ("a3 3 b7 0 wait b7 0 C1 7 </think> 7", False, True, 1, 4),
        ("a3 3 b7 0 C1 7 </think> 7", True, False, 0, 3),
        ("a3 3 b7 0 C1 8 </think> 8", False, False, 0, 3),
        ("a3 3 b7 0 C1 7", False, False, 0, 3),
        ("a3 3 </think> 7 7", False, False, 0, 1),
        ("", True, False, 0, 0),
    ],
)
def test_grade(response, truncated, right, rechecks, statements):
    problem = task.Problem("hard", (task.Operand(3, False), task.Operand(7, False), task.Operand(1, True)))
    assert grade(problem, response, truncated, tokens=9) == Response(
        "hard", right, tokens=9, truncated=truncated, rechecks=rechecks, statements=statements
    )


def test_shipped_assets_are_small():
    assert sum(p.stat().st_size for p in MODEL.iterdir()) <= 2 * 2**20
    assert {p.name for p in ASSETS.iterdir()} == {"model", "train.jsonl", "heldout.jsonl"}


def test_the_base_model_rambles_and_errs_as_designed(shipped_tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.config.model_type == "qwen2" and model.dtype == torch.float32
    assert model.config.vocab_size == len(shipped_tokenizer)
    assert 270_000 < sum(p.numel() for p in model.parameters()) < 290_000
    heldout = data.draw_sets(seed=0)[1][:128]
    figures = measure(model, shipped_tokenizer, heldout, temperature=0.6, batch=128)
    # about three standard errors of 128 samples around what all 2048 give: 0.523 at 46.2 tokens, rechecks 0.537
    assert figures["all"].accuracy == pytest.approx(0.52, abs=0.13)
    assert figures["easy"].accuracy - figures["hard"].accuracy > 0.3
    assert figures["all"].tokens == pytest.approx(46, abs=6)
    assert figures["all"].truncated < 0.09
    assert figures["all"].rechecks == pytest.approx(0.54, abs=0.05)
