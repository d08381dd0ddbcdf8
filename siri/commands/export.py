"""`siri export CHECKPOINT FOLDER`: a model folder for transformers and vLLM."""

from dataclasses import dataclass
from pathlib import Path

from siri.config.settings import setting
from siri.text import say


@dataclass(frozen=True)
class ExportOptions:
    checkpoint: str = setting("", positional=True)
    """A checkpoint folder, a name link such as checkpoints/siri-low-1, or a run folder (its newest checkpoint)."""
    folder: str = setting("", positional=True)
    """The folder to write."""


def run_export(options: ExportOptions) -> int:
    from siri.store.checkpoint import export

    say(export(Path(options.checkpoint), Path(options.folder), tell=say))
    return 0
