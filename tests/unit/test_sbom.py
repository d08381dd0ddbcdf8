"""`make sbom`: a bill of materials and a table of licences of what is installed."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "sbom.py"


def test_it_lists_every_package_with_its_licence(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "out"], capture_output=True, text=True, check=True)
    bill = json.loads((tmp_path / "out" / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["name"]: component for component in bill["components"]}
    assert len(components) == len(bill["components"]) and f"{len(components)} packages" in done.stdout
    assert len({component["bom-ref"] for component in components.values()}) == len(components)
    for name in ("torch", "transformers", "tyro", "pytest"):
        assert components[name]["version"] == version(name) and components[name]["licenses"]
        assert components[name]["purl"] == f"pkg:pypi/{name}@{version(name)}"
        assert len(components[name]["properties"][0]["value"]) == 64
    table = (tmp_path / "out" / "licences.md").read_text()
    assert table.count("\n| ") - 1 == len(components) and f"| torch | {version('torch')} | " in table
    assert all("licenses" in component or f"{name} | " in table for name, component in components.items())
