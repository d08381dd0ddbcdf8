"""The embedded engine: batched sampling with a key-value cache, in the process that trains (CPU or GPU)."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from siri.config.sections import RolloutSettings
from siri.errors import InputError
from siri.model.fsdp import full
from siri.model.policy import Policy, allocate, hollow_copy
from siri.planning.formulas import embedded_cache_tokens
from siri.rollout import Completion, NotFinite, Progress, Request

SHRINK_AT = 0.75
"""Finished rows leave the batch once only so large a share still runs; dropping each at once would copy the cache at
every token."""


class LocalRollout:
    """Implements `siri.rollout.Rollout`, on the very model that is trained or, where that is sharded, on a copy."""

    independent = True

    def __init__(self, policy: Policy, *, cache_tokens: int, trained: Any = None) -> None:
        """cache_tokens: room for keys and values; as many rows run at once as fit with their prompt and cap.
        trained: the sharded model whose weights `sync` copies into `policy`; None when policy's own is trained."""
        self.policy = policy
        self.cache_name = cache_name(policy.model.model)
        self.cache_tokens = cache_tokens
        self.trained = trained
        self.notes: list[str] = []

    def generate(
        self, requests: Sequence[Request], *, temperature: float, seed: int, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """See `Rollout.generate`. temperature 0 is greedy, with log-probabilities at temperature 1."""
        generator = torch.Generator(self.policy.device).manual_seed(seed)
        rows = [index for index, request in enumerate(requests) for _ in range(request.n)]
        done: list[Completion] = []
        was_training = self.policy.model.training
        self.policy.model.eval()
        try:
            while len(done) < len(rows):
                wave = self._wave(requests, rows[len(done) :])
                done += self._sample(requests, wave, temperature, generator, progress)
        finally:
            self.policy.model.train(was_training)
        answers: list[list[Completion]] = [[] for _ in requests]
        for index, completion in zip(rows, done, strict=True):
            answers[index].append(completion)
        return answers

    def expected(self, prompts: Sequence[Sequence[int]], cap: int) -> list[float] | None:
        return None

    @torch.no_grad()
    def sync(self) -> None:
        if self.trained is not None:
            own = dict(self.policy.model.named_parameters())
            for name, theirs in self.trained.named_parameters():
                own.pop(name).copy_(full(theirs))
            assert not own, f"never trained: {', '.join(own)}"

    def sleep(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass

    def _wave(self, requests: Sequence[Request], rows: list[int]) -> list[int]:
        """As many of the waiting rows as the cache holds, one at least."""
        wave, width = [], 0
        for index in rows:
            width = max(width, len(requests[index].prompt_ids) + requests[index].max_tokens)
            if wave and width * (len(wave) + 1) > self.cache_tokens:
                break
            wave.append(index)
        return wave

    @torch.no_grad()
    def _sample(
        self,
        requests: Sequence[Request],
        wave: list[int],
        temperature: float,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> list[Completion]:
        device = self.policy.device
        prompts = sorted(set(wave))
        place = torch.tensor([prompts.index(index) for index in wave], device=device)
        logits, cache, seen, position = self._prefill([requests[index].prompt_ids for index in prompts])
        # every prompt runs once, then its keys and values are shared out to the rows that answer it
        cache.batch_select_indices(place)
        logits_BV, seen_BL, position_B = logits[place], seen[place], position[place]
        caps_B = torch.tensor([requests[index].max_tokens for index in wave], device=device)
        longest = int(caps_B.max())
        tokens = torch.zeros(len(wave), longest, dtype=torch.int64, device=device)
        logps = torch.zeros(len(wave), longest, device=device)
        lengths = torch.zeros(len(wave), dtype=torch.int64, device=device)
        stopped = torch.zeros(len(wave), dtype=torch.bool, device=device)
        stop_ids = torch.tensor(sorted(self.policy.stop_ids), device=device)
        rows_B = torch.arange(len(wave), device=device)  # rows of the wave that are in the batch
        running_B = torch.ones(len(wave), dtype=torch.bool, device=device)

        for step in range(longest):
            token_B, logp_B = _draw(logits_BV, temperature, generator)
            here = rows_B[running_B]
            tokens[here, step], logps[here, step] = token_B[running_B], logp_B[running_B]
            lengths[here] = step + 1
            ended_B = torch.isin(token_B, stop_ids)
            stopped[here] = ended_B[running_B]
            was_running = int(here.numel())
            running_B = running_B & ~ended_B & (caps_B[rows_B] > step + 1)
            still_running = int(running_B.sum())
            if progress and still_running < was_running:
                progress(was_running - still_running)
            if not still_running:
                break
            if still_running <= SHRINK_AT * running_B.numel():
                keep = running_B.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows_B, token_B, seen_BL, position_B = rows_B[keep], token_B[keep], seen_BL[keep], position_B[keep]
                running_B = running_B[keep]
            seen_BL = torch.cat([seen_BL, seen_BL.new_ones(len(rows_B), 1)], dim=1)
            position_B = position_B + 1
            logits_BV = self._forward(token_B[:, None], seen_BL, position_B[:, None], cache)
        return [
            Completion(tokens[row, :length].tolist(), logps[row, :length].tolist(), not stop)
            for row, (length, stop) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True))
        ]

    def _prefill(self, prompts: list[list[int]]):
        """Left-padded prompts -> (logits of the last token, cache, attention mask, last position) of each."""
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids_BL = torch.zeros(len(prompts), width, dtype=torch.int64)
        seen_BL = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids_BL[row, width - len(prompt) :] = torch.tensor(prompt)
            seen_BL[row, width - len(prompt) :] = 1
        device = self.policy.device
        ids_BL, seen_BL = ids_BL.to(device), seen_BL.to(device)
        position_BL = (seen_BL.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.policy.model.config)
        logits_BV = self._forward(ids_BL, seen_BL, position_BL, cache)
        return logits_BV, cache, seen_BL, position_BL[:, -1]

    def _forward(self, ids_BL, seen_BL, position_BL, cache) -> torch.Tensor:
        model = self.policy.model
        with torch.autocast("cuda", torch.bfloat16, enabled=ids_BL.is_cuda):
            hidden_BLD = model.model(
                input_ids=ids_BL,
                attention_mask=seen_BL,
                position_ids=position_BL,
                use_cache=True,
                **{self.cache_name: cache},
            ).last_hidden_state
            return model.lm_head(hidden_BLD[:, -1]).float()


def cache_name(model: Any) -> str:
    """What a base model of transformers calls the key-value cache that it is given: `cache` since 5.24. InputError when
    it is neither name: the model would swallow an argument that it does not know, and sample without a past."""
    taken = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in taken:
            return name
    raise InputError(
        f"{type(model).__name__} of this version of transformers takes no key-value cache that siri knows "
        f"({', '.join(taken)}); install another version of transformers, or use --rollout vllm"
    )


def _draw(logits_BV: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row and its log-probability under the distribution it was drawn from."""
    logp_BV = torch.log_softmax(logits_BV / (temperature or 1.0), dim=-1)
    try:
        token_B1 = torch.multinomial(logp_BV.exp(), 1, generator=generator) if temperature else logp_BV.argmax(-1, True)
    except RuntimeError:
        if bool(logp_BV.isnan().any()):  # a weight that is not finite spreads to every logit of a row
            raise NotFinite from None
        raise
    return token_B1[:, 0], logp_BV.gather(1, token_B1)[:, 0]


def local_engine(settings: RolloutSettings, policy: Policy, *, copy: bool = False) -> LocalRollout:
    """The embedded engine with the settings of a Config or of `siri eval`; `copy` gives it weights of its own, because
    the policy's are sharded."""
    sampled, trained, workload = policy, None, settings.workload()
    if copy:
        sampled, trained = hollow_copy(policy), policy.model
        if policy.device.type == "cuda":
            sampled.model.to(torch.bfloat16)
        allocate(sampled.model, policy.device)
    cache_tokens = settings.rollout_tokens
    if cache_tokens == "auto":
        cache_tokens = _cache_tokens(sampled, trained, workload.offload)
    return LocalRollout(sampled, cache_tokens=cache_tokens, trained=trained)


def _cache_tokens(own: Policy, trained: Any, offload: bool) -> int:
    """Keys and values that the memory plan has room for, in what the GPU has free; a quarter of a GiB on a CPU."""
    c, device = own.model.config, own.device
    if device.type != "cuda":
        return embedded_cache_tokens(c, memory=2**29, held=0, reserve=0, itemsize=4)
    memory = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return embedded_cache_tokens(c, memory=memory, held=held_bytes(own.model, trained, offload))


def held_bytes(own: Any, trained: Any, offload: bool) -> int:
    """What a GPU holds while the engine samples: its weights, and the trained shards with their moments, which may not
    have been made yet. offload: the moments live in host memory. trained: None for an engine without a trainer."""
    shards = [] if trained is None else trained.parameters()
    local = sum(one.to_local().nbytes if hasattr(one, "to_local") else one.nbytes for one in shards)
    return sum(parameter.nbytes for parameter in own.parameters()) + (1 if offload else 3) * local
