"""A reasoner small enough for the repository: its task, its tokenizer, its base model and the script that made them.

No pretrained weights are needed to see the product work on two CPU cores. `assets/` holds the base model and the
data of the recipe `demo`; `python -m siri.demo` makes them again from nothing.
"""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
MODEL = ASSETS / "model"
TRAIN = ASSETS / "train.jsonl"
HELDOUT = ASSETS / "heldout.jsonl"
