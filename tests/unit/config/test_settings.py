"""What a setting means stands beside it: bounds, roles and texts, also where a class inherits it."""

import re
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby

import pytest

from siri.cli import COMMANDS, read_options
from siri.commands.evaluate import EvalOptions
from siri.commands.train import TrainOptions
from siri.config import Config, free_keys, machine_keys
from siri.config.help import field_texts, help_text
from siri.config.settings import Meaning, Settings, declared, names, setting
from siri.errors import InputError

FREE = {"steps", "train_tokens", "save_every", "keep_checkpoints", "keep_every", "logger", "profile", "keep_responses"}
FREE |= {"reward_workers", "reward_memory_gb", "health", "ratio_limit", "entropy_floor", "grader_limit", "bundles"}
FREE |= {"token_budget", "cost_ratio", "rollout_tokens", "checkpointing", "shard_across_nodes", "device"}
FREE |= {"rollout_servers", "rollout_memory", "rollout_sync", "rollout_sync_dir", "rollout_tolerance"}
FREE |= {"rollout_timeout_s", "rollout_sync_timeout_s", "sync_every_micro_step"}
FREE |= {"attention", "liger", "optimizer_offload", "vocab_parallel", "threads", "data_changed", "model_changed"}
FREE |= {"score_all", "epochs", "keep_best", "eval_top_p", "eval_budgets", "rollout_insecure", "staleness"}
FREE |= {"eval_every", "eval_data", "eval_problems", "eval_samples", "eval_temperature", "eval_cap"}
MACHINE = {"token_budget", "checkpointing", "shard_across_nodes", "device", "reward_workers", "cost_ratio"}
MACHINE |= {"reward_timeout_s", "keep_checkpoints", "save_every", "logger", "profile", "rollout", "rollout_tokens"}
MACHINE |= {"rollout_servers", "rollout_memory", "rollout_sync", "rollout_sync_dir", "rollout_tolerance"}
MACHINE |= {"rollout_timeout_s", "rollout_sync_timeout_s", "threads", "data_changed"}
MACHINE |= {"model_changed", "keep_responses", "rollout_insecure"}


def test_what_may_change_on_resume_and_what_no_study_counts():
    """Spelt out, because a slip in either is silent: a run that goes on as another, or results that count no more."""
    assert free_keys() == FREE
    assert machine_keys() == MACHINE


def test_config_json_holds_every_setting_section_by_section():
    keys = list(Config().to_json())
    assert set(keys) == {field.name for field in fields(Config)} and len(keys) == len(set(keys))
    sections = [section for section, _ in groupby(each.section for each in declared(Config))]
    assert len(sections) == len(set(sections)), "a section's settings stand together"
    assert keys[:2] == ["model", "data"]


@dataclass(frozen=True)
class Room(Settings):
    """A room."""

    width: float = setting(4.0, above=0, most=9)
    """Metres."""
    doors: int = setting(1, least=1, free=True)
    """How many."""

    def check(self) -> None:
        if self.doors > self.width:
            raise InputError("more doors than metres")


@dataclass(frozen=True)
class Paint(Settings):
    """Its paint."""

    coats: int | str = setting("auto", least=1)
    """Of paint."""

    def check(self) -> None:
        if self.coats == 7:
            raise InputError("seven coats")


@dataclass(frozen=True)
class Hall(Room, Paint):
    """A hall."""

    width: float = 9.0
    length: float = 20.0
    """Metres, the other way."""

    def check(self) -> None:
        if self.length < self.width:
            raise InputError("the length is the longer side")


def test_a_class_that_inherits_a_setting_changes_its_default_and_nothing_else():
    assert names(Hall) == ["length", "width", "doors", "coats"]
    width = next(each for each in declared(Hall) if each.name == "width")
    assert (width.default, width.section, width.meaning) == (9.0, Room, Meaning(above=0, most=9))
    assert names(Hall, free=True) == ["doors"]
    assert field_texts(Hall)["width"] == "Metres."
    assert EvalOptions().rollout_memory == 0.85 and Config().rollout_memory == 0.6
    for options in (Config, EvalOptions):
        with pytest.raises(InputError, match=r"rollout_memory is 1\.0; it must be above 0 and below 1"):
            options(rollout_memory=1.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"width": 10.0}, "width is 10.0; it must be above 0 and at most 9"),
        ({"width": float("nan")}, "width is nan; it must be a finite number"),
        ({"length": float("inf")}, "length is inf; it must be a finite number"),
        ({"doors": 0}, "doors is 0; it must be at least 1"),
        ({"coats": 0}, "coats is 0; it must be 'auto' or at least 1"),
        ({"width": 2.0, "doors": 3}, "more doors than metres"),
        ({"coats": 7}, "seven coats"),
        ({"length": 1.0}, "the length is the longer side"),
    ],
)
def test_every_section_checks_itself(values, said):
    with pytest.raises(InputError) as error:
        Hall(**values)
    assert str(error.value) == said
    assert Hall(coats=3).coats == 3


def test_rules_in_words():
    assert Meaning(least=0).rule() == "0 or more" and Meaning(least=0, below=1).rule() == "at least 0 and below 1"
    assert Meaning(above=0).rule() == "above 0" and Meaning(least=2).rule() == "at least 2"


def all_options() -> dict[str, type]:
    return {name: command.load()[0] for name, command in COMMANDS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text_and_stands_once_in_the_help(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = COMMANDS[command].load()[0]
    assert is_dataclass(options) and options.__dataclass_params__.frozen
    assert set(names(options)) == {field.name for field in fields(options)} <= set(field_texts(options))
    text = help_text(options, f"siri {command}")
    assert max(map(len, text.splitlines())) <= 100
    flags = re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)
    expected = [each.name.replace("_", "-") for each in declared(options) if not each.meaning.positional]
    assert sorted(flags) == sorted(expected)


def test_help_begins_with_what_is_set_every_day_and_goes_on_by_section():
    text = help_text(TrainOptions, "siri train demo", TrainOptions(l_max=96, stages=((0, 8),), eval_data=()))
    blocks = text.split("\n\n")
    assert blocks[0] == "usage: siri train demo [OPTIONS]" and blocks[1].startswith("Arguments\n  RECIPE ")
    everyday = set(re.findall(r"^  --([a-z-]+)", blocks[2], re.MULTILINE))
    assert blocks[2].startswith("Everyday\n")
    assert {"model", "data", "steps", "group-size", "l-max", "run-dir", "resume"} <= everyday
    headings = [block.splitlines()[0] for block in blocks[3:]]
    assert len(set(headings)) == len(headings) and "Optimizer: AdamW, and what it is given." in headings
    assert "(default: 96)" in text and "(default: 0 8)" in text and "--dual-clip FLOAT|{None}" in text
    assert "--think, --no-think" in text and "--schedule {cosine,stair," in text and "--stages [INT INT ...]" in text


def test_positional_words_are_taken_where_they_may_stand():
    paper = COMMANDS["report --paper"].load()[0]
    assert read_options("report --paper", paper, ["--size", "7b", "a.json", "b.json"]).files == ("a.json", "b.json")
    compare = COMMANDS["compare"].load()[0]
    options = read_options("compare", compare, ["a", "b", "c", "--out", "d"])
    assert (options.runs, options.out) == (("a", "b", "c"), "d")
    with pytest.raises(InputError, match="needs two runs at least"):
        read_options("compare", compare, ["a", "--out", "d"])
    with pytest.raises(InputError, match="unknown key 'model'"):  # given by its place, not by a key
        read_options("eval", EvalOptions, ["m", "--model", "x"])


def test_evaluation_takes_the_settings_of_engine_and_grader_as_training_does():
    shared = {name for name in names(Config) if name.startswith(("rollout", "reward_"))} | {"think", "device", "seed"}
    assert shared <= set(names(EvalOptions))
    by_name = {each.name: each for each in declared(Config)}
    assert all(by_name[each.name].meaning == each.meaning for each in declared(EvalOptions) if each.name in shared)
    with pytest.raises(InputError, match="names a server twice"):
        EvalOptions(rollout_servers=("http://a:1", "http://a:1/"))


def test_what_an_engine_is_asked_for():
    train = Config(model="m", l_max=100, l_min=50, max_prompt_tokens=20, prompts_per_step=4, group_size=8)
    asked = train.workload()
    assert (asked.model, asked.tokens, asked.responses, asked.recurring) == ("m", 120, 32, True)
    measured = Config(l_max=100, l_min=50, max_prompt_tokens=20, eval_cap=300, eval_samples=9, eval_problems=400)
    assert (measured.workload().tokens, measured.workload().responses) == (320, 3600)
    evaluation = EvalOptions(models=("m",), cap=70, max_prompt_tokens=30, temperature=0.0).workload()
    assert (evaluation.model, evaluation.tokens, evaluation.responses) == ("m", 100, None)
    assert (evaluation.temperature, evaluation.recurring, evaluation.offload) == (0.0, False, False)
