"""Studies: what of a run counts, what its results choose, and the committed ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from siri.config import Config
from siri.demo.warmup import TASKS
from siri.errors import InputError
from siri.study.compare import compare_arms, curve_of_row
from siri.study.cycles import cycle_sheets
from siri.study.report import study_curves
from siri.study.study import find, finished, learning_settings, swept_values
from siri.study.study_file import read_studies, read_study
from siri.study.tables import tables
from siri.study.tasks import missing_runs, task_runs, task_sheets
from tests.support.studies import SMALL, record, row, write

ROOT = Path(__file__).parents[3]


COMMITTED = sorted((ROOT / "studies").glob("*/*.toml"))


def test_hash_is_of_what_a_run_learns(tmp_path):
    config = Config(model="a", data="b")

    def settings(**changes):
        return learning_settings(replace(config, **changes), None)

    assert settings() == settings(token_budget=512, rollout_tokens=9, device="cpu", keep_checkpoints=9, save_every=3)
    for change in ({"lr": 1e-3}, {"seed": 1}, {"l_max": 9999}, {"data": "c"}, {"eval_every": 5}):
        assert settings(**change) != settings()
    assert "lr" not in settings(), "a key at its default does not count, so that new keys leave old results valid"


def test_where_a_reasoner_lies_does_not_count(tmp_path):
    study = read_study(write(tmp_path, SMALL.replace("[common]", '[reasoner]\ntask = "settle"\nsteps = 3\n[common]')))
    here, there = (next(study.arm_pairs(Path(folder), {"best": 20})) for folder in ("here", "there"))
    assert here.config.model != there.config.model and here.config_hash == there.config_hash
    assert here.config_hash == next(study.arm_pairs(None, {"best": 20})).config_hash
    assert study.reasoner.key.startswith("settle-") and here.settings["model"] == study.reasoner.key


def test_sweeps_choose_by_their_mean_and_arms_may_share_a_run(tmp_path):
    study = read_study(write(tmp_path))
    first, second = study.sweep_pairs(None)
    record(study, [row(first, accuracy=0.6, tokens=12)])
    assert swept_values(study, finished(study)) == {}, "a run is missing"
    assert [pair.arm for pair in study.arm_pairs(None, {})] == ["siri", "high"] * 2, "the other arms need not wait"
    assert not list(study.sweep_pairs(None, ["siri"])) and len(list(study.sweep_pairs(None, ["siri", "best"]))) == 2
    record(study, [row(first, accuracy=0.6, tokens=12), row(second, accuracy=0.7, tokens=24)])
    assert swept_values(study, finished(study)) == {"best": 24}
    by_score = SMALL.replace('sweep = "cap"', 'sweep = "cap"\nchoose = "score"')
    assert swept_values(read_study(write(tmp_path, by_score)), finished(study)) == {"best": 20}

    pairs = {pair.name: pair for pair in study.arm_pairs(None, {"best": 24})}
    assert pairs["best-0"].config_hash == pairs["high-0"].config_hash
    record(study, [*finished(study), row(pairs["high-0"], accuracy=0.8)])
    assert find(finished(study), pairs["best-0"])["arm"] == "high"
    assert [(curve.arm, curve.seed) for curve in study_curves(study)] == [("high", 0), ("best", 0)]


def test_a_changed_study_does_not_take_old_rows_for_its_own(tmp_path):
    study = read_study(write(tmp_path))
    pair = next(study.arm_pairs(None, {"best": 20}))
    record(study, [row(pair)])
    assert find(finished(study), pair)
    changed = read_study(write(tmp_path, SMALL.replace("steps = 2", "steps = 3")))
    assert find(finished(changed), next(changed.arm_pairs(None, {"best": 20}))) is None


def test_phases_of_a_row_are_those_of_its_schedule(tmp_path):
    study = read_study(write(tmp_path))
    siri, high = list(study.arm_pairs(None, {"best": 20}))[:2]
    assert curve_of_row(row(siri)).steps["phase"] == ["compression", "expansion"]
    assert curve_of_row(row(high)).steps["phase"] == ["expansion", "expansion"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_committed_studies_are_well_formed(path):
    studies = read_studies(path)
    for study in studies:
        assert len(study.seeds) >= 5 and len(study.arms) >= 10
        if study.reasoner:
            assert study.reasoner.task in TASKS and study.reasoner.steps >= 1000
        pairs = list(study.arm_pairs(None, dict.fromkeys(study.arms, 1)))
        assert len({pair.config.steps + pair.at for pair in pairs}) == 1, "every arm: the same steps"
        assert len({(pair.config.eval_cap, pair.config.eval_problems) for pair in pairs}) == 1, "and measure"
    study = studies[0]
    if not study.results.exists():
        return
    if study.task:  # it grows; what people read is what the results say so far
        rows = finished(study)
        tasks, text = [task_runs(each, rows) for each in studies], (path.parent / "table.md").read_text()
        assert all(sheet.markdown() in text for sheet in [*task_sheets(tasks), *cycle_sheets(tasks)])
        assert all(line in text for line in missing_runs(tasks))
        known = {pair.config_hash for each in studies for pair in each.sweep_pairs(None)}
        known |= {p.config_hash for each in studies for p in each.arm_pairs(None, swept_values(each, rows))}
        assert all(row["config_hash"] in known for row in rows), "no row of another configuration"
        assert not any(row["commit"].endswith("-dirty") for row in rows)
        return
    rows = finished(study)
    chosen = swept_values(study, rows)
    assert chosen, "the sweeps are finished"
    rows_of_pairs = [find(rows, pair) for pair in study.arm_pairs(None, chosen)]
    assert all(rows_of_pairs), "results.jsonl holds every pair under the configuration of the study file"
    assert len({row["model_sha256"] for row in rows_of_pairs}) == 1, "one base for all"
    assert study.results.stat().st_size < 2**20
    # what people read is what the results say
    assert tables(study_curves(study)) in (path.parent / "table.md").read_text()
    readme = (path.parent / "README.md").read_text()
    _, rows = compare_arms(study_curves(study))
    for arm_row in rows:
        for figure in (arm_row.accuracy.text(100), arm_row.tokens.text(), arm_row.area.text(digits=3)):
            assert f"| {figure} |" in readme, (arm_row.arm, figure)


def test_missing_sweeps_are_named_when_only_drawing(tmp_path):
    with pytest.raises(InputError, match="sweeps are not finished"):
        study_curves(read_study(write(tmp_path)))
