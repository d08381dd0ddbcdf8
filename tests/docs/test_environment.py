"""docs/environment.md names every variable that is read, and the exit codes are those of the program."""

import re
from pathlib import Path

import yaml

from siri import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text()
READ = r"""(?:environ(?:\.get|\.setdefault|\.pop)?|environment\.get|getenv)[\(\[]\s*["']([A-Z][A-Z0-9_]+)["']"""
INDIRECT = {
    "SIRI_ROLLOUT_SECRET",
    "SIRI_ROLLOUT_SECRET_FILE",
    "PYTHONSAFEPATH",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MASTER_ADDR",
    "MASTER_PORT",
}
"""read through a constant or a loop"""


def told() -> set[str]:
    table = PAGE.split("## Environment variables")[1].split("## Completion")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in firsts for name in re.findall(r"`([A-Z_0-9]+)`", cell)}


def test_every_variable_that_is_read_is_told():
    sources = [*ROOT.glob("siri/**/*.py"), *ROOT.glob("kernels/siri_kernels/**/*.py")]
    read = {name for path in sources for name in re.findall(READ, path.read_text())}
    assert {"SIRI_KERNELS_DEBUG", "SIRI_KERNELS_PLAN", "WANDB_PROJECT", "RANK"} <= read
    scripts = "".join(path.read_text() for path in (ROOT / "launch").iterdir())
    read |= set(re.findall(r"\$\{([A-Z_]+):[-?]", scripts))
    assert read | INDIRECT <= told(), read | INDIRECT - told()


def test_every_variable_that_is_told_is_somewhere_in_the_sources():
    text = "".join(path.read_text() for folder in ("siri", "kernels", "launch") for path in (ROOT / folder).rglob("*")
                   if path.suffix in (".py", ".sh", ".sbatch"))  # fmt: skip
    elsewhere = {"HF_HOME", "HF_HUB_OFFLINE"}  # of Hugging Face's libraries; the Dockerfile sets it
    assert {name for name in told() - elsewhere if name not in text} == set()


def test_exit_codes_are_those_of_main():
    codes = set(re.findall(r"\b(\d+)\b(?: done| bad input| stopped| and)", cli.main.__doc__)) | {"141"}
    table = PAGE.split("## Environment variables")[0]
    assert codes == {"0", "2", "75", "130", "141"} and codes <= set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE))


def test_the_forms_ask_for_what_is_needed_and_send_nobody_public_with_a_vulnerability():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.keys() == {"config", "fault", "figure", "wish"} and forms["config"]["blank_issues_enabled"] is False
    for name in forms.keys() - {"config"}:
        assert {"name", "description", "body"} <= forms[name].keys()
        ids = [part["id"] for part in forms[name]["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids)) and any(
            part.get("validations", {}).get("required") for part in forms[name]["body"]
        )
    assert "SECURITY.md" in forms["fault"]["body"][0]["attributes"]["value"]


def test_the_image_copies_what_is_there_and_calls_what_exists():
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert copied and [path for path in copied if not (ROOT / path).exists()] == []
    assert {"pyproject.toml", "LICENSE", "README.md", "siri", "kernels"} <= set(copied)
    extras = re.search(r"ARG EXTRAS=(\S+)", text)[1].split(",")
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
