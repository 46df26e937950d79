"""Remove caches and build leftovers. Keeps .venv, and workspace/ with what was trained.

python3 tools/clean.py
"""

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
AT_THE_TOP = (".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", "build", "dist")
ANYWHERE = ("__pycache__", ".ipynb_checkpoints", "*.egg-info")
# The egg-info folder is only the leftover of a build: an editable install keeps its own record in
# .venv.
KEPT = {".git", ".venv", "workspace"}


def leftovers(repository):
    """Folders to remove, in a clone at `repository`."""
    found = [repository / name for name in AT_THE_TOP if (repository / name).is_dir()]
    roots = [
        folder for folder in repository.iterdir() if folder.is_dir() and folder.name not in KEPT
    ]
    for pattern in ANYWHERE:
        found += [folder for folder in repository.glob(pattern) if folder.is_dir()]
        found += [folder for root in roots for folder in root.rglob(pattern) if folder.is_dir()]
    return sorted(set(found))


if __name__ == "__main__":
    for folder in leftovers(REPOSITORY):
        print(f"removing {folder.relative_to(REPOSITORY)}")
        shutil.rmtree(folder, ignore_errors=True)
    print(
        "clean. Kept: .venv (the environment) and workspace (what you trained); delete them by"
        " hand."
    )
