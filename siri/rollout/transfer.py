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
    """Weights of the last sync in `root`/VERSION: complete or not there. The folder `root` is this run's own: what it
    holds before the first sync was left behind by a process that was killed."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.folder: Path | None = None
        self.sums: Sums = {}
        self.made: list[Path] = []
        """Folders that were not there before, the innermost first."""

    def write(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Write the tensors and their checksums, then drop what the sync before has written."""
        from safetensors.torch import save_file

        if self.folder is None:
            shutil.rmtree(self.root, ignore_errors=True)
            self.made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        unfinished = self.root / f".{version}.part"
        self.sums, files, held, size = {}, [], {}, 0
        try:
            unfinished.mkdir(parents=True)

            def flush() -> None:
                files.append(f"weights-{len(files):05d}.safetensors")
                save_file(held, unfinished / files[-1])
                held.clear()

            for name, tensor in weights:
                held[name] = tensor.cpu().contiguous()
                self.sums[name] = checksum(held[name])
                size += tensor.nbytes
                if size >= FILE_BYTES:
                    flush()
                    size = 0
            if held:
                flush()
            (unfinished / MANIFEST).write_text(json.dumps({"version": version, "files": files, "sums": self.sums}))
            final = self.root / version
            unfinished.rename(final)
        except OSError as error:
            raise InputError(f"{self.root}: weights cannot be written there ({error.strerror or error})") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = final

    def expect(self, weights: Iterator[tuple[str, torch.Tensor]], version: str) -> None:
        """Go through what rank 0 writes: any rank may have to give a restarted server the files, and to check them."""
        self.folder = self.root / version
        self.sums = {name: checksum(tensor) for name, tensor in weights}

    def close(self) -> None:
        """Remove the weights."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.made:
            with suppress(OSError):
                folder.rmdir()
