"""The rooms of siri: whoever imports whom, also inside a function, there is no way back, some rooms are kept, and no
module takes another's private names."""

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import siri_kernels

import siri

PACKAGE = Path(siri.__file__).parent
FILES = {
    ".".join(("siri", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
OURS = ("siri", "siri_kernels")
KNOWN_BY = {"commands": {"cli"}, "study": {"commands"}, "report": {"commands", "study"}}
"""Rooms that only these others know."""
KNOWS = {
    "schedule": {"errors"},
    "advantages": set(),
    "errors": {"text"},
    "text": set(),
    "sources": {"errors"},
    "config": {"errors", "schedule", "sources"},
    "packing": {"errors"},
    "runtime": {"errors"},
}
"""Rooms on the ground: what they know."""
MOST_ROOMS, MOST_FLOORS = 30, 10


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at its top or inside a function."""
    graph = {}
    for module, path in FILES.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "siri":
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                named |= {name if name in FILES else node.module for name in full}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names if alias.name in FILES}
        graph[module] = named - {module}
    return graph


def private_names(path: Path) -> set[str]:
    """Names with an underscore that a file takes from another module of ours, by import or as an attribute of one."""
    taken, modules = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            modules |= {alias.asname or alias.name for alias in node.names}
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            taken |= {name for name in names if name.startswith("_") and not name.startswith("__")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            taken |= {node.attr} if node.attr.startswith("_") and not node.attr.startswith("__") else set()
    return taken


def room(module: str) -> str:
    """Its folder; a module beside the folders is a room by itself."""
    return module.split(".")[1] if "." in module else module


def rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, names in imports().items():
        if module == "siri.__main__":  # the door
            continue
        graph.setdefault(room(module), set()).update({room(name) for name in names} - {room(module)})
    return graph


def test_modules_import_one_another_in_no_circle():
    order = list(TopologicalSorter(imports()).static_order())
    assert len(order) == len(FILES) > 100


def test_rooms_import_one_another_in_no_circle_and_stand_on_few_floors():
    graph = rooms()
    floors: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        floors[name] = 1 + max((floors[other] for other in graph[name]), default=0)
    assert len(graph) <= MOST_ROOMS and max(floors.values()) <= MOST_FLOORS, floors


def test_rooms_on_the_ground_know_nobody_above():
    graph = rooms()
    assert {name: graph[name] - known for name, known in KNOWS.items() if graph[name] - known} == {}


def test_what_is_kept_is_known_by_few():
    graph = rooms()
    for name, known_by in KNOWN_BY.items():
        assert {other for other, names in graph.items() if name in names} <= known_by, name


def test_no_module_takes_a_private_name_of_another():
    paths = [*FILES.values(), *Path(siri_kernels.__file__).parent.rglob("*.py")]
    assert {str(path): names for path in paths if (names := private_names(path))} == {}


def test_private_names_are_seen(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("from siri import store, __version__\nfrom siri.store._x import _y\nstore._z, self._a, os._exit")
    assert private_names(path) == {"_x", "_y", "_z"}


def test_a_wheel_holds_every_file_that_is_read():
    """Recipes, templates, the demo's assets: setuptools takes only what pyproject.toml names."""
    root = PACKAGE.parent
    named = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["siri"]
    packed = {path for pattern in named for path in PACKAGE.glob(pattern)}
    held = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held - packed - set(FILES.values()) == set()


def test_every_command_of_the_table_is_there():
    """`cli` names the modules of the commands as text, so that help is instant: each of them is there."""
    from siri.cli import COMMANDS

    assert {command.module for command in COMMANDS.values()} <= FILES.keys()
