"""The responses of a run: kept as they were, the newest of them, and read again."""

import numpy as np
import pytest

from siri.cli import main
from siri.errors import InputError
from siri.report.samples import changed, sections_of, write_samples
from siri.rollout import Completion
from siri.store.responses import Response, Responses, forget_after, read_responses, response_files
from siri.train.groups import Group, from_arrays, to_arrays
from tests.support.training import rows, train


def response(number: int = 0, score: float = 1.0, **fields) -> Response:
    usual = {"prompt": f"what is {number}?", "text": "it is <b>\n\x1b[31m7", "gold": "7", "extracted": "7"}
    usual |= {"reward": score, "tokens": 5, "truncated": False, "logp_mean": -0.25, "weights": 3}
    return Response(prompt_number=number, score=score, **{**usual, **fields})


def names(run):
    return [path.stem for path in response_files(run)]


def test_what_is_written_is_read_and_only_the_newest_stay(tmp_path):
    kept = Responses(tmp_path, 2)
    strange = [response(0), response(1, 0.0, extracted=None, truncated=True, trained=False, text="")]
    kept.write_evaluation(0, "data/a b.jsonl", strange)
    for step in range(5):
        kept.write_step(step, strange, "siri-low-1" if step == 1 else None)
    kept.write_evaluation(4, "org/name@test", strange)
    assert names(tmp_path) == [
        *("eval-000000-a-b", "step-000001-siri-low-1", "step-000003", "eval-000004-name-test", "step-000004")
    ]
    assert all(read_responses(path) == strange for path in response_files(tmp_path))
    forget_after(tmp_path, 4)
    assert names(tmp_path) == ["eval-000000-a-b", "step-000001-siri-low-1", "step-000003", "eval-000004-name-test"]
    kept.write_step(9, [response(text="half \ud800 of a pair")])
    assert read_responses(response_files(tmp_path)[-1])[0].text == "half \\ud800 of a pair"


def test_a_damaged_file_is_named(tmp_path):
    Responses(tmp_path, 2).write_step(0, [response()])
    (path,) = response_files(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"step-000000\.parquet: cannot be read as responses"):
        read_responses(path)


def test_texts_travel_between_ranks():
    def group(*texts):
        answers = [Completion([1, 2], [-0.5, -1.0], False) for _ in range(2)]
        return Group([3], answers, [0.0, 1.0], [0.0, 1.0], texts=texts)

    for groups in ([group("a", "ü ∑"), group("", "b")], [group(), group()]):
        travelled = from_arrays({name: np.array(value) for name, value in to_arrays(groups).items()})
        assert [group.texts for group in travelled] == [group.texts for group in groups]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("responses") / "run"
    train(folder, "--steps", "3", "--keep-responses", "1", "--eval-samples", "2", "--quiet", "--save-every", "1")
    return folder


def test_a_run_keeps_what_it_sampled_and_measured(run):
    assert names(run) == [
        *("eval-000000-heldout", "step-000001-siri-low-1", "eval-000002-heldout", "step-000002", "eval-000003-heldout")
    ]
    for path in response_files(run):
        held = read_responses(path)
        if path.stem.startswith("step"):
            figures = rows(run)[int(path.stem.split("-")[1])]
            assert len(held) == figures["responses"] and held[0].weights == figures["step"]
            assert np.mean([response.reward for response in held]) == pytest.approx(figures["reward_mean"])
        else:
            done = int(path.stem.split("-")[1])
            figures = next(row for row in rows(run, "eval") if row["step"] == done)
            assert len(held) == 16 * 2 and {response.prompt_number for response in held} == set(range(16))
            assert np.mean([response.score >= 1 for response in held]) == pytest.approx(figures["accuracy"])
        assert np.mean([response.truncated for response in held]) == pytest.approx(figures["truncation_rate"])
        tokens = figures.get("response_tokens_mean", figures.get("tokens_mean"))
        assert np.mean([response.tokens for response in held]) == pytest.approx(tokens)
        assert all(response.logp_mean < 0 and response.prompt and response.gold for response in held)
        assert all(
            (response.extracted == response.gold) == (response.score == 1)
            for response in held
            if not response.truncated
        )


def test_a_run_that_continues_keeps_what_it_samples_again(run, tmp_path):
    train(
        tmp_path / "run", "--steps", "1", "--keep-responses", "1", "--eval-samples", "2", "--quiet", "--save-every", "1"
    )
    train(tmp_path / "run", "--steps", "3", "--keep-responses", "1", "--eval-samples", "2", "--quiet", "--resume")
    assert [name for name in names(tmp_path / "run") if "000001" not in name] == [
        name for name in names(run) if "000001" not in name
    ]
    newest = [read_responses(response_files(folder)[-2]) for folder in (run, tmp_path / "run")]
    assert newest[0] == newest[1]


def test_none_are_kept_on_request(tmp_path):
    train(tmp_path / "run", "--steps", "1", "--keep-responses", "0", "--quiet")
    assert not (tmp_path / "run" / "responses").exists()


def test_what_cannot_be_written_costs_no_step(tmp_path, capsys):
    folder = tmp_path / "run"
    train(folder, "--steps", "1")
    for path in (folder / "responses").iterdir():
        path.unlink()
    (folder / "responses").rmdir()
    (folder / "responses").write_text("a file in its place")
    train(folder, "--steps", "2", "--resume")
    assert len(rows(folder)) == 2 and "responses of step 1 could not be kept" in capsys.readouterr().out


def look(capsys, *arguments) -> str:
    assert main(["look", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_siri_look_shows_what_is_asked_for(run, capsys):
    capsys.readouterr()
    shown = look(capsys, run, "--longest", "--count", "1")
    assert shown.startswith("eval-000003-heldout: 32 responses fit, 1 shown")
    longest = max(response.tokens for response in read_responses(response_files(run)[-1]))
    assert f"{longest} tokens" in shown
    assert look(capsys, run, "--step", "1", "--wrong").startswith("step-000001-siri-low-1: ")
    assert ", cut, " in look(capsys, run, "--step", "2", "--cut", "--count", "1")
    right, wrong = (look(capsys, run, flag, "--count", "1") for flag in ("--right", "--wrong"))
    assert "score 1," in right and "score 0," in wrong


def test_a_terminal_obeys_no_response(tmp_path, capsys):
    Responses(tmp_path, 2).write_step(0, [response(text="\x1b[31m" + "x" * 5000)])
    shown = look(capsys, tmp_path)
    assert "\x1b" not in shown and "characters left out, --full shows them" in shown
    assert "x" * 5000 in look(capsys, tmp_path, "--full")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "needs a run folder"),
        (["RUN", "--step", "7"], r"no responses of step 7 are kept; the newest are eval-000000-heldout"),
        (["RUN", "--right", "--wrong"], "leave no response"),
        (["RUN", "--step", "-2"], "step is -2"),
        (["nowhere"], "nowhere: no such folder"),
        (["EMPTY"], "no responses there; they are kept with --keep-responses"),
    ],
)
def test_siri_look_says_what_is_not_there(run, tmp_path, capsys, arguments, line):
    names = {"RUN": str(run), "EMPTY": str(tmp_path)}
    assert main(["look", *(names.get(word, word) for word in arguments)]) == 2
    assert line in capsys.readouterr().err


def test_the_page_of_responses_escapes_them_and_shows_what_changed(tmp_path):
    kept = Responses(tmp_path, 2)
    kept.write_evaluation(0, "a.jsonl", [response(0, 0.0, text="<script>base</script>"), response(1), response(2, 0.0)])
    kept.write_evaluation(
        4, "a.jsonl", [response(0, 1.0), response(1, 0.0, text="worse"), response(2, 0.0, truncated=True)]
    )
    sections, source = sections_of(tmp_path)
    assert source == "eval-000004-a"
    shown = {
        section.title.split(":")[0]: [entry.response.prompt_number for entry in section.shown] for section in sections
    }
    assert shown == {"Best": [0], "Worst": [1], "Cut by the cap": [2], "Changed since the base": [0, 1]}
    page = write_samples(tmp_path, title="a <run>").read_text()
    assert "<script>" not in page and "&lt;script&gt;base" in page and "a &lt;run&gt;" in page
    assert write_samples(tmp_path / "empty", title="x") is None
    assert changed([response(0, prompt="another")], [response(0, 0.0)]) == []


def test_the_report_links_the_page(run):
    from siri.report.html import write_report

    assert 'href="samples.html"' in write_report(run).read_text()
    assert "problem" in (run / "samples.html").read_text()
