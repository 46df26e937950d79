"""What notebooks hand each other through the workspace, and what makes it when it is not there yet.

Every notebook runs alone: what an earlier one makes is loaded, or made on the spot at the smallest size, with a line that
says so. Corpus, tokenizer and shards take seconds and are made as the profile wants them; a model that takes minutes is
replaced by a very small one under another name (`pretrain_quick`), so that it is never mistaken for the real one.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tinyllm_lib.checkpoint import latest_checkpoint, step_folders
from tinyllm_lib.corpus import BELLE, SEQ_MONKEY, read_dialogues, read_texts, write_sample_corpus
from tinyllm_lib.profiles import Profile, get_profile
from tinyllm_lib.provenance import file_fingerprint
from tinyllm_lib.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from tinyllm_lib.tokens import read_manifest, write_pretrain_tokens, write_sft_tokens
from tinyllm_lib.train import TrainConfig
from tinyllm_lib.workspace import Workspace, require

REAL_CORPORA = {"pretrain": SEQ_MONKEY, "sft": BELLE}
VAL_DOCUMENTS = 50_000      # enough to measure bits per byte; a share of 10B tokens would be far more than that


def corpus_files(ws: Workspace, profile: Profile | None = None) -> dict[str, Path]:
    """Paths of the raw files {"pretrain", "sft", "exam"}; the sample corpus is written where it is missing.

    Raises:
        FileNotFoundError: the profile wants the real corpora and they have not been downloaded.
    """
    profile = profile or get_profile()
    files = {name: ws.raw / f"{name}.jsonl" for name in ("pretrain", "sft", "exam")}
    if not all(path.is_file() for path in files.values()):
        _say(f"No corpus yet: writing the sample corpus ({profile.documents:,} documents, {profile.dialogues:,} dialogues).")
        write_sample_corpus(ws.raw, documents=profile.documents, dialogues=profile.dialogues)
    if profile.real_corpora:
        for kind, corpus in REAL_CORPORA.items():
            files[kind] = require(ws.raw / corpus.name, f"download_{kind} (notebook 01 has the cell; by hand, put the file into {ws.raw})")
    return files


def tokenizer(ws: Workspace, profile: Profile | None = None) -> PreTrainedTokenizerFast:
    """The workspace's tokenizer, trained on the pretraining corpus where it is missing."""
    profile = profile or get_profile()
    if not (ws.tokenizer / "tokenizer.json").is_file():
        _say(f"No tokenizer yet: training one with {profile.vocab_size:,} entries.")
        train_tokenizer(read_texts(corpus_files(ws, profile)["pretrain"]), ws.tokenizer, vocab_size=profile.vocab_size)
    return load_tokenizer(ws.tokenizer)


def token_shards(ws: Workspace, kind: str, profile: Profile | None = None, *, remake: bool = False, learn_all: bool = False) -> Path:
    """Folder with train/ and val/ shards of "pretrain" or "sft"; written where missing, or where their corpus or tokenizer changed.

    Args:
        remake: write them again in any case. Not those of the real corpora, which take hours: writing them goes on where it
            stopped, and only who deletes the folder begins anew.
        learn_all: SFT shards whose mask learns every token (folder `sft_no_mask`), for the comparison in notebook 06.

    Raises:
        ValueError: the real corpora have shards of another corpus or tokenizer.
    """
    profile, tok = profile or get_profile(), tokenizer(ws, profile)
    folder = ws.tokens(kind, "train").parent
    if learn_all:
        folder = folder.with_name(f"{kind}_no_mask")
    files = corpus_files(ws, profile)
    corpus = file_fingerprint(files[kind])
    for split in ("train", "val"):
        out, source, replay = folder / split, corpus, ()
        if kind == "sft" and split == "train" and (replayed := int(profile.replay_share * profile.dialogues)):
            replay = islice(read_texts(files["pretrain"], split="train"), replayed)
            source += f"; replay of {replayed:,} from {file_fingerprint(files['pretrain'])}"
        if remake and not profile.real_corpora:
            (out / "manifest.json").unlink(missing_ok=True)
        elif not _fits(out, tok, source):
            _say(f"No {folder.name}/{split} token shards of this corpus and tokenizer yet: writing them.")
        common = {"source": source, "replace": not profile.real_corpora}
        if kind == "pretrain":
            texts = read_texts(files["pretrain"], split=split)
            write_pretrain_tokens(islice(texts, VAL_DOCUMENTS) if split == "val" else texts, tok, out, **common)
        else:
            # The sample corpus says hello many times in the same words, and means it.
            dialogues = read_dialogues(files["sft"], split=split, deduplicate=profile.real_corpora)
            write_sft_tokens(dialogues, tok, out, max_length=profile.max_length, replay=replay,
                             learn_all=learn_all and split == "train", **common)
    return folder


def train_config(stage: str, ws: Workspace, profile: Profile | None = None, *, name: str | None = None, **changes) -> TrainConfig:
    """The profile's TrainConfig for "pretrain" or "sft": its data, start and numbers; `changes` win.

    Args:
        name: of the run folder; default "pretrain" and "chat".
    """
    profile = profile or get_profile()
    values = {"data_path": str(ws.tokens(stage, "train").parent), "max_seq_len": profile.max_length, **getattr(profile, stage)}
    values["out_dir"] = str(ws.run(name or {"pretrain": "pretrain", "sft": "chat"}[stage]))
    if stage == "pretrain":
        values["tokenizer_path"] = str(ws.tokenizer)
    else:
        values["init_from"] = str(changes.pop("init_from", None) or pretrained_run(ws, profile))
    return TrainConfig(**{**values, **changes})


def pretrained_run(ws: Workspace, profile: Profile | None = None) -> Path:
    """The pretrained run folder; a very small stand-in is trained where notebook 05 has not run."""
    return _run(ws, "pretrain", "pretrain", profile or get_profile(), "05_pretrain")


def chat_run(ws: Workspace, profile: Profile | None = None) -> Path:
    """The fine-tuned run folder; a very small stand-in is trained where notebook 06 has not run."""
    return _run(ws, "sft", "chat", profile or get_profile(), "06_sft")


def is_finished(run: Path, tok: PreTrainedTokenizerFast) -> bool:
    """Whether a run has a checkpoint, made with this tokenizer."""
    return bool(step_folders(run)) and tokenizer_hash(load_tokenizer(latest_checkpoint(run))) == tokenizer_hash(tok)


def _run(ws: Workspace, stage: str, name: str, profile: Profile, notebook: str) -> Path:
    tok = tokenizer(ws, profile)
    for candidate in (ws.run(name), ws.run(f"{name}_quick")):
        if is_finished(candidate, tok):
            return candidate
    from tinyllm_lib.launch import launch

    smallest = getattr(get_profile("ci"), stage)
    _say(f"No {name} run yet: training a very small stand-in ({smallest['steps']} steps), so that this notebook runs alone. "
         f"It will talk nonsense; for the real one run notebook {notebook} first.")
    token_shards(ws, stage, profile)
    config = train_config(stage, ws, profile, name=f"{name}_quick")
    quick = {k: v for k, v in smallest.items() if stage == "pretrain" or k not in ("dim", "n_layers", "n_heads", "n_kv_heads")}
    return launch(TrainConfig(**{**config.__dict__, "compile": False, "epochs": 1.0, **quick}), nproc_per_node=1, show=False)


def _fits(folder: Path, tok: PreTrainedTokenizerFast, source: str) -> bool:
    try:
        manifest = read_manifest(folder)
        return (manifest["tokenizer"], manifest["source"]) == (tokenizer_hash(tok), source)
    except FileNotFoundError:
        return False


def _say(line: str) -> None:
    print(line, flush=True)


__all__ = ["chat_run", "corpus_files", "is_finished", "pretrained_run", "token_shards", "tokenizer", "train_config"]
