"""The documentation site builds strictly, its links lead somewhere, public names and metrics are on it, and its Python
runs."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import siri_kernels

from siri.cli import COMMANDS
from siri.config.config import Config
from siri.config.settings import declared

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("kernels", "contrib", "contrib/trl")),
]
BLOCK = re.compile(r"(?:^<!-- (run|not run: [^\n]+) -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[dev]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids = [], set()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("href", "src") if values.get(key)]
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = parsed = Links()
        parsed.feed(path.read_text())
    assert len(pages) >= 20
    broken, seen = [], 0
    for path, parsed in pages.items():
        for link in parsed.links:
            if path.name == "404.html" or re.match(r"[a-z]+:|//|#__|data:", link):
                continue
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            seen += 1
            if not file.exists() or (anchor and file in pages and anchor not in pages[file].ids):
                broken.append(f"{path.name}: {link}")
    assert seen > 500 and broken == []


def test_every_public_name_is_documented(site):
    text = (site / "api.html").read_text()
    parsed = Links()
    parsed.feed(text)
    for name in siri_kernels.__all__:
        assert any(each.endswith(f".{name}") for each in parsed.ids), name
    assert "clip_low" in text and "siri.schedule.LengthSchedule" in parsed.ids
    told = "".join(page.read_text() for page in PAGES)
    imported = set(re.findall(r"from (siri\S*) import (\w+)", told)) - {("siri_kernels.integrations", "prime_rl")}
    assert len(imported) >= 5
    for module, name in imported:
        assert f"{module}.{name}" in parsed.ids or name in siri_kernels.__all__, f"{module}.{name}"


def test_every_key_is_on_the_page_of_the_configuration(site):
    text = (site / "configuration.html").read_text()
    assert [each.name for each in declared(Config) if f"<code>{each.name}</code>" not in text] == []


def test_every_metric_of_a_run_is_explained():
    page = (ROOT / "docs" / "run.md").read_text()
    rows = (ROOT / "tests" / "golden" / "run_0.1.0" / "metrics.jsonl").read_text().splitlines()
    keys = set().union(*(json.loads(row) for row in rows))
    assert len(keys) > 30 and {key for key in keys if f"`{key}`" not in page} == set()


def test_python_on_the_pages_runs_or_says_why_not():
    ran = 0
    for page in PAGES:
        for marker, code in BLOCK.findall(page.read_text()):
            assert marker or page == ROOT / "kernels" / "README.md", f"{page.name}: a block is not marked\n{code}"
            if marker == "run":
                exec(compile(code, page.name, "exec"), {"__name__": page.stem})
                ran += 1
    assert ran >= 2


def test_recipes_on_the_pages_are_recipes(tmp_path):
    """Every block of TOML is a recipe of one's own, whose keys and values are taken."""
    from siri.commands.train import TrainOptions
    from siri.config.recipe import resolve

    count = 0
    for page in PAGES:
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            path = tmp_path / f"{page.stem}{count}.toml"
            path.write_text(block)
            resolve(str(path), TrainOptions, ["--run-dir", str(tmp_path)])
            count += 1
    assert count >= 1


def test_messages_that_troubleshooting_explains_are_in_the_sources():
    """What a program says, up to the parts that vary (three dots, N and M)."""
    sources = [*(ROOT / "siri").rglob("*.py"), *(ROOT / "kernels" / "siri_kernels").rglob("*.py")]
    # adjacent literals and f-strings as one text, with what is filled in left out
    text = re.sub(r"\"\s*f?\"|\{[^{}]*\}", "", "".join(path.read_text() for path in sources))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    tables = page.split("| it says |")[1:] + page.split("## The kernels alone")[1:]
    said = [cell for table in tables for cell in re.findall(r"^\| `([^`]+)` \|", table.split("\n## ")[0], re.MULTILINE)]
    assert len(said) >= 10
    for message in said:
        for part in re.split(r"\.\.\.|\b[NM]\b|\[\w\]", message):
            assert part.strip(" ,") in text, message


def test_charts_are_what_the_committed_results_make():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "charts.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}python .ci/charts.py draws them anew"


def test_commands_on_the_pages_exist():
    count = 0
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if command := re.match(r"(?:\S*/)?siri (\w+)", line):
                    assert command[1] in COMMANDS, f"{page.name}: {line}"
                    count += 1
                if target := re.match(r"make ([\w-]+)", line):
                    rules = (ROOT / "Makefile").read_text()
                    assert re.search(rf"^(?:\w+ )*{target[1]}\b.*:", rules, re.MULTILINE), f"{page.name}: {line}"
                if script := re.match(r"(?:launch|bench)/\S+", line):
                    assert (ROOT / script[0]).exists(), f"{page.name}: {line}"
    assert count >= 5


def test_the_site_is_built_where_every_change_is_checked():
    assert "\nstep make docs\n" in (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^docs: \.venv\n\t.*mkdocs build", (ROOT / "Makefile").read_text(), re.MULTILINE)
