"""The completion of shells: every command and option, in scripts that the shells take."""

import shutil
import subprocess

import pytest

from siri.cli import COMMANDS, main
from siri.commands import completion
from siri.config.recipe import recipe_names


@pytest.fixture(scope="module")
def words():
    return completion.words_of_commands()


def test_every_command_is_there_with_its_options(words):
    assert words.keys() == {name.split()[0] for name in COMMANDS}
    assert {"--run-dir", "--resume", "--l-max", "--help", *recipe_names()} <= set(words["train"])
    assert {"calibrate", "--compare", "--plot"} <= set(words["bench"]) and "--paper" in words["report"]
    assert "--shell" not in words["completion"]


def complete(tmp_path, *line: str) -> set[str]:
    """What bash would offer for the last word."""
    (tmp_path / "siri.bash").write_text(completion.script("bash"))
    array = " ".join(f"'{word}'" for word in line)
    script = f"source siri.bash; COMP_WORDS=({array}); COMP_CWORD={len(line) - 1}; _siri; "
    script += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path):
    (tmp_path / "mine.toml").write_text("")
    assert complete(tmp_path, "siri", "re") == {"report", "replay"}
    assert complete(tmp_path, "siri", "train", "siri-") == {"siri-1.5b", "siri-7b"}
    assert "--run-dir" in complete(tmp_path, "siri", "train", "demo", "--ru")
    assert "mine.toml" in complete(tmp_path, "siri", "train", "mi")


def test_zsh_and_fish_have_scripts_and_other_shells_a_line(capsys):
    assert completion.script("zsh").startswith("#compdef siri\n")
    fish = completion.script("fish")
    assert "-a doctor" in fish and "__fish_seen_subcommand_from train' -l run-dir" in fish
    assert main(["completion", "tcsh"]) == 2 and "bash, zsh, fish" in capsys.readouterr().err
    assert main(["completion"]) == 2 and "a shell" in capsys.readouterr().err
