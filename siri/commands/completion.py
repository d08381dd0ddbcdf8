"""`siri completion SHELL`: a script that completes commands, recipes, options and files.

    siri completion bash > ~/.local/share/bash-completion/completions/siri
    siri completion zsh > ~/.zfunc/_siri            # with fpath+=~/.zfunc before compinit
    siri completion fish > ~/.config/fish/completions/siri.fish

The words are written into the script, so that pressing the key starts no Python; make it anew after an update.
"""

from dataclasses import dataclass

from siri.cli import COMMANDS
from siri.config.recipe import recipe_names
from siri.config.settings import declared, setting
from siri.errors import InputError

BASH = """\
# made by siri completion {shell}
_siri() {{
    local here=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version"
    else
        case $command in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$here") $(compgen -f -- "$here"))
}}
complete -o filenames -F _siri siri
"""
ZSH = "#compdef siri\nautoload -Uz bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class CompletionOptions:
    shell: str = setting("", positional=True)
    """bash, zsh or fish."""


def run_completion(options: CompletionOptions) -> int:
    print(script(options.shell), end="")
    return 0


def script(shell: str) -> str:
    """The script for a shell; InputError for another."""
    if shell == "fish":
        return fish()
    if shell not in ("bash", "zsh"):
        raise InputError(f"no completion for {shell!r}: bash, zsh, fish")
    cases = "\n".join(f'        {name}) words="{" ".join(words)}" ;;' for name, words in words_of_commands().items())
    text = BASH.format(shell=shell, commands=" ".join(words_of_commands()), cases=cases)
    return ZSH + text if shell == "zsh" else text


def words_of_commands() -> dict[str, list[str]]:
    """What may follow each command: its options, the recipes where it takes one, and what it is refined with."""
    words: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        first, *second = name.split()
        options, _ = command.load()
        choices = words.setdefault(first, [])
        choices += second
        choices += [f"--{each.name.replace('_', '-')}" for each in declared(options) if not each.meaning.positional]
        choices += recipe_names() if command.arguments == "RECIPE" else []
    return {name: sorted({*choices, "--help"}) for name, choices in words.items()}


def fish() -> str:
    lines = ["# made by siri completion fish"]
    for name, command in COMMANDS.items():
        if " " not in name:
            lines.append(f"complete -c siri -n __fish_use_subcommand -a {name} -d '{command.summary}'")
    for name, words in words_of_commands().items():
        after = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c siri {after} -l {word[2:]}" for word in words if word.startswith("--")]
        plain = " ".join(word for word in words if not word.startswith("--"))
        lines += [f"complete -c siri {after} -a '{plain}'"] if plain else []
    return "\n".join(lines) + "\n"
