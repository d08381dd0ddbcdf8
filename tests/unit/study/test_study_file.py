"""What a study file may say, and what is said of one that says it wrongly."""

import json
from pathlib import Path

import pytest

from siri.cli import main
from siri.config import Config
from siri.errors import InputError
from siri.study.study import Pair
from siri.study.study_file import read_studies, read_study
from tests.support.studies import SMALL, TASKS_OF_TWO, write


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


def test_what_stands_under_a_task_goes_over_what_stands_above(tmp_path):
    path = write(tmp_path, TASKS_OF_TWO)
    demo, more = read_studies(path)
    assert (demo.task, demo.lengths, demo.budgets) == ("demo", (10, 20), (1,)) and more.lengths == (20,)
    pairs = [{pair.name: pair for pair in study.arm_pairs(None, {"best": 20})} for study in (demo, more)]
    assert pairs[0]["demo-high-0"].config.l_max == 24 and pairs[1]["more-high-0"].config.l_max == 20
    assert pairs[1]["more-siri-1"].config.l_max == 24 and pairs[1]["more-siri-1"].config.lr == 2e-4
    assert pairs[0]["demo-siri-0"].settings["eval_data"] == [
        f"{demo.reasoner.key}/heldout-a.jsonl",
        f"{demo.reasoner.key}/heldout-b.jsonl",
    ]
    with pytest.raises(InputError, match="has several tasks"):
        read_study(path)


def test_a_branch_has_its_trunks_settings_and_depends_on_its_trunk(tmp_path):
    (study, _) = read_studies(write(tmp_path, TASKS_OF_TWO))
    pairs = {pair.name: pair for pair in study.arm_pairs(None, {})}
    branch, high = pairs["demo-down-0"], pairs["demo-high-0"]
    assert branch.trunk == high and branch.at == 1 and branch.config.schedule == "cosine" and branch.config.steps == 1
    assert branch.settings["branch_of"] == f"{high.config_hash}@1"
    other = TASKS_OF_TWO.replace(
        '[arms.high]\nschedule = "constant"', '[arms.high]\nschedule = "constant"\ngroup_size = 4'
    )
    (changed, _) = read_studies(write(tmp_path, other))
    moved = next(pair for pair in changed.arm_pairs(None, {}) if pair.arm == "down")
    assert moved.config.group_size == 4 and moved.config_hash != branch.config_hash


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('arm = "high", at = 1', 'arm = "low", at = 1'), "branches off 'low'; it must be one of siri, high"),
        (('arm = "high", at = 1', 'arm = "best", at = 1'), "branches off 'best'"),
        (('arm = "high", at = 1', 'arm = "down", at = 1'), "branches off 'down'"),
        (('arm = "high", at = 1', 'arm = "high", at = 2'), "arm down branches off after step 2 of 2"),
        (
            ("keep_every = 1\n", ""),
            "high keeps no checkpoint after step 1 for down to branch off; set its save_every and",
        ),
        (("keep_every = 1\n", "keep_every = 1\nsave_every = 2\n"), "high keeps no checkpoint after step 1"),
        (('arm = "high", at = 1', 'arm = "high"'), 'write branch = { arm = "NAME", at = STEP }'),
        (("lengths = [20]", "lengths = [0]"), "lengths is [0]; it must be a list of numbers above 0"),
        (("lengths = [20]", ""), "several tasks need lengths and halves = true"),
        (("halves = true", ""), "several tasks need lengths and halves = true"),
        (("[tasks.more]", "[tasks.'a/b']"), "task 'a/b' cannot name a folder"),
        (("budgets = [1]", 'budgets = ["x"]'), "budgets is ['x']"),
    ],
)
def test_what_is_wrong_with_tasks_is_one_line(tmp_path, change, says, capsys):
    assert change[0] in TASKS_OF_TWO
    assert main(["study", str(write(tmp_path, TASKS_OF_TWO.replace(*change, 1)))]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0], lines
