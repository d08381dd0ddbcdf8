"""Write what an installation is made of (`make sbom`): sbom.json (CycloneDX 1.6) and licences.md, one row a package.

Run it with the Python whose packages are listed. Names, versions and licences are those that the packages themselves
state; a package that states no licence is listed as "not stated". The property "sha256 of RECORD" is the hash of the
file that holds the SHA-256 of each of the package's files.
"""

import hashlib
import json
import re
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

UNSTATED = "not stated"


def main(folder: Path) -> int:
    by_name = {canonical(each.metadata["Name"]): each for each in distributions() if each.metadata["Name"]}
    packages = [by_name[name] for name in sorted(by_name)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sbom.json").write_text(json.dumps(sbom(packages), indent=1) + "\n")
    rows = [f"| {each.metadata['Name']} | {each.version} | {licence(each)} |" for each in packages]
    table = ["# Licences of what is installed", "", "| package | version | licence |", "|---|---|---|", *rows, ""]
    (folder / "licences.md").write_text("\n".join(table))
    unstated = [each.metadata["Name"] for each in packages if licence(each) == UNSTATED]
    print(f"{folder}/sbom.json, {folder}/licences.md: {len(packages)} packages", end="")
    print(f"; no licence stated by {', '.join(unstated)}" if unstated else "")
    return 0


def canonical(name: str) -> str:
    """A package's name as an index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """Its SPDX expression, or else its classifiers, or else the first line of its field License."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [line for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    if names := [line.rpartition(" :: ")[2] for line in classifiers if line != "License :: OSI Approved"]:
        return ", ".join(names)
    lines = (about.get("License") or "").strip().splitlines()
    return lines[0].strip()[:80].replace("|", "/") if lines and lines[0].strip() else UNSTATED


def sbom(packages: list[Distribution]) -> dict:
    """A bill of materials in the format CycloneDX 1.6."""
    components = []
    for package in packages:
        name, version = canonical(package.metadata["Name"]), package.version
        component = {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
        }
        if (stated := licence(package)) != UNSTATED:
            spdx = package.metadata.get("License-Expression")
            component["licenses"] = [{"expression": spdx} if spdx else {"license": {"name": stated}}]
        if record := package.read_text("RECORD"):
            digest = hashlib.sha256(record.encode()).hexdigest()
            component["properties"] = [{"name": "sha256 of RECORD", "value": digest}]
        components.append(component)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "application", "name": "siri", "bom-ref": "siri"},
        },
        "components": components,
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build")))
