"""Build the course's own environment in .venv: pinned packages and a Jupyter kernel.

    python3 tools/setup_env.py [--extras hub,serve] [--torch-index URL]

`make setup` calls this. A second call does nothing unless pyproject.toml, constraints.txt,
the extras or the place of the repository have changed. Only the standard library is used,
and the syntax is old on purpose: an outdated Python must get as far as the message that
says which version is needed.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
NEWER_NAMES = ("python3.14", "python3.13", "python3.12", "python3.11")
BASE_EXTRAS = ("course", "dev", "fast-io")
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
REPOSITORY = Path(__file__).resolve().parent.parent
# Every kernel of the environment, whoever starts it, loads our package before a cell loads torch:
# it sets how torch's threads wait.
KERNEL_CONFIG = 'c.IPKernelApp.exec_lines = ["import tinyllm_lib"]\n'


class SetupError(Exception):
    """Something that the reader of the message can put right."""


def venv_python(venv):
    """Path of the interpreter inside `venv`, on this operating system."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_version(python):
    """(major, minor) of an interpreter, or None when it does not start."""
    code = "import sys; print(sys.version_info[0], sys.version_info[1])"
    try:
        printed = subprocess.run(
            [str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = printed.split()
    return int(major), int(minor)


def too_old_message(found, which=shutil.which, version_of=python_version):
    """What to tell someone whose Python is `found`, a (major, minor) pair below OLDEST."""
    text = "python3 is Python {}.{}; tinyllm needs {}.{} or newer.".format(*(found + OLDEST))
    for name in NEWER_NAMES:
        if which(name) and (version_of(name) or (0, 0)) >= OLDEST:
            return text + f" This machine has {name}: run `make setup PYTHON={name}`."
    return (
        text + " Install one (python.org, your package manager, or conda with environment.yml),"
        " then run `make setup PYTHON=/path/to/it`."
    )


def name_of(path):
    """A path as text that is the same under every locale."""
    return os.fsencode(str(path)).decode("utf-8", "surrogateescape")


def fingerprint(repository, extras, torch_index):
    """Hash of all that decides what lies in the environment, and of where the clone lies."""
    parts = [name_of(repository), ",".join(sorted(extras)), torch_index, KERNEL_CONFIG]
    for name in ("pyproject.toml", "constraints.txt"):
        parts.append((repository / name).read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def has_nvidia_gpu():
    """True when NVIDIA's own tool is installed, as it is wherever its driver is."""
    return shutil.which("nvidia-smi") is not None


def run(command, doing):
    """Run a command, showing its output; a failure names what was being done."""
    print("+ " + " ".join(str(part) for part in command), flush=True)
    code = subprocess.call([str(part) for part in command], cwd=str(REPOSITORY))
    if code:
        raise SetupError(
            f"{doing} failed with exit code {code}; the lines above say why."
            " After putting it right, run `make setup` again: it goes on from here."
        )


def create_venv(venv, repository):
    """Make `venv` unless a working one is there; returns its (major, minor) version."""
    version = python_version(venv_python(venv))
    stamp = read_stamp(venv)
    if (
        version
        and version >= OLDEST
        and stamp.get("repository", name_of(repository)) == name_of(repository)
    ):
        return version
    if sys.version_info[:2] < OLDEST:
        raise SetupError(too_old_message(sys.version_info[:2]))
    try:
        import ensurepip  # noqa: F401
        import venv as _  # noqa: F401
    except ImportError:
        raise SetupError(
            "this Python has no venv module. On Debian and Ubuntu: `sudo apt install python3-venv`;"
            " then run `make setup` again."
        ) from None
    run([sys.executable, "-m", "venv", "--clear", venv], "making " + str(venv))
    return sys.version_info[:2]


def read_stamp(venv):
    """The note left by the last complete set-up, or {}."""
    try:
        return json.loads((venv / "tinyllm-setup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def set_up(venv, extras, torch_index):
    """Bring `venv` up to date; returns False when there was nothing to do.

    Extras and torch index of an earlier call stay, so `make setup EXTRAS=hub` is said once.
    """
    stamp = read_stamp(venv)
    extras = list(dict.fromkeys([*BASE_EXTRAS, *stamp.get("extras", []), *extras]))
    torch_index = torch_index or stamp.get("torch_index", "")
    wanted = fingerprint(REPOSITORY, extras, torch_index)
    if stamp.get("fingerprint") == wanted and venv_python(venv).exists():
        return False
    version = create_venv(venv, REPOSITORY)
    python = venv_python(venv)
    print("environment {} with Python {}.{}".format(venv, *version), flush=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-c", "constraints.txt"]
    if not sys.stdout.isatty():
        pip.append("--quiet")  # a log needs no progress bars and no list of 150 names
    if torch_index:
        # Alone, so that this index is asked for torch and for nothing else.
        run([*pip, "--extra-index-url", torch_index, "torch"], "installing torch")
    elif sys.platform.startswith("linux") and not has_nvidia_gpu():
        print(
            "no NVIDIA GPU seen. If pip now starts a download of several GB (torch with CUDA),"
            f" stop it with Ctrl-C and run `make setup TORCH_INDEX={CPU_TORCH_INDEX}`: torch for"
            " CPUs is about 200 MB.",
            flush=True,
        )
    run([*pip, "-e", ".[{}]".format(",".join(extras))], "installing the packages")
    run(
        [python, "-m", "ipykernel", "install", "--sys-prefix", "--name", "python3",
         "--display-name", "Python 3 (tinyllm)"],
        "registering the Jupyter kernel",
    )  # fmt: skip
    config = venv / "etc" / "ipython" / "ipython_kernel_config.py"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(KERNEL_CONFIG, encoding="utf-8")
    stamp = {
        "fingerprint": wanted,
        "repository": name_of(REPOSITORY),
        "extras": extras,
        "torch_index": torch_index,
    }
    temporary = venv / "tinyllm-setup.json.tmp"
    temporary.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    os.replace(str(temporary), str(venv / "tinyllm-setup.json"))
    return True


def main(argv=None):
    """Command line; returns the exit code."""
    # a folder's name may be one that the console cannot show
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument(
        "--venv", default=str(REPOSITORY / ".venv"), help="default: .venv in the repository"
    )
    parser.add_argument(
        "--extras", default="", help="more groups of pyproject.toml: hub,serve,llama"
    )
    parser.add_argument(
        "--torch-index", default="", help=f"where torch comes from, e.g. {CPU_TORCH_INDEX}"
    )
    options = parser.parse_args(argv)
    extras = [name.strip() for name in options.extras.split(",") if name.strip()]
    try:
        changed = set_up(Path(options.venv).absolute(), extras, options.torch_index)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    if changed:
        print("setup done.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
