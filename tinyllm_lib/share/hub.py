"""A model with its card on a hub: Hugging Face or ModelScope."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tinyllm_lib.model import INDEX, model_folder, weight_files
from tinyllm_lib.share.card import model_card
from tinyllm_lib.share.gguf_file import other_weights

FILES = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
HUBS = {"huggingface": "hf auth login", "modelscope": "modelscope login"}  # how to log in
MESSAGE = "Model with its card, from tinyllm"


class PublishError(OSError):
    """The model could not be published; the message says why and what to do."""


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
    model's address.

    The key is the one you logged in with (`hf auth login`, `modelscope login`) or HF_TOKEN /
    MODELSCOPE_API_TOKEN. HF_ENDPOINT and MODELSCOPE_ENDPOINT name a mirror.

    Args:
        repo_id: owner/name; it is made if it does not exist.
        hub: "huggingface" or "modelscope".
        private: nobody else sees a new repository until you say so on its page.
        extra_files: more files to put beside, for example a GGUF and its Modelfile.

    Raises:
        FileNotFoundError; ValueError: another hub or kind of name, a GGUF file of other weights.
        PublishError: no library, no key, no network, or the hub said no.
    """
    if hub not in HUBS:
        raise ValueError(f"hub is {hub!r}, expected one of {', '.join(HUBS)}.")
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"repo_id is {repo_id!r}, expected owner/name, as in me/tinyllm-chat.")
    folder, extra = model_folder(folder), [Path(path) for path in extra_files]
    if missing := [str(path) for path in extra if not path.is_file()]:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}.")
    for path in extra:
        if path.suffix == ".gguf" and (reason := other_weights(path, folder)):
            raise ValueError(reason)
    files = [folder / name for name in {*FILES, INDEX, *weight_files(folder)}]
    with tempfile.TemporaryDirectory(prefix="tinyllm-publish-") as staged:
        for path in (*filter(Path.is_file, files), *extra):
            shutil.copyfile(path, Path(staged) / path.name)
        card = model_card(folder, repo_id, license=license)
        (Path(staged) / "README.md").write_text(card, encoding="utf-8")
        try:
            return _upload(hub, staged, repo_id, private, license)
        except ImportError as error:
            needed = f"its library ({error}): make setup EXTRAS=hub"
            raise PublishError(f"Publishing on {hub} needs {needed}.") from error
        except Exception as error:  # each library has its own for no key, no network, no right
            said = " ".join(str(error).split()).rstrip(".")  # in one line
            owner, login = repo_id.split("/")[0], HUBS[hub]
            raise PublishError(
                f"{repo_id} could not be published on {hub}: {said}. Are you logged in ({login}),"
                f" with a key that may write to {owner}? Is there a network?"
            ) from error


def _upload(hub: str, staged: str, repo_id: str, private: bool, license: str | None) -> str:
    if hub == "huggingface":
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(folder_path=staged, repo_id=repo_id, commit_message=MESSAGE)
        return str(url)
    from modelscope.hub.api import HubApi

    scope = HubApi(endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None)
    # Its library writes Apache-2.0 where none is given, and nobody but the owner can choose that.
    options = {"visibility": "private" if private else "public", "license": license or "Other"}
    scope.create_repo(repo_id, exist_ok=True, **options)
    scope.upload_folder(
        repo_id=repo_id, folder_path=staged, commit_message=MESSAGE, use_cache=False
    )
    return f"{scope.endpoint}/models/{repo_id}"
