"""The front picture of a run: its path, the phases that coloured it, and the evaluations that none beats."""

from types import SimpleNamespace

from siri.report.front import front_chart, on_front, path_of
from siri.report.html import write_report
from siri.store.jsonl import MetricsLog, read_run
from tests.support.synthetic_run import make_run


def test_a_point_is_on_the_front_unless_another_beats_it():
    points = [(20, 50.0), (10, 50.0), (10, 40.0), (30, 60.0), (10, 50.0)]
    assert on_front(points) == [False, True, False, True, True]


def test_the_path_is_coloured_by_the_phase_before_each_evaluation():
    evals = [
        {"step": s, "name": n, "cap": 9, "accuracy": a, "tokens_mean": t}
        for s, n, a, t in (
            (0, "base", 0.5, 30.0),
            (4, "siri-low-1", 0.6, 10.0),
            (7, "step-7", 0.6, 12.0),
            (8, "siri-high-1", 0.7, 20.0),
        )
    ]
    metrics = [{"step": step, "phase": "compression" if step < 4 else "expansion"} for step in range(8)]
    run = SimpleNamespace(evals=evals, metrics=metrics, config={}, plans=[])
    assert [(row.name, phase) for row, phase in path_of(run)] == [
        ("base", ""),
        ("siri-low-1", "compression"),
        ("step-7", "expansion"),
        ("siri-high-1", "expansion"),
    ]
    arrows = [text.arrow_patch for text in front_chart(run).axes[0].texts if text.arrow_patch is not None]
    assert len(arrows) == 3 and len({patch.get_edgecolor() for patch in arrows}) == 2
    constant = SimpleNamespace(**{**vars(run), "metrics": [{**row, "phase": "expansion"} for row in metrics]})
    assert front_chart(constant) is None and front_chart(SimpleNamespace(**{**vars(run), "evals": evals[:2]})) is None


def test_turns_and_their_reasons_are_on_the_page(tmp_path):
    folder = make_run(tmp_path / "run", upto=3)
    log = MetricsLog(folder / "metrics.jsonl")
    log.append({**read_run(folder).metrics[-1], "step": 3, "turn": "compression to 18: the length <b>has</b> settled"})
    page = write_report(folder).read_text()
    assert "Turns of the cap" in page and "step 4" in page and "compression to 18: the length &lt;b&gt;" in page
