"""The course as a learner meets it: notebooks in JupyterLab and the demo's page, in Chromium, at
the ci profile.

Skipped where Chromium or playwright is missing. TINYLLM_SHOTS=FOLDER keeps a picture of each panel
at work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest
from helpers.chromium import needs_chromium, sync_api
from test_demo import behind_a_prefix

from tinyllm_lib.share.server import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.name for path in (REPOSITORY / "notebooks").glob("0*.ipynb"))
SHOTS = os.environ.get("TINYLLM_SHOTS")

pytestmark = needs_chromium

# a notebook of its own, for the panels of which the real cells come at the end of long notebooks
PANELS = {
    "setup": (
        """
import time
from tinyllm_lib.course import get_workspace, prepare, widgets
from tinyllm_lib.generate import TextGenerator
ws = get_workspace()
bot = TextGenerator(prepare.chat_run(ws))
shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
job = prepare.train_config(
    "pretrain", ws, name="panel", **shape, batch_size=8, steps=400, log_interval=2, compile=False
)
"""
    ),
    "tokenizer": (
        'widgets.tokenizer_playground({"one": bot.tokenizer, "two": bot.tokenizer}, text="你好")'
    ),
    "mask": (
        """
dialogue = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好呀！"}]
widgets.mask_explorer(bot.tokenizer, dialogue, max_length=96)
"""
    ),
    "attention": 'widgets.attention_explorer(bot, "大家都知道，法国的首都是巴黎。")',
    "dashboard": "widgets.training_dashboard(job, nproc_per_node=1)",
    "chat": (
        """
panel = widgets.chat(bot, max_new_tokens=100)
quick = panel.talk.chat.write


def write(text):  # slow enough for a person to stop it
    for piece in quick(text):
        time.sleep(0.1)
        yield piece


panel.talk.chat.write = write
panel
"""
    ),
    "free": 'print("the kernel is free")',
}


ALL_RAN = """() => {
    const cells = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    const prompts = cells.map(e => e.textContent);
    const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
    return prompts.every(prompt => /[0-9]/.test(prompt))
        || (failed && !prompts.some(prompt => prompt.includes('*')));
}"""


def environment(workspace):
    """Of a program that a learner starts: not under pytest, which panels would notice."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return outside | {
        "TINYLLM_PROFILE": "ci",
        "TINYLLM_WORKSPACE": str(workspace),
        "PYTHONPATH": str(REPOSITORY),
    }


def started(command, url, log, **options):
    """A server process, once it answers at `url`."""
    process = subprocess.Popen(
        command, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True, **options
    )
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.25)
    process.kill()
    raise RuntimeError(f"{command} does not answer at {url}:\n{log.read_text()}")


def ended(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with a very small chat model and the shards to train another."""
    folder = tmp_path_factory.mktemp("workspace")
    code = (
        "from tinyllm_lib.course import get_workspace, prepare; prepare.chat_run(get_workspace())"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=environment(folder), check=True, stdout=subprocess.DEVNULL
    )
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory, workspace):
    """(address of a JupyterLab with copies of the notebooks, their folder)."""
    home = tmp_path_factory.mktemp("lab")
    folder, settings = home / "notebooks", home / "settings"
    shutil.copytree(
        REPOSITORY / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    cells = [nbformat.v4.new_code_cell(source.strip(), id=name) for name, source in PANELS.items()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "panels.ipynb")
    quiet = settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    if os.environ.get("TINYLLM_SHOTS_THEME") == "dark":
        (quiet.parent / "themes.jupyterlab-settings").write_text(
            json.dumps({"theme": "JupyterLab Dark"})
        )
    port = free_port()
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": "",
        "LabApp.user_settings_dir": settings,
        "LabApp.workspaces_dir": home / "workspaces",
        "ServerApp.root_dir": folder,
    }
    command = [sys.executable, "-m", "jupyterlab", str(folder), "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    own = {"JUPYTER_CONFIG_DIR": str(home / "config"), "IPYTHONDIR": str(home / "ipython")}
    server = started(
        command, f"http://127.0.0.1:{port}/api", home / "log", env=environment(workspace) | own
    )
    yield f"http://127.0.0.1:{port}", folder
    ended(server)


@pytest.fixture
def page(browser):
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(30_000)
    yield tab
    tab.close()


def sessions(address):
    with urllib.request.urlopen(f"{address}/api/sessions", timeout=5) as answer:
        return json.load(answer)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} seconds"
        time.sleep(0.3)


def run_all(page, lab, name, minutes=3):
    """Opens a notebook, runs all of its cells, saves it, and returns it as it is on disk then."""
    address, folder = lab
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    until(
        lambda: any(
            s["path"] == name and s["kernel"]["execution_state"] == "idle"
            for s in sessions(address)
        )
    )
    page.wait_for_timeout(
        1000
        # the page learns of its kernel a little later; told to run before, it asks for one
    )
    page.click('li.lm-MenuBar-item:has-text("Run")')
    page.click('li.lm-Menu-item[data-command="runmenu:run-all"]')
    until(lambda: page.evaluate(ALL_RAN), 60 * minutes)
    page.keyboard.press("Escape")
    before = (folder / name).stat().st_mtime_ns  # now: JupyterLab saves by itself every two minutes
    page.keyboard.press("Control+s")
    until(lambda: (folder / name).stat().st_mtime_ns != before)
    return nbformat.read(folder / name, 4)


def assert_no_error(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            errors = [out for out in cell.outputs if out.output_type == "error"]
            assert cell.execution_count and not errors, f"{cell.id}: {errors}"


def panel(page, title):
    found = page.locator(".tinyllm-panel", has_text=title).first
    found.scroll_into_view_if_needed()
    return found


def shot(where, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        where.screenshot(path=str(Path(SHOTS, f"{name}.png")))


def height(panel):
    return round(panel.bounding_box()["height"])


def press(panel, text):
    panel.get_by_role("button", name=text, exact=True).click()


expect = sync_api.expect


@pytest.mark.timeout(1200)  # it trains, and another process may be busy
def test_panels_react(page, lab):
    """Tokenizer, mask, attention: moved by mouse and keyboard; nothing on the page jumps."""
    assert_no_error(run_all(page, lab, "panels.ipynb"))

    tokens = panel(page, "Tokenizer playground")
    before = height(tokens)
    tokens.get_by_label("Text").fill("天气 龘😀")
    expect(tokens).to_contain_text("5 characters, 14 bytes")
    expect(tokens.locator(".g")).not_to_have_count(0)  # characters that lie over several tokens
    assert height(tokens) == before
    shot(tokens, "tokenizer")

    mask = panel(page, "Mask explorer")
    before = height(mask)
    said = mask.get_by_role("status")
    first = said.inner_text()
    press(mask, "Add a message")
    expect(said).not_to_have_text(first)
    second = said.inner_text()
    mask.get_by_label("Message 1").select_option("assistant")
    expect(said).not_to_have_text(second)
    assert height(mask) == before
    shot(mask, "mask")

    attention = panel(page, "Attention explorer")
    before = height(attention)
    said = attention.get_by_role("status")
    expect(said).to_contain_text("layer 0, head 0")
    attention.locator(".noUi-handle").nth(1).focus()
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("layer 0, head 1")
    attention.locator(".noUi-handle").nth(2).focus()
    page.keyboard.press("ArrowLeft")
    expect(said).not_to_contain_text("。 (position")
    assert height(attention) == before
    shot(attention, "attention")

    dashboard = panel(page, "Training dashboard")
    press(dashboard, "Start")
    said = dashboard.get_by_role("status")
    expect(said).to_contain_text("running")
    expect(dashboard.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    expect(dashboard.locator("svg")).to_be_visible(timeout=200_000)
    page.locator(".jp-Cell", has_text="the kernel is free").last.click()
    page.keyboard.press("Control+Enter")  # another cell runs while it trains
    expect(page.locator(".jp-InputPrompt").last).to_contain_text("8")
    shot(dashboard, "dashboard_running")
    press(dashboard, "Stop")
    expect(said).to_contain_text("stopped", timeout=200_000)
    expect(dashboard).to_contain_text("the checkpoint is saved")
    press(dashboard, "Resume")
    expect(said).to_contain_text("running")
    expect(said).to_contain_text("finished", timeout=600_000)
    expect(dashboard).to_contain_text("step 400 of 400")
    shot(dashboard, "dashboard")

    chat = panel(page, "Chat with your model")
    chat.get_by_label("You (then Enter)").press("Enter")
    expect(chat.locator(".w").nth(3)).to_be_visible()
    press(chat, "Stop")
    expect(chat).to_contain_text("stopped")
    words = chat.locator(".w").count()
    page.wait_for_timeout(500)
    assert chat.locator(".w").count() == words < 100
    press(chat, "Reset")
    expect(chat).to_contain_text("Nothing said yet.")


def test_a_notebook_as_it_is_and_its_panels(page, lab):
    """Notebook 07: all cells run, the sampling explorer draws and undoes, the chat answers."""
    notebook = run_all(page, lab, "07_sampling.ipynb")
    assert_no_error(notebook)
    pictures = [
        out.data
        for cell in notebook.cells
        if cell.id in ("c07-21b", "c07-38b")
        for out in cell.outputs
    ]
    assert len(pictures) == 2 and all("image/png" in data for data in pictures), (
        "a saved notebook has something to show"
    )

    sampling = panel(page, "Sampling explorer")
    before = height(sampling)
    press(sampling, "Draw a token")
    expect(sampling).to_contain_text("and 1 tokens after it")
    press(sampling, "Undo")
    expect(sampling).to_contain_text("and 0 tokens after it")
    expect(sampling).to_contain_text("leave 50 of")
    sampling.locator(".noUi-handle").nth(1).focus()
    page.keyboard.press("ArrowLeft")
    expect(sampling).to_contain_text("leave 49 of")
    candidates = sampling.locator("button[title='take this token']")
    candidates.filter(has_not_text="im_end").nth(1).click()
    expect(sampling).to_contain_text("and 1 tokens after it")
    press(sampling, "Draw ten")  # the model may end the text before
    expect(sampling).not_to_contain_text("and 1 tokens after it")
    assert height(sampling) == before
    shot(sampling, "sampling")

    chat = panel(page, "Chat with your model")
    before = height(chat)
    for turn in (1, 2):
        box = chat.get_by_label("You (then Enter)")
        box.fill("法国的首都是哪里？")
        box.press("Enter")
        expect(chat.locator(".you")).to_have_count(turn)
        expect(chat.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    assert "%" in chat.locator(".model .w").first.get_attribute("title")
    assert height(chat) == before
    shot(chat, "chat")


def test_three_visitors_of_the_demo_at_once(browser, workspace, tmp_path):
    """Each has a conversation and a text of their own; one stops while the others go on; nothing on
    the page jumps.

    The third one comes through a proxy, under a prefix.
    """
    port = free_port()
    command = [sys.executable, "-m", "tinyllm_lib.course.demo", "chat_quick", "--port", str(port)]
    address = f"http://127.0.0.1:{port}/"
    server = started(command, address, tmp_path / "log", env=environment(workspace))
    with ExitStack() as end:
        end.callback(ended, server)
        addresses = (address, address, end.enter_context(behind_a_prefix(port)) + "?from=x")
        visitors = [
            browser.new_context(color_scheme=scheme).new_page()
            for scheme in ("light", "dark", "light")
        ]
        problems = []
        for visitor, at in zip(visitors, addresses, strict=True):
            visitor.set_viewport_size({"width": 1400, "height": 900})
            visitor.on(
                "console",
                lambda message: problems.append(message.text) if message.type == "error" else None,
            )
            visitor.on("pageerror", lambda error: problems.append(str(error)))
            visitor.goto(at)
        tall = visitors[0].evaluate("document.body.scrollHeight")
        for number, visitor in enumerate(visitors):  # all ask, then all wait
            visitor.get_by_label("You").fill(f"我是{number}号")
            visitor.get_by_label("You").press("Enter")
            visitor.get_by_role("button", name="Draw ten").click()
        for number, visitor in enumerate(visitors):
            expect(visitor.get_by_role("button", name="Send")).to_be_enabled()
            expect(visitor.locator(".you")).to_have_text([f"我是{number}号"])
            expect(
                visitor.locator(".model")
            ).not_to_be_empty()  # a model of the ci profile may end its reply at once: …
            expect(visitor.locator("#text .t")).not_to_have_count(0)
        first, second, _ = visitors
        texts = [visitor.locator("#text .t").all_inner_texts() for visitor in visitors]
        first.get_by_role("button", name="Undo").click()
        expect(first.locator("#text .t")).to_have_count(len(texts[0]) - 1)
        first.locator("input[data-group=step][name=top_k]").focus()
        first.keyboard.press("ArrowLeft")
        expect(first.locator("#text")).to_contain_text("leave 49 of")
        second.get_by_role("button", name="Begin").click()
        expect(second.locator("#text .t")).to_have_count(0)
        second.get_by_title("take this token").nth(1).click()
        expect(second.locator("#text .t")).to_have_count(1)
        assert visitors[2].locator("#text .t").all_inner_texts() == texts[2]
        second.get_by_label("You").fill("那日本呢？")
        second.get_by_label("You").press("Enter")
        expect(second.locator(".you")).to_have_count(2)
        expect(first.locator(".you")).to_have_count(1)
        first.get_by_role("button", name="Reset").click()
        expect(first.locator("#said")).to_contain_text("Nothing said yet.")
        assert first.evaluate("document.body.scrollHeight") == tall
        shot(second, "demo_dark")
        shot(visitors[2], "demo")
        assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_runs_in_the_browser(page, lab, name):
    assert_no_error(run_all(page, lab, name, minutes=8))
