"""A checkpoint, step_000500/, is a Hugging Face Llama folder that also holds `trainer_state.pt`
(optimiser, random numbers) and `checkpoint.json` (step, checksums of all other files). It is
written under a temporary name and renamed: whole, or damaged from outside.
"""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import atomic_path, content_fingerprint, read_json, sha256, write_json
from tinyllm_lib.model.transformer import Transformer, weight_files
from tinyllm_lib.tokenizer import save_tokenizer, stop_ids, token_ids


def step_folders(run: str | Path) -> list[Path]:
    """The finished checkpoint folders of a run, oldest first."""
    found = [path.parent for path in Path(run).glob("checkpoints/step_*/checkpoint.json")]
    return sorted((path for path in found if re.fullmatch(r"step_\d{6,}", path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """500 for …/step_000500."""
    return int(folder.name.rpartition("step_")[2])


def latest_checkpoint(run: str | Path) -> Path:
    """The newest undamaged checkpoint of a run; FileNotFoundError if it has none."""
    for folder in reversed(step_folders(run)):
        if not (problem := find_damage(folder)):
            return folder
        print(f"{folder.name} is damaged ({problem}) and is passed over.", flush=True)
    raise FileNotFoundError(
        f"The run {run} does not exist, has no finished checkpoint, or only damaged ones: train it"
        " (resume='never' sets aside what is damaged), or name another run."
    )


def model_folder(folder: str | Path) -> Path:
    """`folder` itself if it holds a model, else the newest checkpoint of that run."""
    folder = Path(folder)
    return folder if weight_files(folder) else latest_checkpoint(folder)


def run_folder(folder: Path) -> Path:
    """The run that a checkpoint folder belongs to, or the folder itself if it lies in none."""
    return folder.parent.parent if folder.resolve().parent.name == "checkpoints" else folder


def weights_fingerprint(folder: str | Path) -> str:
    """What decides a model folder's outputs, weights and shape, as 16 hex digits."""
    names = ("config.json", *weight_files(folder))
    return content_fingerprint({name: sha256(Path(folder) / name) for name in names})


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, in words, or None."""
    try:
        for name, expected in read_json(folder / "checkpoint.json")["sha256"].items():
            if sha256(folder / name) != expected:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return str(error)
    return None


def save_checkpoint(
    run: str | Path,
    step: int,
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    state: dict[str, Any],
    *,
    keep_last: int = 2,
    keep_every: int = 0,
) -> Path:
    """Writes checkpoints/step_XXXXXX as a whole or not at all, then removes old ones.

    Args:
        state: what the trainer needs to go on: tensors, numbers, strings, lists and dicts only.
        keep_last: how many of the newest to keep.
        keep_every: keep those at multiples of this step for good (0: none).
    """
    folder = Path(run) / "checkpoints" / f"step_{step:06d}"
    for stray in folder.parent.glob(".tmp-*"):  # a run killed in the middle of this left it
        shutil.rmtree(stray, ignore_errors=True)
    try:
        with atomic_path(folder) as temporary:
            write_model(temporary, model, tokenizer)
            torch.save(state, temporary / "trainer_state.pt")
            seal(temporary, step)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last is torch.save's
        raise OSError(f"{folder} cannot be written: {error}. Is the disk full?") from error
    # Later ones are damaged: the run went on from before them.
    for old in [p for p in step_folders(run) if step_of(p) <= step][: -max(keep_last, 1)]:
        if not keep_every or step_of(old) % keep_every:
            shutil.rmtree(old)
    return folder


def snapshot(value: Any) -> Any:
    """A copy in the CPU's memory, which later steps do not change: of a model (without gradients),
    of a tensor, or of those in dicts, lists and tuples.
    """
    if isinstance(value, Transformer):
        return copy.deepcopy(value).cpu()
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: snapshot(part) for name, part in value.items()}
    return type(value)(map(snapshot, value)) if isinstance(value, list | tuple) else value


def write_model(folder: Path, model: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes what any program reads: shape, weights, tokenizer and how to generate."""
    ids = token_ids(tokenizer)
    model.save_pretrained(folder, ids)
    save_tokenizer(tokenizer, folder)
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 50}
    generation = {**ids, "eos_token_id": stop_ids(tokenizer), **sampling}
    write_json(folder / "generation_config.json", generation)


def seal(folder: Path, step: int) -> None:
    """Writes checkpoint.json: the step, and a checksum of every other file."""
    sums = {p.name: sha256(p) for p in sorted(folder.iterdir())}
    write_json(folder / "checkpoint.json", {"step": step, "sha256": sums})


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint; never executes code from the file."""
    return torch.load(folder / "trainer_state.pt", map_location="cpu", weights_only=True)
