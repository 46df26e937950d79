"""The memory of training by profile, micro-batch and number format, as docs/gpus.md shows it.

python -m tinyllm_lib.course.memory
"""

from dataclasses import replace

from tinyllm_lib.course.profiles import get_profile
from tinyllm_lib.data import utf8_output
from tinyllm_lib.train import TrainConfig, train_memory


def memory_table(micro_batches: tuple[int, ...] = (8, 16, 32, 64, 128)) -> str:
    """Markdown: gigabytes of one GPU by profile, rows of a micro-batch and number format."""
    lines = [
        "| profile | format | " + " | ".join(f"{rows} rows" for rows in micro_batches) + " |",
        "|---|---|" + "---|" * len(micro_batches),
    ]
    for name in ("laptop", "gpu", "full"):
        profile = get_profile(name)
        for dtype in ("bf16", "fp32"):
            options = {"max_seq_len": profile.max_length, "dtype": dtype}
            numbers = {**profile.pretrain, **options, "grad_accumulation_steps": 1}
            config = TrainConfig(**numbers)
            sizes = [
                sum(train_memory(replace(config, batch_size=rows), profile.vocab_size).values())
                for rows in micro_batches
            ]
            cells = " | ".join(f"{size:.2f}" if size < 1 else f"{size:.1f}" for size in sizes)
            lines.append(f"| `{name}`, {profile.max_length} tokens a row | {dtype} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    utf8_output()
    print(memory_table())
