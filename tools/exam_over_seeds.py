"""Trains base and chat model several times, differing only in the seed, and shows how far the
exam's results spread.

    python tools/exam_over_seeds.py [--seeds 0 1 2]

Same corpus and exam, other first weights and data order. Seed 0 is the course's own run where `make
course` has made it; each other takes about 7 minutes at the laptop profile on two idle cores.
Writes figures/data/seeds.json and prints the table that README and notebook 06 show.
"""

import argparse
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tinyllm_lib.course import get_profile, get_workspace, prepare  # noqa: E402
from tinyllm_lib.course.run import exam_result  # noqa: E402
from tinyllm_lib.course.world import CLASS_MEANING  # noqa: E402
from tinyllm_lib.data import allowed_cpus, utf8_output, write_json  # noqa: E402
from tinyllm_lib.evaluate import ExamResult, run_exam  # noqa: E402
from tinyllm_lib.launch import launch  # noqa: E402
from tinyllm_lib.train import TrainConfig  # noqa: E402


def exam_of_seed(seed: int) -> dict:
    """Trains both models with `seed`; returns {"base": {class: [right, total]}, "chat": …}."""
    profile = get_profile()
    ws = get_workspace(profile)
    if seed == TrainConfig.seed and not any(
        prepare.why_not_ready(ws, name, profile) for name in ("pretrain", "chat")
    ):
        return {
            name: scores_of(exam_result(ws, run))
            for name, run in (("base", "pretrain"), ("chat", "chat"))
        }
    prepare.token_shards(ws, "pretrain", profile)
    prepare.token_shards(ws, "sft", profile)
    base = launch(
        prepare.train_config("pretrain", ws, profile, name=f"seed{seed}_pretrain", seed=seed),
        show=False,
    )
    config = prepare.train_config(
        "sft", ws, profile, name=f"seed{seed}_chat", seed=seed, init_from=base
    )
    chat = launch(replace(config, resume="auto"), show=False)
    return {
        "base": scores_of(run_exam(base, ws.raw / "exam.jsonl", kind="base", print_table=False)),
        "chat": scores_of(run_exam(chat, ws.raw / "exam.jsonl", kind="chat")),
    }


def scores_of(exam: ExamResult) -> dict:
    """{class: [right, total]}."""
    return {score.class_name: [score.right, score.total] for score in exam.classes}


def main() -> None:
    """Command line."""
    utf8_output()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    path = REPOSITORY / "figures" / "data" / "seeds.json"
    results = {}
    for seed in seeds:
        results[str(seed)] = exam_of_seed(seed)
        content = {
            "profile": get_profile().name,
            "date": time.strftime("%Y-%m-%d"),
            "hardware": f"{allowed_cpus()} CPU cores, {platform.machine()}",
            "seeds": results,
        }
        write_json(path, content)
    print(table(results))


def table(results: dict) -> str:
    """What README and notebook 06 show: of each class the median share over the seeds, with the
    lowest and the highest.
    """
    lines = ["| class | what it shows | base model | chat model |", "|---|---|---|---|"]
    for name in next(iter(results.values()))["chat"]:
        cells = []
        for model in ("base", "chat"):
            shares = sorted(
                100 * right / total for right, total in (r[model][name] for r in results.values())
            )
            cells.append(f"{shares[len(shares) // 2]:.0f}% ({shares[0]:.0f} to {shares[-1]:.0f})")
        lines.append(f"| `{name}` | {CLASS_MEANING[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
