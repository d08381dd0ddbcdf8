"""Variables of the chat template: they reach it, and one that it would ignore is refused."""

import json

import pytest

from siri.cli import main
from siri.config import Config
from siri.data.problems import Problem
from siri.data.prompts import render_prompts
from siri.errors import InputError
from tests.support.tiny import bpe_tokenizer, save_tiny

PROBLEMS = [Problem("set/0", "what is 3 + 4?", "7")]


def thinking_tokenizer():
    tokenizer = bpe_tokenizer(["what is the answer? </think>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}"
        "{% if enable_thinking is defined and not enable_thinking %} quick{% else %} think{% endif %}{% endif %}"
    )
    return tokenizer


def rendered(**options) -> str:
    tokenizer = thinking_tokenizer()
    ids, _, _ = render_prompts(PROBLEMS, tokenizer, **options)
    return tokenizer.decode(ids[0])


def test_they_reach_the_template():
    assert rendered().endswith("think")
    settings = Config(template_args='{"enable_thinking": false}')
    assert rendered(variables=settings.template_variables()).endswith("quick")
    assert rendered(variables={"enable_thinking": True}).endswith("think")


@pytest.mark.parametrize("name", ["enable_thinkin", "tokenize", "conversation"])
def test_what_the_template_would_ignore_is_refused(name):
    with pytest.raises(InputError, match=f"template_args: '{name}' is no variable of this tokenizer's chat template"):
        rendered(variables={name: False})


def test_a_tokenizer_without_a_template_takes_none():
    tokenizer = bpe_tokenizer(["what is the answer?"])
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template that could take them"):
        render_prompts(PROBLEMS, tokenizer, variables={"enable_thinking": False})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"template_args": "enable_thinking=false"}, "template_args is no JSON"),
        ({"template_args": "[1]"}, "give a JSON object such as"),
        ({"template_args": '{"a": 1}', "template": "plain"}, "but template is plain"),
    ],
)
def test_bad_ones_are_one_line(settings, line):
    with pytest.raises(InputError, match=line):
        Config(**settings)


def test_siri_eval_takes_them_and_no_partial_of_others(tmp_path, capsys):
    model = save_tiny(tmp_path / "model", thinking_tokenizer())
    data = tmp_path / "set.jsonl"
    data.write_text(json.dumps({"problem": "3 + 4?", "answer": "7"}) + "\n")
    command = ["eval", str(model), "--data", str(data), "--cap", "4", "--samples", "2", "--no-think"]
    assert main([*command, "--template-args", '{"enable_thinking": false}', "--out", str(tmp_path / "out.json")]) == 0
    assert main([*command, "--template-args", '{"enable_thinkin": false}']) == 2
    assert "no variable of this tokenizer's chat template" in capsys.readouterr().err
