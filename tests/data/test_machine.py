"""What a process may use of the machine: cores and memory by affinity and cgroups, a console."""

import ast
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.kernel import real_kernel
from helpers.tiny import ROOT

from tinyllm_lib.data import allowed_cpus, allowed_memory, machine
from tools import setup_env


def python(code, *before, **env):
    """Runs `code` in a Python behind the command `before`; its output, as bytes."""
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(
        command,
        env={
            k: v for k, v in {**os.environ, "PYTHONPATH": str(ROOT), **env}.items() if v is not None
        },
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


# ---- cores and memory


@pytest.fixture
def group(tmp_path, monkeypatch):
    """group(membership, {file: content}) -> (allowed_cpus, allowed_memory) of a process in such a
    tree on 16 cores.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def make(membership, files):
        (tmp_path / "cgroup").write_text(membership, encoding="utf-8")
        for name, content in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(f"{content}\n", encoding="utf-8")
        monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "cgroup")
        return allowed_cpus(), allowed_memory()

    return make


def test_a_limit_of_a_group_above_holds_too(group):
    files = {
        "slurm/job/step/cpu.max": "max 100000",
        "slurm/job/cpu.max": "250000 100000",
        "slurm/cpu.max": "800000 100000",
        "slurm/job/step/memory.max": "max",
        "slurm/job/memory.max": str(3 * 2**20),
        "slurm/memory.max": str(2**40),
    }
    assert group("0::/slurm/job/step\n", files) == (3, 3 * 2**20), (
        "two and a half cores keep three threads busy"
    )


def test_a_container_sees_its_own_group_at_the_top(group):
    files = {"cpu.max": "200000 100000", "memory.max": str(2**30)}
    assert group("0::/\n", files) == (2, 2**30)
    assert group("0::/docker/0123abcd\n", files) == (2, 2**30), "named as the host names it"
    assert group("0::/../../kubepods/pod1\n", files) == (2, 2**30)


def test_without_limits_it_is_the_machine(group, monkeypatch):
    monkeypatch.setattr(machine, "MEMBERSHIP", Path("/nowhere"))
    built_in = allowed_memory()
    assert built_in > 2**28
    assert group("0::/a\n", {"a/cpu.max": "max 100000", "a/memory.max": "max"}) == (16, built_in)
    assert group("", {}) == (16, built_in)


@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_cores_that_this_process_may_not_use_do_not_count():
    one = str(min(os.sched_getaffinity(0)))
    assert (
        python(
            "from tinyllm_lib.data import allowed_cpus; print(allowed_cpus())", "taskset", "-c", one
        )
        == b"1\n"
    )


def test_nothing_counts_the_cores_of_the_machine_by_itself():
    counting = ("os.cpu_count(", "sched_getaffinity(", "multiprocessing.cpu_count(")
    files = [*ROOT.glob("tinyllm_lib/**/*.py"), *ROOT.glob("tools/**/*.py")]
    assert [
        path.name for path in files if any(word in path.read_text("utf-8") for word in counting)
    ] == ["machine.py"]


# ---- threads


@pytest.mark.parametrize(
    ("own", "waits", "threads"),
    [({}, b"PASSIVE", None), ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "1"}, b"ACTIVE", 1)],
)
def test_threads_that_wait_sleep_and_are_no_more_than_allowed_unless_you_say_so(
    own, waits, threads
):
    code = "import tinyllm_lib, os, torch; print(os.environ['OMP_WAIT_POLICY'], end=' ');"
    code += "print(torch.get_num_threads())"
    clean = {"OMP_WAIT_POLICY": None, "OMP_NUM_THREADS": None, **own}
    assert python(code, **clean).split() == [waits, b"%d" % (threads or allowed_cpus())]


def test_where_torch_is_loaded_already_nothing_is_promised():
    code = "import torch, tinyllm_lib, os; print('OMP_WAIT_POLICY' in os.environ)"
    assert python(code, OMP_WAIT_POLICY=None) == b"False\n"


def test_a_kernel_of_the_environment_has_it_before_its_first_cell(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipython_kernel_config.py").write_text(setup_env.KERNEL_CONFIG, encoding="utf-8")
    with real_kernel(tmp_path, IPYTHONDIR=str(tmp_path)) as kernel:
        assert kernel.run("import os, sys; print('torch' in sys.modules)") == "False\n"
        assert kernel.run("print(os.environ['OMP_WAIT_POLICY'])") == "PASSIVE\n"


# ---- what is printed


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "gbk"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
    ],
)
def test_redirected_output_is_utf_8(env):
    printed = python(
        "from tinyllm_lib.data import utf8_output; utf8_output();"
        " print('\\u5317\\u4eac\\U0001f642')",
        **env,
    )
    assert printed.decode("utf-8").strip() == "北京🙂"


@pytest.mark.skipif(not shutil.which("script"), reason="needs script, which plays a terminal")
def test_a_terminal_keeps_its_encoding():
    code = "from tinyllm_lib.data import utf8_output; utf8_output(); print('\\u5317\\u4eac')"
    command = shlex.join([sys.executable, "-c", code])
    printed = subprocess.run(
        ["script", "-qec", command, os.devnull],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "gbk"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert printed.decode("gbk").strip() == "北京"


def test_every_command_sees_to_its_output_first():
    """All but workers, whose output their starter reads, and tools that run where there is only
    Python.
    """
    alone = {"torchrun.py", "setup_env.py", "badges.py"}
    mains = [
        (path.name, ast.unparse(node.body[:3]))
        for path in [*ROOT.glob("tinyllm_lib/**/*.py"), *ROOT.glob("tools/**/*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "main" and path.name not in alone
    ]
    assert len(mains) > 10
    assert [name for name, begin in mains if "utf8_output()" not in begin] == []
