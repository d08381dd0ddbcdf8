"""TRL's GRPOTrainer on real mathematics with the fused head:

    accelerate launch --num-processes 8 examples/launch/trl_math.py --use-vllm
    python examples/launch/trl_math.py --model MODEL --data problems.json --max-steps 10

Data is a hub data set or a JSON file with the columns `problem` and `answer`; --plain takes TRL's own trainer, for the
comparison. Needs trl, datasets and math-verify.
"""

import argparse

from datasets import load_dataset
from math_verify import parse, verify
from siri_kernels.integrations.trl import FusedGRPOTrainer
from trl import GRPOConfig, GRPOTrainer

INSTRUCTION = "Let's think step by step and put the final answer within \\boxed{}."


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    parser.add_argument("--data", default="agentica-org/DeepScaleR-Preview-Dataset")
    parser.add_argument("--out", default="runs/trl-math")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=8192, help="longest response")
    parser.add_argument("--group", type=int, default=8, help="responses for each problem")
    parser.add_argument("--use-vllm", action="store_true")
    parser.add_argument("--use-cpu", action="store_true")
    parser.add_argument("--plain", action="store_true", help="TRL's own trainer")
    return parser.parse_args()


def problems(name: str):
    """Rows with a conversation as `prompt`, and `answer`."""
    rows = (
        load_dataset("json", data_files=name, split="train") if name.endswith("json") else load_dataset(name)["train"]
    )

    def prompt(row):
        return {"prompt": [{"role": "user", "content": f"{row['problem']}\n{INSTRUCTION}"}], "answer": row["answer"]}

    return rows.map(prompt, remove_columns=rows.column_names)


def right(completions, answer, **_):
    """1 where the response's last boxed answer is the gold one, else 0."""
    texts = [completion[0]["content"] for completion in completions]
    golds = [parse(f"${gold}$", parsing_timeout=None) for gold in answer]
    return [
        float(verify(gold, parse(text, parsing_timeout=None), timeout_seconds=None))
        for gold, text in zip(golds, texts, strict=True)
    ]


def main() -> None:
    asked = arguments()
    config = GRPOConfig(
        output_dir=asked.out,
        max_steps=asked.max_steps,
        per_device_train_batch_size=asked.group,
        num_generations=asked.group,
        max_completion_length=asked.max_tokens,
        temperature=0.6,
        learning_rate=1e-6,
        beta=0.0,
        epsilon_high=0.28,
        loss_type="dapo",
        bf16=not asked.use_cpu,
        use_cpu=asked.use_cpu,
        use_vllm=asked.use_vllm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    )
    kind = GRPOTrainer if asked.plain else FusedGRPOTrainer
    kind(model=asked.model, reward_funcs=right, args=config, train_dataset=problems(asked.data)).train()


if __name__ == "__main__":
    main()
