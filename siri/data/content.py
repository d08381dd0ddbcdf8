"""A data set known by its content, so that a run that continues knows what became of the problems it was drawn from."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from siri.data.places import resolve_path
from siri.data.prompts import DIGEST, PromptSet, digest
from siri.data.repeated import Repeated
from siri.data.sampler import Sampler
from siri.errors import InputError, parse_json

Weights = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Content:
    """What a run was drawn from."""

    source: str
    rows: tuple[bytes, ...]
    """A digest of each problem: the token ids of its prompt and its answer."""
    tokenizer: str
    """SHA-256 of the vocabulary and the special tokens."""
    template: str
    """SHA-256 of the chat template."""
    pipeline: str = ""
    """VERSION:SHA-256 of all else that makes text tokens and tokens text, as that version of tokenizers writes it."""
    held_out: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the problems of each evaluation."""
    weights: Weights = ()
    """(problems, weight) of each source, where they are not drawn alike."""

    @classmethod
    def of(
        cls, source: str, prompts: PromptSet, tokenizer: Any, held_out: Mapping[str, PromptSet] | None = None
    ) -> "Content":
        special = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")]
        words = json.dumps([sorted(tokenizer.get_vocab().items()), special])
        template = json.dumps(getattr(tokenizer, "chat_template", None))
        measured = {
            name: hashlib.sha256(b"".join(digests(each))).hexdigest() for name, each in (held_out or {}).items()
        }
        known = (_sha256(words), _sha256(template), _pipeline(tokenizer))
        return cls(source, tuple(digests(prompts)), *known, measured, prompts.weights())

    @classmethod
    def read(cls, path: Path) -> "Content | None":
        """What `written` wrote; None where there is no such file, as in the folders of older releases."""
        try:
            held = parse_json(path.read_bytes())
            rows = bytes.fromhex(held["rows"])
            if len(rows) != held["problems"] * DIGEST or hashlib.sha256(rows).hexdigest() != held["sha256"]:
                raise ValueError("its rows are not whole")
            once: dict[bytes, bytes] = {}
            cut = tuple(
                once.setdefault(row, row)
                for row in (rows[start : start + DIGEST] for start in range(0, len(rows), DIGEST))
            )
            measured = {str(name): str(digest) for name, digest in dict(held.get("held_out", {})).items()}
            source, tokenizer, template = (str(held[key]) for key in ("source", "tokenizer", "template"))
            weights = tuple((int(problems), float(weight)) for problems, weight in held.get("weights", ()))
            return cls(source, cut, tokenizer, template, str(held.get("pipeline", "")), measured, weights)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"{path}: cannot be read ({reason}); restore it, or delete it if the data is the same"
            ) from None

    def written(self) -> bytes:
        """JSON: source, problems, and the digests, each and of all."""
        rows = b"".join(self.rows)
        row = {"source": self.source, "problems": len(self.rows), "sha256": hashlib.sha256(rows).hexdigest()}
        row |= {"tokenizer": self.tokenizer, "template": self.template, "pipeline": self.pipeline}
        row |= {"weights": self.weights} if self.weights else {}
        row |= {"held_out": self.held_out, "rows": rows.hex()}
        return json.dumps(row, indent=1).encode()


def digests(prompts: PromptSet) -> Repeated[bytes]:
    """What each problem is known by (`digest`)."""
    return prompts.pairs().mapped(lambda pair: digest(*pair))


def continue_sampler(
    state: dict[str, Any] | None, now: Content, before: Content | None, *, seed: int, accept: bool
) -> tuple[Sampler, list[str]]:
    """The sampler of a run that continues at `state` (None: one that begins), and lines about its data.

    `before` is what the run was drawn from, None where that is not known. What is harmless goes on: the same problems
    in another place, problems added at the end (drawn from the next epoch on), and others in the place of some that
    were not drawn yet. Anything else is an InputError, unless `accept`.
    """
    size = len(now.rows)
    if before is None:
        begun = Sampler(size, seed, weights=now.weights) if state is None else _sampler(now, state, accept)
        return begun, []
    state = state or {"epoch": 0, "cursor": 0, "seed": seed}  # nothing is drawn yet
    state = {"size": len(before.rows), **state}
    notes = []
    if before.rows == now.rows and before.source != now.source:
        notes.append(f"data: {now.source} holds the same {size:,} problems as {before.source}")
    if before.template != now.template and before.rows == now.rows:
        notes.append("data: the chat template changed, but renders every prompt as before")
    if fault := _fault(state, now, before):
        if not accept:
            raise InputError(f"{fault}; restore what the run began with, or go on with --data-changed accept")
        notes.append(f"{fault}; accepted")
    elif len(now.rows) > len(before.rows):
        added = len(now.rows) - len(before.rows)
        notes.append(f"data: {added:,} problems were added to {now.source}; they are drawn from the next epoch on")
    elif changed := sum(row != row_now for row, row_now in zip(before.rows, now.rows, strict=True)):
        notes.append(f"data: {changed:,} problems of {now.source} changed before they were drawn")
    sampler = _sampler(now, state, accept=True, changed=bool(fault and (now.weights or before.weights)))
    if sampler.epoch > state["epoch"]:
        notes.append(f"data: epoch {sampler.epoch} begins, because the one in progress had {state['size']:,} problems")
    return sampler, notes


def _sampler(now: Content, state: dict[str, Any], accept: bool, *, changed: bool = False) -> Sampler:
    size = len(now.rows)
    if accept and (changed or (max(state.get("size", size), state["cursor"] + 1) > size and not now.weights)):
        return Sampler(size, state["seed"], state["epoch"] + 1, weights=now.weights)
    return Sampler(size, **state, weights=now.weights)


def _fault(state: dict[str, Any], now: Content, before: Content) -> str:
    """What keeps a run from going on with its data; empty where nothing does."""
    version, _, digest = now.pipeline.partition(":")
    known, _, other = before.pipeline.partition(":")
    if before.tokenizer != now.tokenizer or (version == known and digest != other):
        return "data: the tokenizer is not the one that the run began with"
    changed = [name for name, digest in now.held_out.items() if before.held_out.get(name, digest) != digest]
    if changed:
        return f"data: {changed[0]} holds other problems than were evaluated on so far"
    if before.weights != now.weights and (before.rows == now.rows or now.weights):
        return f"data: the sources of {now.source} have other weights or sizes than the run began with"
    kept = len(before.rows)
    changed = [i for i, (row, row_now) in enumerate(zip(before.rows, now.rows, strict=False)) if row != row_now]
    if len(now.rows) >= kept and not changed:
        return ""
    if before.template != now.template:
        return (
            "data: the chat template is not the one that the run began with, and renders prompts otherwise "
            f"({len(changed):,} of {now.source})"
        )
    if len(now.rows) == kept >= state["size"] and not Sampler(kept, **state).drawn().intersection(changed):
        return ""
    old, new = Counter(before.rows), Counter(now.rows)
    removed, added = (old - new).total(), (new - old).total()
    if not removed and not added:
        return f"data: {now.source} holds the problems that the run was drawn from in another order"
    return (
        f"data: {now.source} is not what the run was drawn from: of {kept:,} problems {removed:,} are gone or changed, "
        f"and {added:,} are new"
    )


def same_tokenizer(source: str, model: str) -> bool:
    """Whether a folder or a model of the hub has the words, and the end of a response, of another; a folder without a
    tokenizer has nothing that would differ. InputError where the source has one that cannot be read."""
    from transformers import AutoTokenizer

    words = []
    for name in (source, model):
        try:
            tokenizer = AutoTokenizer.from_pretrained(resolve_path(name), trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its parsers raise; of the model `load_policy` says it
            if name == source and any(Path(resolve_path(name)).glob("tokenizer*")):
                raise InputError(
                    f"{name}: its tokenizer cannot be read ({type(error).__name__}); give a folder with a whole one "
                    "or without any"
                ) from None
            return True
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            return True  # made up, where there is none
        words.append((tokenizer.get_vocab(), tokenizer.eos_token_id))
    return words[0] == words[1]


def _pipeline(tokenizer: Any) -> str:
    """What `Content.pipeline` holds; "" of a tokenizer that is not of the library tokenizers."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return ""
    # how a batch was padded and cut last is no part of it
    parts = json.loads(inner.to_str()) | {"truncation": None, "padding": None}
    spaces = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    return f"{version('tokenizers')}:{_sha256(json.dumps([parts, spaces], sort_keys=True))}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
