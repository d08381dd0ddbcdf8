"""Runs that go on from weights alone: an export, another trainer's folder, a checkpoint without its optimizer state."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri.data.content import same_tokenizer
from siri.data.problems import resolve_path
from siri.errors import InputError, first_line
from siri.model.adapters import Adapter
from siri.model.identity import SHAPE, ModelIdentity
from siri.model.policy import trainable_config
from siri.model.weight_files import is_checkpoint, weight_files
from siri.store.about import read_about
from siri.store.checkpoint import OPTIMIZER, read_state, verify
from siri.store.schema import is_count


@dataclass(frozen=True)
class BareWeights:
    """Weights that are taken for those of a run after some of its steps."""

    source: str
    """A folder or a hub name."""
    steps: int
    """Steps that count as done."""
    train_tokens: int
    """Response tokens that were sampled by then; 0 where nobody says."""

    @classmethod
    def of(cls, text: str, model: str) -> "BareWeights":
        """FOLDER@STEP, or FOLDER alone where it says its step itself, as checkpoints and exports do. model: what the
        run trains. InputError where there are no whole weights of that model, or no step."""
        source, step = _parted(text)
        _check_place(source)
        said = _progress(source, f"resume_weights {source}")
        if step is None and "steps_done" not in said:
            raise InputError(
                f"resume_weights {source}: does not say after how many steps it was written; give {source}@STEP"
            )
        steps = said["steps_done"] if step is None else step
        tokens = said.get("train_tokens", 0) if said.get("steps_done") == steps else 0
        _check(source, model)
        return cls(source, steps, tokens)

    @property
    def folder(self) -> Path:
        """Where they lie, or the hub name."""
        return Path(resolve_path(self.source))

    def lineage(self) -> dict[str, Any]:
        """For the config.json of the run that starts here: source, step, tokens by then, and SHA-256 of the files."""
        files = ModelIdentity.of(self.source).files
        return {"weights": self.source, "step": self.steps, "train_tokens": self.train_tokens, "files": files}

    def check(self, known: Any, steps: float) -> None:
        """InputError where these are not the weights that the run began with, or where no step is left of its."""
        if known and known.get("files") != self.lineage()["files"]:
            raise InputError(f"resume_weights {self.source}: other weights than this run began with; restore those")
        if self.steps >= steps:
            raise InputError(
                f"resume_weights {self.source}: {self.steps:,} steps are done, and the run has {steps:,}; raise --steps"
            )

    def note(self, prompts_per_step: int, *, exact: bool) -> str:
        """A line for the user. exact: whether every step draws as many problems as any other."""
        drawn = f"after {self.steps * prompts_per_step:,} problems" + (
            "" if exact else " at least, which may come again"
        )
        return (
            f"weights of {self.source}, taken for those after {self.steps:,} steps: caps, learning rate and data go on "
            f"from there ({drawn}); AdamW's moments are new"
        )


def hint(folder: Path) -> str:
    """What to do about a folder that should be a run's and holds weights instead; "" where it holds none."""
    if not ((folder / "config.json").is_file() and (is_checkpoint(folder) or weight_files(folder, fetch=False))):
        return ""
    if is_checkpoint(folder) and folder.resolve().parent.name == "checkpoints":
        return f"a checkpoint; give its run, --run-dir {folder.resolve().parent.parent}"
    return (
        f"weights, and no run; go on with them at a step, in a new --run-dir, by --resume-weights {folder}@STEP "
        "(AdamW's moments begin anew), or train them from step 0 by --model"
    )


def _parted(text: str) -> tuple[str, int | None]:
    source, _, step = text.rpartition("@")
    if Path(resolve_path(text)).is_dir() or not source:
        return text, None
    if not step.isdecimal() or len(step) > 15:
        raise InputError(f"resume_weights: {text!r} is no FOLDER@STEP, as in exported@640")
    return source, int(step)


def _progress(source: str, where: str) -> dict[str, int]:
    """steps_done and train_tokens, as far as a folder says them."""
    folder = Path(resolve_path(source))
    try:
        held = read_state(folder) if is_checkpoint(folder) else read_about(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({first_line(error)})") from None
    return {key: held[key] for key in ("steps_done", "train_tokens") if is_count(held.get(key))}


def _check_place(source: str) -> None:
    """InputError where `source` is no model folder, checkpoint or hub name."""
    folder, where = Path(resolve_path(source)), f"resume_weights {source}"
    local = folder.is_dir()
    if not local and (folder.is_absolute() or source.startswith((".", "~", "siri:")) or len(folder.parts) != 2):
        raise InputError(f"{where}: no such folder")
    if (folder / "checkpoints").is_dir():
        raise InputError(f"{where}: a run's folder; go on with it by --run-dir {source} --resume, or give a checkpoint")
    if local and (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{where}: holds an adapter alone; merge it into its base (siri export --merge, or PEFT's "
            "merge_and_unload and save_pretrained) and give that folder"
        )
    if local and not (folder / "config.json").is_file():
        raise InputError(f"{where}: no model there, it has no config.json; give a folder with config.json and weights")


def _check(source: str, model: str) -> None:
    """InputError where `source` holds no whole weights that fit `model`."""
    folder, where = Path(resolve_path(source)), f"resume_weights {source}"
    if is_checkpoint(folder) and (fault := verify(folder, without=OPTIMIZER)):
        raise InputError(f"{where}: damaged, {fault}; choose another checkpoint")
    if not weight_files(folder, fetch=True):
        raise InputError(f"{where}: holds no weights, no model.safetensors and none in parts; copy them there")
    adapter = Adapter.read(folder) if is_checkpoint(folder) else None
    base = Path(resolve_path(adapter.base)) if adapter else None  # which says whether the head is tied
    configs = trainable_config(source, fetch=False, checkpoint=base)[0], trainable_config(model, fetch=False)[0]
    for key in SHAPE:
        theirs, ours = (config.to_dict().get(key) for config in configs)
        if theirs != ours:
            raise InputError(
                f"{where}: weights of another model, its {key} is {theirs}, and that of {model} {ours}; give the "
                "--model that they were trained from"
            )
    if not same_tokenizer(source, model):
        raise InputError(
            f"{where}: its tokenizer is not that of {model}, so that its weights know other tokens; give the --model "
            "that they were trained from, or delete its tokenizer's files if they are not its own"
        )
