"""How a checkpoint came about: the runs behind it, as far as their files still tell."""

from pathlib import Path
from typing import NamedTuple

from tinyllm_lib.data import differences
from tinyllm_lib.dataset import read_manifest, shards_fingerprint
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.model import STEP_FOLDER, step_folders, step_of, weight_files, weights_fingerprint
from tinyllm_lib.train import run_config

TITLES = {"pretrain": "Pretraining", "sft": "Fine-tuning on dialogues"}


class Stage(NamedTuple):
    """One training run on the way to the weights: its metrics up to the checkpoint, and the token
    manifest of its data, or why there is none.
    """

    run: Path
    config: dict
    metrics: list[dict]
    manifest: dict
    missing: str

    @property
    def title(self) -> str:
        """What was done, or the run's name where nobody knows."""
        return TITLES.get(self.manifest.get("kind", ""), f"Run {self.run.name}")


def run_of(folder: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None for a folder that stands alone."""
    folder = folder.resolve()
    run = folder.parent.parent
    inside = STEP_FOLDER.search(folder.name) and folder.parent.name == "checkpoints"
    return run if inside and (run / "config.json").is_file() else None


def read_stages(folder: Path) -> list[Stage]:
    """The runs that made a checkpoint, first pretraining, then what started from it; a base that
    is gone, or was trained anew since, is left out.
    """
    run = run_of(folder)
    if run is None:
        return []
    config = run_config(run)
    rows = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    metrics = [row for row in rows if row["step"] <= step_of(folder)]
    stage = Stage(run, config, metrics, *_manifest(config))
    start = Path(config.get("init_from") or "-")
    made = config.get("made_from", {}).get("init_from")
    for step in reversed(step_folders(start) or [start]):
        if weight_files(step) and weights_fingerprint(step) == made:
            return [*read_stages(step), stage]
    return [stage]


def _manifest(config: dict) -> tuple[dict, str]:
    """The manifest of a run's shards, and why there is none: others may lie in their place now."""
    try:
        manifest = read_manifest(Path(config.get("data_path") or "-") / "train")
    except FileNotFoundError:
        return {}, "its token shards are no longer where they were"
    now = {"shards": shards_fingerprint(manifest)}
    if changed := ", ".join(differences(config.get("made_from"), now)):
        return {}, f"its token shards are not those that lie there now: {changed}"
    return manifest, ""
