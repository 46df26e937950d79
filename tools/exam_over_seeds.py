"""Trains base and chat model several times, differing only in the seed, and shows how far the exam's results spread.

    python tools/exam_over_seeds.py [--seeds 0 1 2]

Same corpus and exam, other first weights and data order. About 8 minutes a seed at the laptop profile on two idle cores.
Writes figures/data/seeds.json, from which README takes its numbers.
"""

import argparse
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tinyllm_lib import prepare  # noqa: E402
from tinyllm_lib.evaluate import run_exam  # noqa: E402
from tinyllm_lib.launch import launch  # noqa: E402
from tinyllm_lib.profiles import get_profile  # noqa: E402
from tinyllm_lib.workspace import get_workspace, write_json  # noqa: E402


def exam_of_seed(seed: int) -> dict:
    """Trains both models with `seed`; returns {"base": {class: [right, total]}, "chat": …, "minutes": …}."""
    profile = get_profile()
    ws = get_workspace(profile)
    prepare.token_shards(ws, "pretrain", profile)
    prepare.token_shards(ws, "sft", profile)
    start = time.monotonic()
    base = launch(prepare.train_config("pretrain", ws, profile, name=f"seed{seed}_pretrain", seed=seed), show=False)
    config = prepare.train_config("sft", ws, profile, name=f"seed{seed}_chat", seed=seed, init_from=base)
    chat = launch(replace(config, resume="auto"), show=False)
    minutes = round((time.monotonic() - start) / 60, 1)
    exams = {"base": run_exam(base, ws.raw / "exam.jsonl", kind="base", print_table=False),
             "chat": run_exam(chat, ws.raw / "exam.jsonl", kind="chat")}
    scores = {name: {c.class_name: [c.right, c.total] for c in exam.classes} for name, exam in exams.items()}
    return {**scores, "minutes": minutes}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    path = REPOSITORY / "figures" / "data" / "seeds.json"
    results = {}
    for seed in seeds:
        results[str(seed)] = exam_of_seed(seed)
        content = {"profile": get_profile().name, "date": time.strftime("%Y-%m-%d"),
                   "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}", "seeds": results}
        write_json(path, content)
    print(table(results))


def table(results: dict) -> str:
    """The README's table: median share of each class over the seeds, and the lowest and highest."""
    lines = ["| class | base model | chat model |", "|---|---|---|"]
    for name in next(iter(results.values()))["chat"]:
        cells = []
        for model in ("base", "chat"):
            shares = sorted(100 * right / total for right, total in (r[model][name] for r in results.values()))
            cells.append(f"{shares[len(shares) // 2]:.0f}% ({shares[0]:.0f} to {shares[-1]:.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
