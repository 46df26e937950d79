"""What all benches share: ours and a peer take turns, each run in a process of its own; a table,
and JSON that docs/speed.md shows.

A bench is a list of `Case` and one call of `main`. Run it on an idle machine: taking turns evens
out slow drifts, nothing evens out a neighbour. A busy case brings its own, for both sides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tinyllm_lib.course import get_workspace
from tinyllm_lib.data import allowed_cpus, allowed_memory, utf8_output, write_json

FIGURES = Path(__file__).resolve().parents[2] / "figures" / "bench"

Setup = Callable[[], Callable[[], float]]


@dataclass(frozen=True)
class Case:
    """One comparison. `ours` and `peer` are called in a fresh process; what they return does the
    work and is timed.

    The work returns how much of it was done, in `unit` without its "/s". Both must be picklable:
    functions of a module, with `functools.partial` around them for their arguments.
    """

    name: str
    unit: str  # of the rate, for example "Mchar/s"
    ours: Setup
    peer: Setup
    peer_name: str
    busy: bool = False  # another process spins on a core meanwhile


def main(
    name: str, cases: Callable[[], Sequence[Case]], packages: Sequence[str], hardware: str = ""
) -> list[dict]:
    """Command line of a bench: measure, print a table, store `workspace/bench/<name>.json`; --save:
    `figures/bench/` too.

    Args:
        cases: called after the command line was read, so that --help makes no files.
        packages: whose versions the results depend on.
        hardware: beyond processor and memory, for example the GPU.
    """
    utf8_output()
    parser = argparse.ArgumentParser(
        prog=f"python -m tools.bench.{name}", description=f"Measures {name}: ours against a peer."
    )
    parser.add_argument("--runs", type=int, default=5, help="of each of the two (default 5)")
    parser.add_argument(
        "--only", metavar="CASE", help="cases whose name holds this; stores nothing"
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="renew figures/bench/ too, from which docs/speed.md takes its numbers",
    )
    options = parser.parse_args()
    about = {
        "hardware": ", ".join(filter(None, (machine(), hardware))),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }
    chosen = [case for case in cases() if (options.only or "") in case.name]
    if not chosen:
        parser.error(f"no case has {options.only!r} in its name")
    results = [{**compare(case, options.runs), **about} for case in chosen]
    print(f"\n{table(results)}\n\n{about['hardware']}, {about['date']}")
    if not options.only:
        for folder in (bench_folder(), *[FIGURES] * options.save):
            write_json(folder / f"{name}.json", results)
            print(f"stored: {folder / name}.json")
    return results


def bench_folder() -> Path:
    """Where benches keep what they write: it belongs to the machine, so beside the profiles."""
    return get_workspace().root.parent / "bench"


def compare(case: Case, runs: int) -> dict:
    """Measure one case: rates are medians, the ratio is the median of the pairs' ratios, `spread`
    its lowest and highest.
    """
    pairs, peaks = [], {"ours": [], "peer": []}
    for number in range(runs):
        rates = {}
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            with neighbour(case.busy):
                amount, seconds, peak = run_alone(getattr(case, side))
            rates[side] = amount / seconds
            peaks[side].append(peak)
        pairs.append((rates["ours"], rates["peer"]))
        print(
            f"{case.name}, run {number + 1} of {runs}: {rates['ours']:.3g} {case.unit},"
            f" {case.peer_name} {rates['peer']:.3g}",
            flush=True,
        )
    ratios = [ours / peer for ours, peer in pairs]
    return {
        "case": case.name,
        "ours": _round(median(ours for ours, _ in pairs)),
        "peer": _round(median(peer for _, peer in pairs)),
        "peer_name": case.peer_name,
        "unit": case.unit,
        "ratio": _round(median(ratios)),
        "runs": runs,
        "spread": [_round(min(ratios)), _round(max(ratios))],
        "peak_mb": {side: None if None in found else max(found) for side, found in peaks.items()},
    }


def run_alone(setup: Setup) -> tuple[float, float, int | None]:
    """(amount of work, seconds, peak memory in MB) of one run in a fresh process.

    Raises:
        RuntimeError: the process ended with an error, which it has printed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(setup, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"a run of the bench ended with exit code {process.exitcode}; its error is printed"
            " above"
        ) from None
    finally:
        process.join()


@contextmanager
def neighbour(busy: bool) -> Iterator[subprocess.Popen | None]:
    """Another process that keeps one core busy, as a laptop's other programs do; if not `busy`,
    none.
    """
    if not busy:
        yield None
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _child(setup: Setup, sender) -> None:
    work = setup()
    start = time.perf_counter()
    amount = work()
    sender.send((amount, time.perf_counter() - start, peak_memory_mb()))


def peak_memory_mb() -> int | None:
    """Peak resident memory of this process in MB (1e6 bytes); None on Windows.

    From /proc on Linux: there getrusage also counts what the parent held when it started this
    process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        )
        return int(line.split()[1]) * 1024 // 10**6
    try:
        import resource
    except ImportError:
        return None
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        // 10**6
    )


def machine() -> str:
    """Processor, and of cores and memory what this process may use, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {allowed_cpus()} cores, {allowed_memory() / 1e9:.0f} GB"


def table(results: Sequence[dict]) -> str:
    """The results as a Markdown table, as docs/speed.md shows them."""
    lines = [
        "| what | ours | peer | ours / peer | memory, ours and peer |",
        "|---|---|---|---|---|",
    ]
    for row in results:
        low, high = row["spread"]
        memory = " and ".join(
            f"{peak:,} MB" if peak is not None else "?" for peak in row["peak_mb"].values()
        )
        lines.append(
            f"| {row['case']} | {row['ours']} {row['unit']} | {row['peer']} ({row['peer_name']}) | "
            f"**{row['ratio']}** ({low} to {high}, {row['runs']} runs) | {memory} |"
        )
    return "\n".join(lines)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
