"""Studies: what a study file may say, what is run and what is skipped, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from siri.cli import main
from siri.config import Config
from siri.demo.warmup import TASKS
from siri.errors import InputError
from siri.study.compare import compare_arms, curve_of_row
from siri.study.report import study_curves
from siri.study.study import Pair, Study, find, finished, learning_settings, read_study, swept_values
from siri.study.tables import tables

ROOT = Path(__file__).parents[3]
COMMITTED = sorted((ROOT / "studies").glob("*/*.toml"))

SMALL = """
recipe = "demo"
seeds = [0, 1]
[common]
l_max = 24
l_min = 12
eval_cap = 24
cycle = 2
steps = 2
eval_every = 1
eval_problems = 8
prompts_per_step = 2
group_size = 2
reward_workers = 1
[arms.siri]
[arms.high]
schedule = "constant"
[arms.best]
schedule = "constant"
sweep = "cap"
[sweeps.cap]
key = "l_max"
values = [20, 24]
seeds = [7]
schedule = "constant"
"""


def write(folder: Path, text: str = SMALL) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def row(pair, accuracy=0.5, tokens=20.0) -> dict:
    """A line of results.jsonl as a finished pair leaves it."""
    evals = [
        {"step": step, "name": name, "train_tokens": 100 * step, "accuracy": a, "tokens_mean": t, "cap": 24}
        for step, name, a, t in ((0, "base", 0.4, 24.0), (2, "final", accuracy, tokens))
    ]
    steps = {"cap": [24, 12], "response_tokens_mean": [20.0, 18.0]}
    return {"arm": pair.arm, "seed": pair.seed, "config_hash": pair.config_hash, "settings": pair.settings} | {
        "evals": evals,
        "steps": steps,
    }


def record(study: Study, rows: list[dict]) -> None:
    study.results.write_text("".join(json.dumps(one) + "\n" for one in rows))


# --- the file


def test_pairs_are_seed_by_seed_and_hold_what_the_arms_change(tmp_path):
    study = read_study(write(tmp_path))
    pairs = list(study.arm_pairs(None, {"best": 20}))
    assert [pair.name for pair in pairs] == ["siri-0", "high-0", "best-0", "siri-1", "high-1", "best-1"]
    configs = {pair.name: pair.config for pair in pairs}
    assert configs["siri-1"].schedule == "cosine" and configs["siri-1"].seed == 1
    assert configs["high-0"].schedule == "constant" and configs["high-0"].l_max == 24
    assert configs["best-0"].l_max == 20 and configs["best-0"].steps == 2
    assert [(pair.arm, pair.seed, pair.config.l_max) for pair in study.sweep_pairs(None)] == [
        ("cap=20", 7, 20),
        ("cap=24", 7, 24),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seeds = [0, 1]", "seeds = [0, 0]"), "seeds is [0, 0]"),
        (("seeds = [0, 1]", 'seeds = ["a"]'), "whole numbers"),
        (("seeds = [0, 1]", "seeds = 3"), "must be a list"),
        (("seeds = [0, 1]", ""), "seeds is missing"),
        (('recipe = "demo"', ""), "recipe is missing"),
        (('recipe = "demo"', 'recipe = "dem"'), "did you mean demo?"),
        (("[common]", "[comon]"), "unknown key 'comon'"),
        (("l_max = 24\nl_min", "l_maxx = 24\nl_min"), "did you mean l_max?"),
        (("[arms.high]\nschedule", "[arms.high]\nschedul"), "arm high: unknown key 'schedul'"),
        (('sweep = "cap"', 'sweep = "caps"'), "names the sweep 'caps'"),
        (('sweep = "cap"', 'sweep = "cap"\nchoose = "luck"'), "chooses by 'luck'"),
        (("values = [20, 24]", ""), "sweep cap lacks values"),
        (('key = "l_max"', 'key = "lmax"'), "did you mean l_max?"),
        (("seeds = [7]", "seeds = [1]"), "shares seeds [1]"),
        (("l_min = 12", "l_min = 30"), "l_min is 30"),
        (("[common]", '[reasoner]\ntask = "chess"\n[common]'), "task is 'chess'"),
        (("[common]", '[reasoner]\ntask = "settle"\nsize = 3\n[common]'), "[reasoner] holds task, size"),
        (("[arms.siri]", "[arms.siri"), "not valid TOML"),
        (("values = [20, 24]", "values = 20"), "values is 20; it must be a list"),
        (("values = [20, 24]", 'values = "ab"'), "values is 'ab'; it must be a list"),
        (('key = "l_max"', 'key = ["l_max"]'), "key is ['l_max']; it must be a str"),
        (('sweep = "cap"', 'sweep = ["cap"]'), "names the sweep ['cap']"),
        (("[sweeps.cap]", "[sweeps]\nother = 3\n[sweeps.cap]"), "sweep other is 3"),
        (("[common]", "[reasoner]\ntask = []\n[common]"), "task is []"),
        (("[common]", '[reasoner]\ntask = "settle"\nsteps = "x"\n[common]'), "steps is 'x'"),
        (("[arms.siri]", "[arms.siri]\neval_data = []"), "siri has no eval_data"),
        (("eval_cap = 24", ""), "evaluated at different caps (cap=20 at 20, cap=24 at 24); set one eval_cap"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_key(tmp_path, change, says, capsys):
    assert change[0] in SMALL
    path = write(tmp_path, SMALL.replace(*change, 1))
    assert main(["study", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0], lines


def test_bad_options_are_one_line(tmp_path, capsys):
    path = str(write(tmp_path))
    for arguments in (["study"], ["study", "no.toml"], ["study", path, "--jobs", "0"], ["study", path, "--only", "x"]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".hidden", "", "a\x1b[31m", "x" * 101])
def test_no_name_leads_out_of_the_folder_of_runs(tmp_path, name):
    quoted = json.dumps(name)
    for text in (SMALL.replace("[arms.high]", f"[arms.{quoted}]"), SMALL + f'[sweeps.{quoted}]\nkey = "l_max"\n'):
        with pytest.raises(InputError, match="cannot name a folder") as caught:
            read_study(write(tmp_path / "study", text))
        assert "\n" not in str(caught.value)
    config = Config(model="m", data="d")
    for value in (name, "../../x", ["a/b"]):
        folder = Pair(f"model={value}", 0, config, {}).folder
        assert Path(folder).name == folder and not folder.startswith(".") and len(folder) < 200


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


# --- results


def test_sweeps_choose_by_their_mean_and_arms_may_share_a_run(tmp_path):
    study = read_study(write(tmp_path))
    first, second = study.sweep_pairs(None)
    record(study, [row(first, accuracy=0.6, tokens=12)])
    assert swept_values(study, finished(study)) is None, "a run is missing"
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


# --- running


def test_runs_are_made_skipped_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(write(tmp_path / "mine"))
    assert main(["study", path, "--limit", "1"]) == 0
    assert "sweeps are not finished yet; the same command continues" in capsys.readouterr().out
    assert main(["study", path, "--limit", "2"]) == 0
    study = read_study(path)
    rows = finished(study)
    assert [(one["arm"], one["seed"]) for one in rows] == [("cap=20", 7), ("cap=24", 7), ("siri", 0)]
    assert main(["study", path, "--jobs", "2"]) == 0
    rows = finished(study)
    chosen = swept_values(study, rows)
    distinct = {(pair.seed, pair.config_hash) for pair in study.arm_pairs(None, chosen)}
    assert len(rows) == 2 + len(distinct), "one line a run, and none twice"
    assert all(find(rows, pair) for pair in study.arm_pairs(None, chosen))
    first = rows[2]
    assert first["accuracy"] == first["evals"][-1]["accuracy"] and first["cpu_s"] > 0
    assert len(first["steps"]["cap"]) == 2 and first["steps"]["cap"] == [24, 12]
    assert {"backtracking_per_response", "repetition_rate", "zero_variance_groups"} <= first["steps"].keys()
    assert first["model_sha256"] and len(first["settings"]) > 5
    assert str(ROOT) not in json.dumps(first) or first["settings"]["model"].startswith("siri:")
    used = [json.loads(one.read_text()) for one in (tmp_path / "runs" / "study-mine").glob("*/config.json")]
    assert used and all((one["threads"], one["threads_used"]) == (1, 1) for one in used)
    assert {"table.md", "pareto.png", "steps.png", "training_tokens.png"} <= {
        p.name for p in (tmp_path / "mine").iterdir()
    }
    capsys.readouterr()
    before = study.results.read_bytes()
    assert main(["study", path]) == 0
    assert study.results.read_bytes() == before, "nothing was left to run"
    assert "| siri | 2 |" in capsys.readouterr().out
    again = read_study(write(tmp_path / "mine", SMALL + "\n"))
    study.results.unlink()
    assert main(["study", str(again.path), "--limit", "1", "--runs", str(tmp_path / "fresh")]) == 0
    repeated = finished(again)[0]
    for key in ("evals", "steps", "config_hash", "model_sha256"):
        assert repeated[key] == rows[0][key], f"{key}: the same run in another process gives the same figures"


def test_a_stopped_study_saves_its_run_and_continues(tmp_path):
    path = write(tmp_path, SMALL.replace("\nsteps = 2", "\nsteps = 400").replace("eval_every = 1", "eval_every = 400"))
    command = [sys.executable, "-m", "siri", "study", str(path), "--limit", "1", "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 600
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 75 and "the same command continues" in out
    assert not (tmp_path / "results.jsonl").exists()
    assert list(tmp_path.glob("runs/*/checkpoints/step_*"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_parent_sleeps_while_its_workers_work(tmp_path):
    """It is woken by a worker, by a signal, or once a second to draw the bar in a terminal; here by nothing."""
    path = write(
        tmp_path, SMALL.replace("\nsteps = 2", "\nsteps = 4000").replace("eval_every = 1", "eval_every = 4000")
    )
    command = [sys.executable, "-m", "siri", "study", str(path), "--limit", "1", "--runs", str(tmp_path / "runs")]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def spent() -> tuple[int, float]:
        """How often its threads went to sleep, and the seconds that they ran."""
        tasks = list(Path(f"/proc/{parent.pid}/task").iterdir())
        sleeps = sum(
            int((task / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for task in tasks
        )
        return sleeps, sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    try:
        deadline = time.monotonic() + 600
        while not list(tmp_path.glob("runs/*/metrics.jsonl")):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.1)
        before = spent()
        time.sleep(4)
        sleeps, seconds = (now - then for now, then in zip(spent(), before, strict=True))
        assert parent.poll() is None and sleeps <= 2 and seconds < 0.004, f"{sleeps} times awake, {seconds:.4f} s"
    finally:
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(600) == 75


def test_a_failing_run_names_its_arm(tmp_path, capsys):
    path = write(tmp_path, SMALL.replace("[arms.siri]", '[arms.siri]\ndata = "nowhere.jsonl"'))
    assert main(["study", str(path), "--runs", str(tmp_path / "runs"), "--only", "siri"]) == 2
    assert "siri-0: nowhere.jsonl" in capsys.readouterr().err


# --- studies in the repository


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_committed_studies_are_well_formed(path):
    study = read_study(path)
    assert len(study.seeds) >= 5 and len(study.arms) >= 10
    if study.reasoner:
        assert study.reasoner.task in TASKS and study.reasoner.steps >= 1000
    configs = [pair.config for pair in study.arm_pairs(None, dict.fromkeys(study.arms, 1))]
    assert len({(config.steps, config.eval_cap) for config in configs}) == 1, "every arm: the same steps and measure"
    if not study.results.exists():
        return
    rows = finished(study)
    chosen = swept_values(study, rows)
    assert chosen, "the sweeps are finished"
    found = [find(rows, pair) for pair in study.arm_pairs(None, chosen)]
    assert all(found), "results.jsonl holds every pair under the configuration of the study file"
    assert len({one["model_sha256"] for one in found}) == 1, "one base for all"
    assert study.results.stat().st_size < 2**20
    # what people read is what the results say
    assert tables(study_curves(study)) in (path.parent / "table.md").read_text()
    readme = (path.parent / "README.md").read_text()
    _, rows = compare_arms(study_curves(study))
    for one in rows:
        for figure in (one.accuracy.text(100), one.tokens.text(), one.area.text(digits=3)):
            assert f"| {figure} |" in readme, (one.arm, figure)


def test_missing_sweeps_are_named_when_only_drawing(tmp_path):
    with pytest.raises(InputError, match="sweeps are not finished"):
        study_curves(read_study(write(tmp_path)))
