"""Text from outside with halves of surrogate pairs and escape sequences: written, read back, drawn and printed."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri.commands.evaluate import results_table
from siri.errors import InputError
from siri.report.html import write_report
from siri.report.progress import TrainProgress
from siri.rewards.pool import RewardBatch
from siri.store.jsonl import MetricsLog, read_jsonl
from siri.store.loggers import TensorBoardLogger
from siri.study.compare import curves_of_runs
from siri.study.report import write_comparison
from siri.text import encoded, printable
from tests.support import warm
from tests.support.synthetic_run import make_run

HALF = "\ud800"
NASTY = f"caf\u00e9 {HALF} \x1b[31mred\x1b]0;title\x07"
"""Text that UTF-8 cannot hold and that a terminal would obey."""
ANY = st.text(st.characters(codec=None), max_size=20) | st.just(NASTY)


def joined(text: str) -> str:
    """Two halves side by side are a character, to JSON."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@given(ANY)
def test_any_text_is_written_and_shown(text):
    assert json.loads(encoded(json.dumps([text], ensure_ascii=False))) == [joined(text)]
    assert printable(text).isprintable() and printable(printable(text)) == printable(text)
    printable(text).encode()


@given(st.dictionaries(ANY, ANY, max_size=3))
def test_a_log_gives_back_what_it_was_given(tmp_path_factory, row):
    log = MetricsLog(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    log.append({"step": 0, "texts": list(row.items())})
    log.append({"step": 1})
    log.truncate(1)  # writes the file anew
    assert read_jsonl(log.path) == [{"step": 0, "texts": [list(map(joined, pair)) for pair in row.items()]}]


@pytest.fixture
def nasty_run(tmp_path) -> Path:
    """A run whose recipe, evaluations and folder bear such names."""
    run = make_run(tmp_path / os.fsdecode(b"run-\xff-\x1b[31m"), recipe=NASTY, upto=40)
    rows = read_jsonl(run / "eval.jsonl")
    (run / "eval.jsonl").unlink()
    for row in rows:
        MetricsLog(run / "eval.jsonl").append({**row, "name": row["name"] if row["step"] else NASTY, NASTY: NASTY})
    return run


def test_a_report_and_a_comparison_of_such_a_run(nasty_run, tmp_path):
    page = write_report(nasty_run).read_bytes().decode()
    assert "\\ud800" in page and HALF not in page
    write_comparison(curves_of_runs([nasty_run, make_run(tmp_path / "other", upto=40)]), tmp_path)
    assert "caf\u00e9" in (tmp_path / "table.md").read_bytes().decode()


UTF8 = {"LC_ALL": "C.UTF-8"}
C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("locale", [UTF8, C], ids=["utf-8", "c"])
@pytest.mark.parametrize("command", ["report", "compare", "unknown"])
def test_the_terminal_gets_text_it_can_show_in_any_locale(nasty_run, tmp_path, locale, command):
    arguments = {
        "report": ["report", nasty_run],
        "compare": ["compare", nasty_run, make_run(tmp_path / "other", upto=40), "--out", tmp_path],
        "unknown": ["report", os.fsencode(nasty_run) + b"/none"],
    }[command]
    done = warm.run(
        [sys.executable, "-m", "siri", *map(os.fsencode, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, **locale},
    )
    assert done.returncode == (2 if command == "unknown" else 0), done.stderr
    shown = done.stdout + done.stderr
    assert shown and b"\x1b" not in shown and b"\xff" not in shown, shown
    shown.decode("utf-8" if locale is UTF8 else "ascii")


def test_notes_tables_and_messages_hold_no_control_characters(capsys):
    with TrainProgress(3) as progress:
        progress.note(f"warning: the reward failed: {NASTY}")
    batch = RewardBatch([])
    batch.count_error(NASTY)
    figures = {"accuracy": 0.5, "tokens_mean": 3.0, "truncation_rate": 0.0, "problems": 2, "pass_at_k": {"1": 0.5}}
    table = results_table({"model": NASTY, "samples": 1, "benchmarks": {f"[red]{NASTY}": figures}}, None)
    from rich.console import Console

    Console(width=200).print(table)
    out = capsys.readouterr().out
    for text in (out.replace("\n", ""), batch.first_error, str(InputError(NASTY))):
        assert text.isprintable() and "\\x1b[31mred" in text, text
    assert "[red]caf" in out, "a name is no markup"


def test_tensorboard_takes_such_names(tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(tmp_path, {"data": NASTY})
    logger.log({"step": 1, "loss": 0.5}, 1)
    logger.log({"step": 1, "name": "base", "benchmarks": {NASTY: {"accuracy": 0.5}}}, 1)
    logger.close()
    assert list((tmp_path / "tensorboard" / "eval").iterdir())
