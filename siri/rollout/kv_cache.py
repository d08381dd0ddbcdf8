"""The key-value cache of the embedded engine: room for a whole response at once, so that a token copies no past.

transformers' dynamic cache joins the past and the new token at every step, which on a CPU and a small model costs more
than the attention over them.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class _Reserved(DynamicLayer):
    """Keys and values [B, K, L, head size] as views of buffers with room for more tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.rooms: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:  # the prompts, which are about to be shared out to the rows
            self.device, self.keys, self.values = key_states.device, key_states, value_states
            self.is_initialized = True
            return key_states, value_states
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.rooms or end > self.rooms[0].shape[-2]:
            self._move(lambda past: past, max(end, self.tokens))
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; one may come several times."""
        self._move(lambda past: past.index_select(0, indices), max(self.get_seq_length(), self.tokens))

    def _move(self, rows: Any, tokens: int) -> None:
        """Let `rows` of the past be the first part of new buffers with room for so many tokens."""
        pasts, self.rooms = [rows(past) for past in (self.keys, self.values)], []
        for past in pasts:
            self.rooms.append(past.new_empty(*past.shape[:2], tokens, past.shape[3]))
            self.rooms[-1][:, :, : past.shape[2]] = past
        self.keys, self.values = (room[:, :, : pasts[0].shape[2]] for room in self.rooms)


def reserved_cache(layers: int, tokens: int) -> Cache:
    """A cache for a model of so many layers, each row with room for so many tokens."""
    return Cache(layers=[_Reserved(tokens) for _ in range(layers)])
