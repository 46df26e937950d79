"""Stores the outputs of the last `make course` in notebooks/, and its numbers in figures/data/ for
`make figures`.

    python tools/store_outputs.py

Takes the copies in workspace/laptop/executed/, refuses one whose code differs from the notebook,
and leaves out what would make every run a diff: times, widget state, the kernel's version.
"""

import base64
import json
import re
import sys
from pathlib import Path

import nbformat

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tinyllm_lib.course import Workspace, get_workspace  # noqa: E402
from tinyllm_lib.data import utf8_output, write_json  # noqa: E402
from tinyllm_lib.generate import TextGenerator  # noqa: E402
from tinyllm_lib.model import step_folders, step_of  # noqa: E402

SENTENCE = "法国的首都是"  # the capital of France is


def store(notebook: Path, executed: Path) -> None:
    """Copies the outputs of `executed` into `notebook`, cell by cell.

    Raises:
        ValueError: the two do not have the same code.
    """
    target, source = nbformat.read(notebook, 4), nbformat.read(executed, 4)
    written, executed_cells = (
        [c for c in n.cells if c.cell_type == "code"] for n in (target, source)
    )
    if [c.source for c in written] != [c.source for c in executed_cells]:
        raise ValueError(
            f"{notebook.name} was changed after it was executed: run `make course` again."
        )
    for cell, ran in zip(written, executed_cells, strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = for_strangers(output.data["text/html"])
        cell.metadata.pop("execution", None)
    target.metadata.pop("widgets", None)
    target.metadata["language_info"] = {"name": "python"}
    nbformat.write(target, notebook)


def for_strangers(html: str) -> str:
    """HTML whose drawings are images: where nobody trusts a notebook yet, <svg> is taken out and
    its bare text would remain.
    """

    def image(drawing: re.Match) -> str:
        # grey: for light and dark pages
        svg = drawing[0].replace(
            "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" color="#888" ', 1
        )
        label = re.search(r'aria-label="([^"]*)"', svg)
        return (
            f'<img alt="{label[1] if label else ""}"'
            f' src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'
        )

    return re.sub(r"<svg .*?</svg>", image, html, flags=re.DOTALL)


def store_numbers(ws: Workspace) -> None:
    """Writes figures/data/exam.json and metrics.json, which the pictures of the README are drawn
    from.
    """
    data = REPOSITORY / "figures" / "data"
    runs = {"base": ws.run("pretrain"), "chat": ws.run("chat")}
    exams = {
        name: json.loads((run / "exam.json").read_text(encoding="utf-8"))["classes"]
        for name, run in runs.items()
    }
    scores = {
        name: {c["class_name"]: [c["right"], c["total"]] for c in classes}
        for name, classes in exams.items()
    }
    lines = (runs["base"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {k: v for k, v in json.loads(line).items() if k not in ("tokens_per_second", "mfu")}
        for line in lines
    ]
    marks = moments(runs["base"])
    for name, content in (
        ("exam", scores),
        ("metrics", {"runs": {"pretraining": rows}, "marks": marks}),
    ):
        write_json(data / f"{name}.json", content)


def moments(run: Path) -> dict[str, str]:
    """Of the first checkpoint, the middle one and the last: {step: how the model goes on after
    SENTENCE}.
    """
    kept = step_folders(run)
    chosen = dict.fromkeys([kept[0], kept[len(kept) // 2], kept[-1]])
    said = {
        step_of(folder): TextGenerator(folder).complete(SENTENCE, temperature=0, max_new_tokens=8)
        for folder in chosen
    }
    return {str(step): text.split("。")[0].split("\n")[0][:8] + "…" for step, text in said.items()}


def main() -> int:
    """Stores every notebook that has an executed copy."""
    utf8_output()
    store_numbers(get_workspace())
    folder = get_workspace().root / "executed"
    for notebook in sorted((REPOSITORY / "notebooks").glob("0*.ipynb")):
        if (folder / notebook.name).is_file():
            store(notebook, folder / notebook.name)
            print("stored", notebook.name)
        else:
            print("no executed copy of", notebook.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
