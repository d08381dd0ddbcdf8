"""The embedded engine: batched sampling with a key-value cache, in the process that trains (CPU or GPU)."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from siri.config.sections import RolloutSettings
from siri.errors import InputError
from siri.model import attention
from siri.model.adapters import MergeCheck, merged_parameters
from siri.model.policy import Policy, allocate, hollow_copy
from siri.planning.formulas import embedded_cache_tokens
from siri.rollout import Completion, Done, NotFinite, Progress, Request
from siri.rollout.proof import ANSWER_TOKENS, TOLERANCE, fixed_prompts, gaps

SHRINK_AT = 0.75
"""Finished rows leave the batch once only so large a share still runs; dropping each at once would copy the cache at
every token."""


class LocalRollout:
    """Implements `siri.rollout.Rollout`, on the very model that is trained or, where that is sharded, on a copy."""

    independent = True

    def __init__(self, policy: Policy, *, cache_tokens: int, trained: Policy | None = None) -> None:
        """cache_tokens: room for keys and values; as many rows run at once as fit with their prompt and cap.
        trained: the sharded one whose weights `sync` copies into `policy`'s; None when policy's own are trained."""
        self.policy = policy
        self.cache_name = cache_name(policy.model.model)
        self.cache_tokens = cache_tokens
        self.trained = trained
        self.notes: list[str] = []
        self._gaps: dict[str, float] = {}

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        seed: int,
        progress: Progress | None = None,
        done: Done | None = None,
    ) -> list[list[Completion]]:
        """See `Rollout.generate`; nothing goes on while this process does something else, so `done` is not told of
        anything. temperature 0 is greedy, with log-probabilities at temperature 1."""
        generator = torch.Generator(self.policy.device).manual_seed(seed)
        rows = [index for index, request in enumerate(requests) for _ in range(request.n)]
        finished: list[Completion] = []
        was_training = self.policy.model.training
        self.policy.model.eval()
        try:
            with attention.any_shape(self.policy.device):
                while len(finished) < len(rows):
                    wave = self._wave(requests, rows[len(finished) :])
                    finished += self._sample(requests, wave, temperature, generator, progress)
        finally:
            self.policy.model.train(was_training)
        answers: list[list[Completion]] = [[] for _ in requests]
        for index, completion in zip(rows, finished, strict=True):
            answers[index].append(completion)
        return answers

    def expected(self, prompts: Sequence[Sequence[int]], cap: int) -> list[float] | None:
        return None

    def note_lengths(self, prompts: Sequence[Sequence[int]], means: Sequence[float]) -> None:
        pass

    def fly(self) -> None:
        return None

    @torch.no_grad()
    def sync(self) -> None:
        if self.trained is not None:
            targets = dict(self.policy.model.named_parameters())
            model = self.trained.model
            for name, merged in MergeCheck(model).passing(merged_parameters(model)):
                targets.pop(name).copy_(merged)
            assert not targets, f"never trained: {', '.join(targets)}"
        self._prove()

    def _prove(self) -> None:
        """Of an adapter: that what is sampled is what is trained, as vLLM has to prove it. InputError if not."""
        trained = self.trained or self.policy
        if trained.adapter is None:
            return
        prompts = fixed_prompts(trained)
        answers = self.generate([Request(ids, ANSWER_TOKENS) for ids in prompts], temperature=0.0, seed=0)
        engine = "embedded"
        told = [(ids, completion, 0.0) for ids, (completion,) in zip(prompts, answers, strict=True)]
        seen = gaps(trained, {engine: told})[engine]
        # on a GPU layers compute in bf16, whatever their weights are
        tolerance = TOLERANCE[torch.bfloat16 if self.policy.device.type == "cuda" else torch.float32]
        if not seen.within(tolerance):
            raise InputError(
                f"the embedded engine does not sample from the trainer's weights: log-probs differ by {seen.mean:.2g} "
                f"in the mean and {seen.max:.2g} at most (allowed: a mean of {tolerance:g}); the adapter is not in its "
                "weights"
            )
        self._gaps = {"fingerprint_gap_mean": seen.mean, "fingerprint_gap_max": seen.max}

    def sleep(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return dict(self._gaps)

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
        longest = max(requests[index].max_tokens for index in wave)
        logits, cache, seen, position = self._prefill([requests[index].prompt_ids for index in prompts], longest)
        # every prompt runs once, then its keys and values are shared out to the rows that answer it
        cache.batch_select_indices(place)
        logits_BV, position_B, width = logits[place], position[place], seen.shape[1]
        # what follows a prompt is seen, so that only prompts decide whether a mask is needed
        seen_BL = torch.ones(len(wave), width + longest, dtype=torch.bool, device=device)
        seen_BL[:, :width] = seen[place].bool()
        padded = not bool(seen.all())
        caps_B = torch.tensor([requests[index].max_tokens for index in wave], device=device)
        top_p = min(requests[index].top_p for index in wave)  # the same of all
        tokens = torch.zeros(len(wave), longest, dtype=torch.int64, device=device)
        logps = torch.zeros(len(wave), longest, device=device)
        lengths = torch.zeros(len(wave), dtype=torch.int64, device=device)
        stopped = torch.zeros(len(wave), dtype=torch.bool, device=device)
        stop_ids = torch.tensor(sorted(self.policy.stop_ids), device=device)
        rows_B = torch.arange(len(wave), device=device)  # rows of the wave that are in the batch
        running_B = torch.ones(len(wave), dtype=torch.bool, device=device)

        for step in range(longest):
            token_B, logp_B = _draw(logits_BV, temperature, generator, top_p)
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
                padded = padded and not bool(seen_BL[:, :width].all())
            position_B = position_B + 1
            mask_BL = seen_BL[:, : width + step + 1] if padded else None
            logits_BV = self._next(token_B, mask_BL, position_B, cache)
        return [
            Completion(tokens[row, :length].tolist(), logps[row, :length].tolist(), not stop)
            for row, (length, stop) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True))
        ]

    def _prefill(self, prompts: list[list[int]], room: int):
        """Left-padded prompts -> (logits of the last token, cache with room for so many more, attention mask, last
        position) of each."""
        from siri.rollout.kv_cache import reserved_cache

        width = max(map(len, prompts))
        ids_BL = torch.zeros(len(prompts), width, dtype=torch.int64)
        seen_BL = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids_BL[row, width - len(prompt) :] = torch.tensor(prompt)
            seen_BL[row, width - len(prompt) :] = 1
        device = self.policy.device
        ids_BL, seen_BL = ids_BL.to(device), seen_BL.to(device)
        position_BL = (seen_BL.cumsum(1) - 1).clamp(min=0)
        cache = reserved_cache(self.policy.model.config.num_hidden_layers, width + room)
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

    def _next(self, token_B, seen_BL, position_B, cache) -> torch.Tensor:
        """Logits [B, V] after one more token of each row; seen_BL [B, L] bool, None where nothing is padding.

        The model's own layers, without the work of its `forward` around them (masks, defaults, what it might have to
        return), which takes longer than the layers of a small model.
        """
        model = self.policy.model.model
        mask = None if seen_BL is None else seen_BL[:, None, None]
        with torch.autocast("cuda", torch.bfloat16, enabled=token_B.is_cuda):
            hidden_B1D = model.embed_tokens(token_B[:, None])
            position_B1 = position_B[:, None]
            options = {"position_embeddings": model.rotary_emb(hidden_B1D, position_B1), self.cache_name: cache}
            for layer in model.layers:
                hidden_B1D = layer(hidden_B1D, attention_mask=mask, position_ids=position_B1, use_cache=True, **options)
            return self.policy.model.lm_head(model.norm(hidden_B1D)[:, -1]).float()


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


def _draw(
    logits_BV: torch.Tensor, temperature: float, generator: torch.Generator, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row and its log-probability under the distribution it was drawn from."""
    scaled_BV = logits_BV if temperature in (0, 1) else logits_BV / temperature
    logp_BV = torch.log_softmax(scaled_BV, dim=-1)
    if top_p < 1 and temperature:
        logp_BV = likeliest(logp_BV, top_p)
    if not temperature:
        token_B = logp_BV.argmax(-1)
    elif logp_BV.is_cuda:
        token_B = torch.multinomial(logp_BV.exp(), 1, generator=generator)[:, 0]
    else:
        token_B = _multinomial(logp_BV.exp(), generator)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]


def _multinomial(probability_BV: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What torch.multinomial draws from probabilities [B, V] on a CPU, bit for bit and in a fraction of the time: the
    largest p / e with e exponential, which torch makes of uniform numbers one after another, and this all at once.
    NotFinite where a row is none: a weight that is not finite spreads to every logit of a row."""
    if not bool(probability_BV.isfinite().all()):
        raise NotFinite
    uniform_BV = torch.empty(probability_BV.shape, dtype=torch.float64).uniform_(generator=generator)
    exponential_BV = torch.log1p(uniform_BV.neg_()).neg_().float()
    return torch.from_numpy((probability_BV / exponential_BV).numpy().argmax(-1))


def likeliest(logp_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The distribution of the fewest likeliest tokens that together have at least the probability `top_p`; the others
    have the log-probability -inf."""
    sorted_BV, order_BV = logp_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
    left_BV = torch.zeros_like(logp_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= top_p)
    return torch.log_softmax(logp_BV.masked_fill(left_BV, -torch.inf), dim=-1)


def local_engine(settings: RolloutSettings, policy: Policy, *, copy: bool = False) -> LocalRollout:
    """The embedded engine with the settings of a Config or of `siri eval`; `copy` gives it weights of its own, because
    the policy's are sharded."""
    sampled, trained, workload = policy, None, settings.workload()
    if copy:
        sampled, trained = hollow_copy(policy), policy
        if policy.device.type == "cuda":
            sampled.model.to(torch.bfloat16)
        allocate(sampled.model, policy.device)
    cache_tokens = settings.rollout_tokens
    if cache_tokens == "auto":
        cache_tokens = _cache_tokens(sampled, trained and trained.model, workload.offload)
    return LocalRollout(sampled, cache_tokens=cache_tokens, trained=trained)


def _cache_tokens(policy: Policy, trained: Any, offload: bool) -> int:
    """Keys and values that the memory plan has room for, in what the GPU has free; a quarter of a GiB on a CPU."""
    c, device = policy.model.config, policy.device
    if device.type != "cuda":
        return embedded_cache_tokens(c, memory=2**29, held=0, reserve=0, itemsize=4)
    memory = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return embedded_cache_tokens(c, memory=memory, held=held_bytes(policy.model, trained, offload))


def held_bytes(model: Any, trained: Any, offload: bool) -> int:
    """What a GPU holds while the engine samples: its weights, and the trained shards with their moments, which may not
    have been made yet. offload: the moments live in host memory. trained: None for an engine without a trainer."""
    held = sum(parameter.nbytes for parameter in model.parameters())
    for parameter in [] if trained is None else trained.parameters():
        local = parameter.to_local().nbytes if hasattr(parameter, "to_local") else parameter.nbytes
        held += local if offload or not parameter.requires_grad else 3 * local
    return held
