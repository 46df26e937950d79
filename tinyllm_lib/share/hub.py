"""A model with its card on a hub: Hugging Face or ModelScope."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tinyllm_lib.model import INDEX, model_folder, weight_files
from tinyllm_lib.share.card import model_card

FILES: tuple[str, ...] = ("config.json", "generation_config.json", "model.safetensors")
FILES += ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def publish(
    folder: str | Path,
    repo_id: str,
    hub: str = "huggingface",
    *,
    private: bool = True,
    license: str | None = None,
    extra_files: Sequence[str | Path] = (),
) -> str:
    """Uploads a checkpoint with its model card; the trainer's own state stays here. Returns the
    model's address. First log in, with `hf auth login` or `modelscope login`.

    Args:
        repo_id: owner/name; it is made if it does not exist.
        hub: "huggingface" or "modelscope" (make setup EXTRAS=hub).
        private: nobody else sees a new repository until you say so on its page.
        extra_files: more files to put beside, for example a GGUF and its Modelfile.

    Raises:
        FileNotFoundError; ValueError: another hub.  Others: the hub's library says what is wrong.
    """
    if hub not in ("huggingface", "modelscope"):
        raise ValueError(f"hub is {hub!r}, expected huggingface or modelscope.")
    folder = model_folder(folder)
    files = [folder / name for name in {*FILES, INDEX, *weight_files(folder)}]
    with tempfile.TemporaryDirectory() as staged:
        for path in (*filter(Path.is_file, files), *extra_files):
            shutil.copy(path, staged)
        Path(staged, "README.md").write_text(model_card(folder, repo_id, license=license), "utf-8")
        if hub == "huggingface":
            from huggingface_hub import HfApi

            url = str(HfApi().create_repo(repo_id, private=private, exist_ok=True))
            HfApi().upload_folder(repo_id=repo_id, folder_path=staged)
            return url
        from modelscope.hub.api import HubApi

        # Its library writes Apache-2.0 where none is given, and nobody but the owner can choose.
        options = {"visibility": "private" if private else "public", "license": license or "Other"}
        scope = HubApi(endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None)
        scope.create_repo(repo_id, exist_ok=True, **options)
        scope.upload_folder(repo_id=repo_id, folder_path=staged, use_cache=False)
        return f"{scope.endpoint}/models/{repo_id}"
