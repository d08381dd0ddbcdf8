"""Recipes, TOML files and the command line: one name for a key everywhere, and a fault is one line."""

import dataclasses
import io
import json
import sys
import tomllib
from importlib.resources import files

import pytest

from siri.commands.train import TrainOptions
from siri.config import Config
from siri.config.recipe import load_recipe, recipe_names, resolve
from siri.errors import InputError

# the paper's table, and verl's defaults where the paper is silent
PAPER = {
    "data": ("agentica-org/DeepScaleR-Preview-Dataset",),
    "schedule": "cosine",
    "l_max": 16384,
    "l_min": 8192,
    "cycle": 640,
    "steps": 1920,
    "prompts_per_step": 128,
    "lr": 1e-6,
    "temperature": 1.0,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "group_size": 16,
    "mini_batch_prompts": 64,
    "beta1": 0.9,
    "beta2": 0.999,
    "weight_decay": 0.01,
    "grad_clip": 1.0,
    "entropy_coef": 0.0,
    "instruction": "Let's think step by step and output the final answer within \\boxed{}.",
    "max_prompt_tokens": 1024,
    "eval_temperature": 0.6,
    "eval_samples": 32,
    "eval_cap": 16384,
    "reward": "math",
    "think": True,
    "overlong": "zero",
    "dynamic_sampling": False,
    "aggregation": "token_mean",
    "advantage_norm": "std",
    "dual_clip": None,
    "importance": "none",
    "loss": "grpo",
    "rollout": "auto",
    "token_budget": "auto",
}


def config(recipe: str, *arguments: str) -> Config:
    return resolve(recipe, Config, list(arguments))


def fault(recipe: str, *arguments: str) -> str:
    with pytest.raises(InputError) as error:
        resolve(recipe, TrainOptions, list(arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def toml(tmp_path, text: str, name: str = "mine.toml") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_resolves_and_says_what_it_trains(recipe):
    settings = config(recipe)
    assert settings.model and settings.data
    lists = ("data", "stages", "eval_data", "eval_budgets", "rollout_servers", "health", "lora_targets", "logger")
    tuples = {key: getattr(settings, key) for key in lists}
    assert Config(**{**settings.to_json(), **tuples}) == settings


def test_recipe_names():
    baselines = {"fixed-high", "fixed-low", "dapo-8k-16k", "stair", "stair-cosine"}
    baselines |= {"length-reward", "soft-overlong", "thinkprune"}
    methods = {"dot-8k", "drpo", "gfpo", "dler", "cycled-penalty", "l1-exact", "l1-max", "laser", "laser-d", "dars"}
    assert (
        set(recipe_names()) == {"demo", "gsm8k-0.5b", "gsm8k-0.5b-lora", "siri-1.5b", "siri-7b"} | baselines | methods
    )


@pytest.mark.parametrize("size", ["1.5b", "7b"])
def test_siri_recipes_are_the_papers(size):
    settings = config(f"siri-{size}")
    assert settings.model == f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size.upper()}"
    assert {key: getattr(settings, key) for key in PAPER} == PAPER


def test_every_key_of_siri_1_5b_says_where_it_comes_from():
    """p, i or u (see the file's head) stands behind every value but those that cannot change what is learnt."""
    text = (files("siri") / "recipes" / "siri-1.5b.toml").read_text()
    unmarked = []
    for line in text.splitlines():
        key, _, rest = line.partition(" = ")
        if not rest or line.startswith("#"):
            continue
        if "#" not in rest:
            unmarked.append(key)
        else:
            mark = rest.rpartition("#")[2].strip()
            assert mark.split()[0].rstrip(",:;") in ("p", "i", "u") or mark == "memory only", line
    assert set(unmarked) <= {"reward", "save_every"}


def differences(recipe: str) -> dict:
    base, other = config("siri-1.5b"), config(recipe)
    names = [field.name for field in dataclasses.fields(Config)]
    return {name: getattr(other, name) for name in names if getattr(other, name) != getattr(base, name)}


def test_baselines_differ_from_siri_in_the_schedule_only():
    assert differences("fixed-high") == {"schedule": "constant"}
    assert differences("fixed-low") == {"schedule": "constant", "l_max": 8192}
    assert differences("stair") == {"schedule": "stair"}
    assert differences("stair-cosine") == {"schedule": "stair_cosine"}
    assert differences("dapo-8k-16k") == {"schedule": "steps", "stages": ((0, 8192), (320, 16384))}
    larger = {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "sync_every_micro_step": True}
    assert differences("siri-7b") == larger, "the second is memory only"
    caps = {
        name: [config(name).length_schedule().cap(t) for t in (0, 319, 320, 480, 640)]
        for name in ("siri-1.5b", "fixed-high", "fixed-low", "dapo-8k-16k", "stair", "stair-cosine")
    }
    assert caps == {
        "siri-1.5b": [16384, 8192, 8192, 12288, 16384],
        "fixed-high": [16384] * 5,
        "fixed-low": [8192] * 5,
        "dapo-8k-16k": [8192, 8192, 16384, 16384, 16384],
        "stair": [8192, 8192, 16384, 16384, 8192],
        "stair-cosine": [16384, 8192, 8192, 12288, 16384],
    }
    assert config("fixed-low").eval_cap == 16384, "baselines are measured at one cap"


def test_command_line_goes_over_toml_goes_over_base(tmp_path):
    mine = toml(tmp_path, 'base = "siri-1.5b"\nlr = 3e-6\ngroup_size = 8\nthink = false\neval_data = ["a.json"]\n')
    settings = config(mine, "--group-size", "4", "--eval-data", "b.json", "c.json")
    assert (settings.lr, settings.group_size, settings.think) == (3e-6, 4, False)
    assert settings.eval_data == ("b.json", "c.json")
    assert settings.prompts_per_step == 128, "from the base"
    assert settings.dual_clip is None, "the default"
    assert config(mine, "--think").think is True


def test_a_base_may_lie_beside_the_file(tmp_path, monkeypatch):
    toml(tmp_path, 'base = "siri-7b"\nseed = 7\n', "parent.toml")
    child = toml(tmp_path, 'base = "parent.toml"\nl_min = 4096\n', "child.toml")
    monkeypatch.chdir("/")
    settings = config(child)
    assert (settings.seed, settings.l_min) == (7, 4096) and settings.model.endswith("7B")


def test_recipe_and_command_line_have_to_make_sense_only_together(tmp_path):
    mine = toml(tmp_path, 'base = "siri-1.5b"\nl_max = 4096\n')
    options = resolve(mine, TrainOptions, ["--l-min", "1024"])
    assert (options.l_max, options.l_min) == (4096, 1024)
    with pytest.raises(InputError, match="l_min is 8192 and l_max is 4096"):
        config(mine)


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        (("l_max", 9000), ["--l-max", "9000"]),
        (("l_max", 9000), ["--l-max=9000"]),
        (("l_min", 17), ["--l_min", "17"]),
        (("lr", 2.5e-7), ["--lr", "2.5e-7"]),
        (("token_budget", 4096), ["--token-budget", "4096"]),
        (("token_budget", "auto"), ["--token-budget", "auto"]),
        (("cost_ratio", 1.25), ["--cost-ratio", "1.25"]),
        (("cost_ratio", "h100.json"), ["--cost-ratio", "h100.json"]),
        (("dual_clip", 3.0), ["--dual-clip", "3"]),
        (("dual_clip", None), ["--dual-clip", "None"]),
        (("dynamic_sampling", True), ["--dynamic-sampling"]),
        (("think", False), ["--no-think"]),
        (("stages", ((0, 8), (4, 16))), ["--stages", "0", "8", "4", "16"]),
        (("eval_data", ()), ["--eval-data"]),
        (("instruction", "- why?"), ["--instruction=- why?"]),
    ],
)
def test_values_of_every_kind_from_the_command_line(value, arguments):
    assert getattr(config("siri-1.5b", *arguments), value[0]) == value[1]


def test_every_key_has_one_name_everywhere(tmp_path):
    """Whatever config.json holds can be put into a TOML recipe, key by key, and gives the same settings."""
    settings = config("dapo-8k-16k", "--dual-clip", "3", "--no-think", "--eval-data", "x.json", "--seed", "5")
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.to_json().items()]
    text = "\n".join(lines)
    assert tomllib.loads(text) == settings.to_json()
    assert config(toml(tmp_path, text)) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("l_maxx = 3", ["l_maxx", "did you mean l_max?"]),
        ("learning_rates = 3", ["learning_rates"]),
        ('l_max = "long"', ["--l-max", "'long'"]),
        ("l_max = true", ["--l-max", "'True'"]),
        ("l_max = 1.5", ["--l-max", "'1.5'"]),
        ('think = "yes"', ["think is 'yes'", "true or false"]),
        ('schedule = "cosin"', ["--schedule", "cosin", "cosine", "stair_cosine"]),
        ("stages = [[0]]", ["--stages"]),
        ("[train]\nlr = 1", ["train"]),
        ("[model]\nname = 1", ["model", "table", "flat"]),
        ("base = 3", ["base is 3"]),
        ("think = 1", ["think is 1; it is true or false"]),
        ("data = 5", ["data holds 5", "text"]),
        ("eval_data = [[3], 'a.json']", ["eval_data holds [3]"]),
    ],
)
def test_faults_in_toml_name_file_and_key(tmp_path, text, said):
    mine = toml(tmp_path, text)
    message = fault(mine)
    assert message.startswith(f"recipe {mine}: ") and all(part in message for part in said), message
    assert "mine.toml --help" not in message, "help of a broken recipe cannot be shown"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lmax", "3"], ["lmax", "did you mean --l-max?"]),
        (["--grup-size", "3"], ["did you mean --group-size?"]),
        (["--no-thimk"], ["thimk", "did you mean --think?"]),
        (["--zzz", "3"], ["zzz", "--help"]),
        (["--steps", "two"], ["--steps", "'two'"]),
        (["--steps"], ["--steps", "Missing value"]),
        (["--schedule", "cosin"], ["cosin", "'stair_cosine'"]),
        (["--stages", "0", "8", "x"], ["--stages", "'x'"]),
        (["stray"], ["stray"]),
        (["--think", "false"], ["false"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_faults_on_the_command_line(arguments, said, encoding, monkeypatch):
    """Also where the terminal has no box characters, so that tyro draws with dashes."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    message = fault("demo", *arguments)
    assert all(part in message for part in said), message
    assert "siri --help" in message and not set("─│╭") & set(message) and "---" not in message


def test_toml_that_cannot_be_read(tmp_path):
    assert "no such file" in fault(str(tmp_path / "none.toml"))
    assert "line 2" in fault(toml(tmp_path, "lr = 1e-6\nl_max =\n"))
    (tmp_path / "latin.toml").write_bytes(b'model = "\xe9"\n')
    assert "latin.toml: not valid TOML" in fault(str(tmp_path / "latin.toml"))
    itself = toml(tmp_path, 'base = "itself.toml"\n', "itself.toml")
    assert "leads back to itself" in fault(itself)
    toml(tmp_path, 'base = "b.toml"\n', "a.toml")
    assert "leads back to itself" in fault(toml(tmp_path, 'base = "a.toml"\n', "b.toml"))
    assert "'siri-1.5'" in fault(toml(tmp_path, 'base = "siri-1.5"\n'))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"l_min": 9, "l_max": 8}, "l_min is 9 and l_max is 8"),
        ({"l_min": 0}, "l_min is 0"),
        ({"cycle": 0}, "cycle is 0"),
        ({"schedule": "steps"}, "needs stages"),
        ({"schedule": "steps", "stages": ((5, 8),)}, "starts at step 0"),
        ({"group_size": 1}, "group_size is 1.*--advantage-norm none"),
        ({"group_size": 0, "advantage_norm": "none"}, "group_size is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"ratio_limit": 0.0}, "ratio_limit is 0.0; it must be above 0"),
        ({"keep_every": -1}, "keep_every is -1; it must be 0 or more"),
        ({"reward_memory_gb": -1.0}, "reward_memory_gb is -1.0; it must be 0 or more"),
        ({"entropy_floor": -1.0}, "entropy_floor is -1.0; it must be 0 or more"),
        ({"bundles": -1}, "bundles is -1; it must be 0 or more"),
        ({"health": ("ratio=stop",)}, "health: 'ratio=stop' is no rule"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"clip_low": -0.1}, "clip_low is -0.1; it must be 'auto' or 0 or more"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5; it must be above 1"),
        ({"token_budget": 0}, "token_budget is 0"),
        ({"cost_ratio": 0.0}, "cost_ratio is 0"),
        ({"cost_ratio": float("nan")}, "cost_ratio is nan"),
        ({"rollout_tokens": -1}, "rollout_tokens is -1"),
        ({"length_weight": -1.0}, "length_weight is -1.0; it must be 0 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_that_make_no_sense(settings, said):
    with pytest.raises(InputError, match=said):
        Config(**settings)


BY_NAME = {
    "grpo": (0.2, 0.28, "token_mean"),
    "gspo": (3e-4, 4e-4, "seq_mean"),
    "cispo": (None, 0.28, "token_mean"),
}


def loss_of(settings: Config) -> tuple:
    return settings.clip_low, settings.clip_high, settings.aggregation


@pytest.mark.parametrize("loss", BY_NAME)
def test_a_loss_is_what_its_name_means_unless_something_else_is_given(loss, tmp_path):
    assert loss_of(Config(loss=loss)) == loss_of(config("demo", "--loss", loss)) == BY_NAME[loss]
    recipe = toml(tmp_path, f'base = "demo"\nloss = "{loss}"\nclip_high = 0.1')
    low, _, aggregation = BY_NAME[loss]
    assert loss_of(config(recipe)) == (low, 0.1, aggregation)
    asked = resolve(recipe, TrainOptions, ["--clip-low", "0.3", "--aggregation", "seq_sum"]).config()
    assert loss_of(asked) == (0.3, 0.1, "seq_sum")
    assert loss_of(config(recipe, "--clip-high", "auto")) == BY_NAME[loss]
    held = asked.to_json()
    assert "auto" not in (held["clip_low"], held["clip_high"], held["aggregation"], held["importance_cap"])
    assert Config(**{key: held[key] for key in ("loss", "clip_low", "clip_high", "aggregation")}) == Config(
        loss=loss, clip_low=0.3, clip_high=0.1, aggregation="seq_sum"
    )


def test_the_command_line_may_name_another_loss_than_the_recipe(tmp_path):
    recipe = toml(tmp_path, 'base = "demo"\nloss = "gspo"\nimportance = "icepop"')
    assert loss_of(config(recipe, "--loss", "cispo")) == BY_NAME["cispo"]
    assert loss_of(resolve(recipe, TrainOptions, ["--loss", "cispo"]).config()) == BY_NAME["cispo"]
    assert config(recipe).importance_cap == 5.0 and config(recipe, "--importance", "tis").importance_cap == 2.0
    # a recipe's values are given ones
    assert loss_of(config("siri-1.5b", "--loss", "gspo")) == BY_NAME["grpo"]


def test_no_bound_can_be_said_everywhere(tmp_path):
    assert config("siri-1.5b", "--clip-low", "None", "--clip-high", "None").clip_low is None
    assert config(toml(tmp_path, 'base = "demo"\nclip_low = "None"')).clip_low is None
    assert config("demo", "--loss", "cispo", "--clip-low", "0.2").clip_low == 0.2


def test_a_narrow_cap_leaves_an_empty_band():
    assert Config(importance="icepop", importance_low=3.0).importance_cap == 5.0
    with pytest.raises(InputError, match="the icepop band is empty"):
        Config(importance="icepop", importance_low=3.0, importance_cap=2.0)


def test_a_run_that_continues_keeps_what_it_has_had():
    """Of 0.1.0, where every loss had the defaults of grpo. What is given wins, and what cannot be is not taken."""
    held = {"loss": "gspo", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean", "importance_cap": 2.0}
    options = resolve("demo", TrainOptions, ["--loss", "gspo", "--importance", "icepop", "--clip-high", "0.1"])
    continued = options.config(held=held)
    assert loss_of(continued) == (0.2, 0.1, "token_mean") and continued.importance_cap == 2.0
    assert loss_of(options.config(held={"clip_low": None, "aggregation": 3})) == (None, 0.1, "seq_mean")
    assert loss_of(options.config()) == (3e-4, 0.1, "seq_mean")


def test_no_variance_is_needed_without_normalisation():
    assert Config(group_size=1, advantage_norm="none").group_size == 1


def test_how_the_work_is_laid_out_can_be_chosen():
    plain = config("demo")
    assert (plain.attention, plain.liger, plain.optimizer_offload, plain.vocab_parallel) == (
        "auto",
        "auto",
        False,
        False,
    )
    chosen = config(
        "demo", "--attention", "varlen", "--liger", "off", "--optimizer-offload", "--vocab-parallel", "--seed", "3"
    )
    assert (chosen.attention, chosen.liger, chosen.optimizer_offload, chosen.vocab_parallel) == (
        "varlen",
        "off",
        True,
        True,
    )
    assert "flash5" in fault("demo", "--attention", "flash5") and "flash3" in fault("demo", "--attention", "flash5")
    assert "yes" in fault("demo", "--liger", "yes")


def test_package_recipes_stay_flat():
    assert all(not isinstance(value, dict) for name in recipe_names() for value in load_recipe(name).values())
