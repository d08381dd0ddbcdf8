"""A GRPO loop of your own on real mathematics: transformers samples, the fused head scores and trains.

    python examples/launch/plain_loop_math.py --data problems.json            # linear_grpo_loss, by `policy_loss`
    python examples/launch/plain_loop_math.py --data problems.json --liger    # Liger's class, from our import

Data is a JSON list of objects with `problem` and `answer`. One process, one device; needs transformers and math-verify.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from math_verify import parse, verify
from siri_kernels.integrations.liger import LigerFusedLinearGRPOLoss
from siri_kernels.integrations.transformers import policy_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

INSTRUCTION = "Let's think step by step and put the final answer within \\boxed{}."


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=4096, help="longest response")
    parser.add_argument("--group", type=int, default=8, help="responses for the problem of a step")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--liger", action="store_true")
    return parser.parse_args()


def rewards_of(texts: list[str], answer: str) -> torch.Tensor:
    gold = parse(f"${answer}$")
    return torch.tensor([float(verify(gold, parse(text))) for text in texts])


def main() -> None:
    asked = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.lr)
    liger = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="dapo")
    problems = json.loads(Path(asked.data).read_text())
    random.Random(0).shuffle(problems)

    for step in range(asked.steps):
        row = problems[step % len(problems)]
        messages = [{"role": "user", "content": f"{row['problem']}\n{INSTRUCTION}"}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"].to(device)
        settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        ids = model.generate(
            prompt.expand(asked.group, -1),
            max_new_tokens=asked.max_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **settings,
        )
        start = prompt.shape[1]
        response = ids[:, start:]
        ended = (response == tokenizer.eos_token_id).cumsum(1)
        scored = ((ended == 0) | ((ended == 1) & (response == tokenizer.eos_token_id))).long()
        rewards = rewards_of(tokenizer.batch_decode(response, skip_special_tokens=True), row["answer"])
        advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).to(device)
        attention = torch.cat([torch.ones_like(ids[:, :start]), scored], 1)

        if asked.liger:
            hidden = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
            loss, _ = liger(hidden[:, start - 1 : -1], model.lm_head.weight, response, scored, advantages)
        else:
            only_response = torch.cat([torch.zeros_like(ids[:, :start]), scored], 1)
            loss = policy_loss(model, ids, attention, only_response, advantages).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        length = float(scored.sum(1).float().mean())
        print(f"step {step}: reward {float(rewards.mean()):.2f}, tokens {length:.0f}, loss {float(loss.detach()):.4f}")


if __name__ == "__main__":
    main()
