"""The rooms of siri_kernels: whoever imports whom, also inside a function, there is no way back."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import siri_kernels

PACKAGE = Path(siri_kernels.__file__).parent
FILES = {
    ".".join(("siri_kernels", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at its top or inside a function."""
    return {
        module: {
            name if (name := f"{node.module}.{alias.name}") in FILES else node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "siri_kernels"
            for alias in node.names
        }
        for module, path in FILES.items()
    }


def room(module: str) -> str:
    """Its folder; a module beside the folders is a room by itself."""
    folder, _, _ = module.rpartition(".")
    return module if folder in ("", "siri_kernels") else folder


def test_modules_import_one_another_in_no_circle():
    order = list(TopologicalSorter(imports()).static_order())
    assert len(order) == len(FILES) >= 30


def test_rooms_import_one_another_in_no_circle():
    rooms: dict[str, set[str]] = {}
    for module, others in imports().items():
        rooms.setdefault(room(module), set()).update({room(other) for other in others} - {room(module)})
    assert {"siri_kernels.ops", "siri_kernels.loss", "siri_kernels.rows", "siri_kernels.rows.anchored"} <= rooms.keys()
    list(TopologicalSorter(rooms).static_order())  # a CycleError names a circle


def test_the_floors():
    """The specification and the checks stand on nothing that computes, and nobody imports the adapters."""
    graph = imports()
    assert graph["siri_kernels.validation"] == set()
    assert graph["siri_kernels.reference"] == {f"siri_kernels.{name}" for name in ("defaults", "metrics", "validation")}
    for module, others in graph.items():
        assert "integrations" in module or not any("integrations" in other for other in others), module
