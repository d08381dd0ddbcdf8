"""Checks of an adapter beside vLLM: python -m tests.vllm.lora_worker colocated|read MODEL FOLDER."""

import sys
from pathlib import Path

import torch

from tests.vllm.checks import transformers_logp
from tests.vllm.lora_checks import RANK, assert_merged_weights_arrive, with_adapter

PROMPT = list(range(20, 60))


def colocated(model: Path, folder: Path) -> None:
    """The engine in this process; then the adapter leaves, alone and merged."""
    from siri.store.export import export
    from tests.support.saving import save_now

    policy, engine = with_adapter(model, folder)
    assert_merged_weights_arrive(policy, engine, (engine.backend, "load"))
    engine.close()
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    path = save_now(folder / "checkpoints", 1, policy, torch.optim.AdamW(trained), {})
    export(path, folder / "adapter", adapter=True)
    export(path, folder / "merged", dtype=torch.float32)


def read(model: Path, folder: Path) -> None:
    """The exported adapter in vLLM and in peft, beside the merged model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from siri.model.policy import load_policy
    from siri.rollout.colocated import CPU_CACHE_BYTES

    merged, base = (load_policy(str(path), torch.device("cpu")) for path in (folder / "merged", model))
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        whole = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)(input_ids=ids).logits
        assert (plain(input_ids=ids).logits - whole).abs().max() > 0.1
        loaded = PeftModel.from_pretrained(plain, folder / "adapter")(input_ids=ids).logits
    torch.testing.assert_close(loaded, whole, atol=1e-4, rtol=1e-4)

    llm = LLM(
        str(model),
        enable_lora=True,
        max_lora_rank=RANK,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=256,
        kv_cache_memory_bytes=CPU_CACHE_BYTES,
    )
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=40, logprobs=0, ignore_eos=True, detokenize=False)
    request = LoRARequest("exported", 1, str(folder / "adapter"))
    for policy, asked in ((merged, request), (base, None)):
        (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, lora_request=asked, use_tqdm=False)
        answer = output.outputs[0]
        told = torch.tensor([row[token].logprob for row, token in zip(answer.logprobs, answer.token_ids, strict=True)])
        tokens = list(answer.token_ids)
        torch.testing.assert_close(told, transformers_logp(policy, PROMPT, tokens, 1.0), atol=1e-3, rtol=0)
        other = base if policy is merged else merged
        assert (told - transformers_logp(other, PROMPT, tokens, 1.0)).abs().max() > 0.1


if __name__ == "__main__":
    {"colocated": colocated, "read": read}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print("all held")
