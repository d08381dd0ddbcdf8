"""What mkdocs does not know of this repository: pages that lie outside docs/, links from pages to files, and pages that
are made of the sources (configuration). mkdocs.yml names it as a hook."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "kernels/README.md": "siri-kernels.md",
    "contrib/README.md": "vendored.md",
    "contrib/trl/README.md": "trl-operator.md",
    "studies/settle/README.md": "settle.md",
    "studies/methods/README.md": "methods-study.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages that are kept where a reader of the repository looks for them, and what they are called on the site."""
SOURCES = "source"
"""folder of the site with the files that pages lead to, as text"""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files, config):
    """Add the pages, the files that any page leads to, and the made ones."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    files.append(File.generated(config, "configuration.md", content=configuration()))
    wanted = set()
    for file in list(files):
        if file.src_uri.endswith(".md"):
            place = origin(file.src_uri)
            for _, target, _ in LINK.findall(text_of(file)):
                path = resolved(place, target)
                if path and not page_of(path) and (ROOT / path).is_file():
                    wanted.add(path)
    for path in sorted(wanted):
        files.append(File.generated(config, site_name(path), content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between files of the repository become links between pages of the site."""
    place = origin(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def moved(match):
        before, target, after = match.groups()
        path = resolved(place, target)
        if path is None:
            return match[0]
        if (ROOT / path).is_dir():  # a folder of the repository is no page
            return match[0].split("](")[0].lstrip("[")
        name = page_of(path) or site_name(path)
        return f"{before}{posixpath.relpath(name, here or '.')}{after}"

    return LINK.sub(moved, markdown)


def origin(src_uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return next((path for path, name in PAGES.items() if name == src_uri), f"docs/{src_uri}")


def resolved(place: str, target: str) -> str | None:
    """The path in the repository that a link from the file `place` leads to; None for the web and for no file."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
    made = path in {"docs/configuration.md"}
    return path if made or (not path.startswith("..") and (ROOT / path).exists()) else None


def page_of(path: str) -> str | None:
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def site_name(path: str) -> str:
    """Pictures keep their name; what is text is shown as text."""
    return f"{SOURCES}/{path}" if path.endswith((".png", ".svg")) else f"{SOURCES}/{path}.txt"


def text_of(file) -> str:
    return file.content_string


def configuration() -> str:
    """The configuration, section by section, from the sources."""
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    from siri.config.config import Config
    from siri.config.help import field_texts
    from siri.config.settings import declared

    texts, parts, section = field_texts(Config), [HEAD], None
    for each in declared(Config):
        if each.section is not section:
            section = each.section
            title = (section.__doc__ or section.__name__).strip().splitlines()[0].rstrip(".")
            parts += ["", f"## {title}", "", "| key | default | what it is |", "|---|---|---|"]
        text = texts.get(each.name, "").replace("|", "\\|")
        free = " *May change when a run continues.*" if each.meaning.free else ""
        rule = f" ({each.meaning.rule()})" if each.meaning.rule() else ""
        parts.append(f"| `{each.name}` | `{each.default!r}` | {text}{rule}{free} |")
    return "\n".join(parts) + "\n"


HEAD = """# Configuration

Every key of a recipe, by section. In a TOML file it stands as it does here, on the command line with dashes: `l_max` is
`--l-max`. `siri train RECIPE --help` shows the same with the recipe's values. This page is made from the sources.
"""
