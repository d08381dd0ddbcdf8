"""Weights that travel to vLLM servers as safetensors files."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from siri.errors import InputError
from siri.rollout.worker import MANIFEST, Sums, checksum

FILE_BYTES = 2 * 2**30
"""A file is closed once it holds so much, so that the host never holds much more."""


class FileTransfer:
    """Weights of the last sync in `root`/VERSION, and those of the next one beside them: complete or not there. The
    folder `root` is this run's own: what it holds before the first sync was left behind by a process that was
    killed."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.folder: Path | None = None
        self.sums: Sums = {}
        """Of what lies there."""
        self._next: tuple[Path, Sums, bool] | None = None
        """What was written since, and whether here."""
        self.made: list[Path] = []
        """Folders that were not there before, the innermost first."""

    def write(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Write the tensors and their checksums. Until `turn` a server that comes back is given those of before."""
        from safetensors.torch import save_file

        if self.folder is None:
            shutil.rmtree(self.root, ignore_errors=True)
            self.made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        unfinished = self.root / f".{version}.part"
        sums, files, held, size = Sums(), [], {}, 0
        try:
            unfinished.mkdir(parents=True)

            def flush() -> None:
                files.append(f"weights-{len(files):05d}.safetensors")
                save_file(held, unfinished / files[-1])
                held.clear()

            for name, tensor in weights:
                held[name] = tensor.cpu().contiguous()
                sums[name] = checksum(held[name])
                size += tensor.nbytes
                if size >= FILE_BYTES:
                    flush()
                    size = 0
            if held:
                flush()
            (unfinished / MANIFEST).write_text(json.dumps({"version": version, "files": files, "sums": sums}))
            final = self.root / version
            unfinished.rename(final)
        except OSError as error:
            raise InputError(f"{self.root}: weights cannot be written there ({error.strerror or error})") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._drop_next()
        self._next = final, sums, True

    def expect(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Go through what rank 0 writes: any rank may have to give a restarted server the files, and to check them."""
        self._drop_next()
        self._next = self.root / version, {name: checksum(tensor) for name, tensor in weights}, False

    def turn(self) -> None:
        """What was written last is what servers take from now on; what was before is dropped. While nothing is given to
        any server."""
        if self._next is None:
            return
        before = self.folder
        self.folder, self.sums, here = self._next
        self._next = None
        if before and here:
            shutil.rmtree(before, ignore_errors=True)

    def _drop_next(self) -> None:
        """What was written and never given: a sync that was stopped in between."""
        if self._next and self._next[2]:
            shutil.rmtree(self._next[0], ignore_errors=True)
        self._next = None

    def close(self) -> None:
        """Remove the weights."""
        self._drop_next()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.made:
            with suppress(OSError):
                folder.rmdir()
