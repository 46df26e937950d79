"""Every picture: drawn without a warning, with glyphs for all its characters, alt text and equal
bytes.
"""

import base64
import hashlib
import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tinyllm_lib.course import figures, plots
from tinyllm_lib.course.plots import drawing

TOKENS = ["<|im_start|>", "法国", "的", "首都", " ", "巴黎", "$5$", "\n"]
PIECES = [
    "中国".encode(),
    b"\xe9\xbe",
    b"\x98",
    "😀".encode(),
    b"\xe4",
    b"",
    "𰻝".encode(),
    b"\xff",
    b" \t\n",
]
WEIGHTS = np.tri(8) / np.tri(8).sum(1, keepdims=True)
DOCUMENTS = np.array([[0, 0, 0, 1, 1, -1, -1, -1], [2, 2, 2, 2, 2, 2, 2, 2]])
METRICS = [
    {"step": i, "loss": 7 - i / 10, **({"val_bits_per_byte": 2.0} if i % 5 == 0 else {})}
    for i in range(40)
]
SCORES = {"greeting": (40, 40), "fact_seen": (3, 40), "sum_unseen": (0, 40), "follow_up": (0, 0)}

SAMPLES = {
    "token_strip": lambda: plots.token_strip(
        PIECES, range(9), show_bytes=True, highlight={1}, title="字节 → 词元"
    ),
    "mask_ladder": lambda: plots.mask_ladder(
        TOKENS[:-1] + ["</s>"] * 9,
        TOKENS[1:] + ["</s>"] * 9,
        [0] * 4 + [1] * 3 + [0] * 9,
        breaks={3},
    ),
    "batch_blocks": lambda: plots.batch_blocks(
        {"补齐": DOCUMENTS, "packed": DOCUMENTS[1:]}, lost={"补齐": [0, 3]}
    ),
    "merge_steps": lambda: plots.merge_steps(
        list("天天学习"), [("天", "天"), ("学", "习")], title="合并"
    ),
    "merge_table": lambda: plots.merge_table(
        [("天", "天", 9), (b"\xe4", b"\xb8", 8), ("学", "习", 7)]
    ),
    "attention_map": lambda: plots.attention_map(
        np.stack([WEIGHTS] * 3), TOKENS, title="第二层", columns=2
    ),
    "mask_map": lambda: plots.mask_map(
        np.tri(8), document_ids=[0] * 3 + [1] * 5, tokens=TOKENS, title="文档"
    ),
    "rope_pairs": lambda: plots.rope_pairs(4, (0, 1, 5)),
    "rotary_rows": lambda: plots.rotary_rows(np.arange(48.0).reshape(8, 6), title="一个头"),
    "parts_bar": lambda: plots.parts_bar(
        {"parameters": {"嵌入": 6_291_456, "norms": 96}}, title="模型"
    ),
    "next_token_bars": lambda: plots.next_token_bars(
        ["巴黎", "\n", b"\xe4", "😀"],
        [0.5, 0.2, 0.1, 0.1],
        after={"top-k = 1": [1.0, 0, 0, 0]},
        title="法国的首都是",
    ),
    "exam_bars": lambda: plots.exam_bars({"base": SCORES, "对话": SCORES}, title="考试"),
    "line_chart": lambda: plots.line_chart(
        {"甲": ([1, 2], [3, -4])}, xlabel="步", ylabel="损失", title="线"
    ),
    "learning_rate_curve": lambda: plots.learning_rate_curve(
        [0, 1, 2], [0, 1e-3, 1e-4], marks={1: "最高"}
    ),
    "loss_curve": lambda: plots.loss_curve(
        {"预训练": METRICS, "sft": METRICS}, marks={10: "样本一"}
    ),
    "compression_curve": lambda: plots.compression_curve(
        [1024, 6144], {"故事": [1.1, 1.5], "对话": [1.2, 1.6]}
    ),
    "cache_timing": lambda: plots.cache_timing([16, 64], [2.0, 2.1], [3.0, 9.0]),
    "lengths_histogram": lambda: plots.lengths_histogram(
        [3, 5, 8, 13, 700], limit=512, what="文章"
    ),
    "stacked_bars": lambda: plots.stacked_bars(
        {"fact_named": {"said": 50, "遗忘": 1}, "none": {"said": 0, "遗忘": 0}}, title="事实"
    ),
    "valley_paths": lambda: plots.valley_paths(
        lambda x, y: x**2 + 9 * y**2,
        {"甲": np.array([[2.0, 1], [1, -0.5], [0.2, 0.1]]), "b": np.array([[2.0, 1], [0, 0]])},
        title="山谷",
    ),
    "circle_images": lambda: plots.circle_images(
        {"前": np.array([[2.0, 1], [0, 0.5]]), "after": np.eye(2)}, title="圆"
    ),
    "curve_panels": lambda: plots.curve_panels(
        {"甲": ([7.0, 5.0, 40.0], {2: 5.5}), "B": ([7.0, float("nan"), float("nan")], {})},
        reference=[7.0, 6.0, 5.0],
        level=7.0,
    ),
    "seed_dots": lambda: plots.seed_dots(
        {"原样": [4.1, 4.2], "no norm": [4.4, 4.6]}, xlabel="loss", title="两个种子"
    ),
    "bar_chart": lambda: plots.bar_chart({"有掩码": 92.5, "without": 80.1}, unit="%", title="考试"),
}


def digests():
    """A line per sample with the digest of its SVG and PNG."""
    lines = []
    for name, draw in SAMPLES.items():
        figure = draw()
        both = plots.svg_text(figure).encode() + plots.png_bytes(figure)
        lines.append(f"{name} {hashlib.sha256(both).hexdigest()}")
    return lines


def characters(figure):
    from matplotlib.text import Text

    return {char for text in figure.findobj(Text) for char in text.get_text()} - {"\n"}


def test_there_is_a_sample_of_every_function_that_draws():
    drawers = {
        name
        for name, drawn in vars(plots).items()
        if inspect.isfunction(drawn) and "Figure" in str(inspect.signature(drawn).return_annotation)
    }
    assert drawers == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_draws_without_a_warning_and_with_a_glyph_for_every_character(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = SAMPLES[name]()
        svg, png = plots.svg_text(figure), plots.png_bytes(figure)
    assert {c for c in characters(figure) if ord(c) not in drawing.drawable_characters()} == set()
    alt = figure.get_label()
    assert len(alt) > 20
    assert alt == ElementTree.fromstring(svg).find("{http://www.w3.org/2000/svg}title").text
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_cut_off_at_the_edges(name):
    """The picture's outermost pixels are all white."""
    from io import BytesIO

    from PIL import Image

    pixels = np.asarray(Image.open(BytesIO(plots.png_bytes(SAMPLES[name]()))).convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 250


def test_same_bytes_and_a_silent_stderr_in_a_fresh_process(tmp_path):
    """Fresh: no matplotlib settings, no font cache, no display, another hash seed."""
    code = (
        "import sys; sys.path.insert(0, 'tests/course'); import test_plots;"
        " print(*test_plots.digests(), sep='\\n')"
    )
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        env=env
        | {"MPLCONFIGDIR": str(tmp_path), "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == digests()


def test_the_font_has_every_common_chinese_character():
    gb2312 = [bytes([row, cell]) for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF)]
    common = "".join(pair.decode("gb2312", "ignore") for pair in gb2312)
    assert len(common) == 6763
    assert {
        char
        for char in common + "，。！？；：「」《》…—₂²×÷"
        if ord(char) not in drawing.drawable_characters()
    } == set()


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (b"\xe4\xb8", "‹E4 B8›"),
        ("中".encode(), "中"),
        (b"\x80\xe4\xb8\xad\xff\xfe", "‹80›中‹FF FE›"),
        (" a\n\t", "␣a⏎⇥"),
        ("\u200d\x00", "‹E2 80 8D 00›"),
        ("\u0301", "‹CC 81›"),
        ("\udc80", "‹80›"),
        ("", "∅"),
        ("$x$", "$x$"),
    ],
)
def test_visible(token, expected):
    assert plots.visible(token) == expected


def test_a_character_over_several_tokens_is_named_above_them():
    assert "龘" in characters(plots.token_strip([b"\xe9\xbe", b"\x98"]))
    assert "龘" not in characters(plots.token_strip([b"\xe9\xbe", "，".encode(), b"\x98"]))


def test_mask_ladder_marks_exactly_the_learned_targets():
    from matplotlib.text import Text

    figure = plots.mask_ladder(list("甲乙丙"), list("乙丙丁"), [0, 1, 1])
    assert sum(text.get_text() == "✓" for text in figure.findobj(Text)) == 2
    assert "2 of 3 targets are learned: 丙 丁" in figure.get_label()


def test_merge_steps_joins_from_the_left_as_the_tokenizer_does():
    assert (
        plots.merge_steps(list("aaab"), [("a", "a"), ("aa", "b")])
        .get_label()
        .endswith("aa | a | b")
    )


def test_wasted_positions_are_counted():
    label = plots.batch_blocks({"padded": DOCUMENTS}, lost={"padded": [0, 5]}).get_label()
    assert "2 rows × 8 positions, 19% wasted on padding, 5 tokens cut off" in label


def test_the_rows_of_the_rotary_picture_are_in_the_order_of_the_library():
    import torch

    from tinyllm_lib.share import to_half_split

    rows = to_half_split(torch.arange(8.0)[:, None], 1)[:, 0].int().tolist()
    names = " ".join(f"{row // 2}{'ab'[row % 2]}" for row in rows)
    assert f"Half-split: {names}." in SAMPLES["rotary_rows"]().get_label()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.token_strip(["a"], [1, 2]), "1 tokens but 2 ids"),
        (lambda: plots.mask_ladder(["a"], ["b"], []), "0 mask values"),
        (lambda: plots.attention_map(np.ones((2, 3)), ["a"]), r"expected \(T, T\)"),
        (lambda: plots.loss_curve(METRICS, y="accuracy"), "found: loss, step, val_bits_per_byte"),
        (lambda: plots.rotary_rows(np.ones((3, 4))), "3 rows; rows are turned in pairs"),
        (lambda: plots.save(SAMPLES["rope_pairs"](), "x.pdf"), "found the ending '.pdf'"),
        (lambda: plots.show(drawing.new_figure(1, 1, "")), "no alt text"),
    ],
)
def test_bad_input_is_explained(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_without_any_chinese_font_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pylopdf_fonts_zh_cn", None)
    monkeypatch.setattr(drawing, "SYSTEM_FONTS", ())
    with pytest.raises(RuntimeError, match="pip install pylopdf-fonts-zh-cn"):
        drawing.font_families.__wrapped__()


def test_show_puts_alt_text_beside_the_picture(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **more: shown.append((data, more)))
    plots.show(SAMPLES["bar_chart"](), alt="两根柱子")
    plots.show(SAMPLES["bar_chart"]())
    (data, more), (_, default) = shown
    assert more == {"raw": True, "metadata": {"image/png": {"alt": "两根柱子"}}}
    assert (
        base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
        and data["text/plain"] == "两根柱子"
    )
    assert default["metadata"]["image/png"]["alt"].startswith("考试: 有掩码 92.50 %")


def test_a_learner_s_own_matplotlib_is_left_alone():
    import matplotlib

    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        figure = SAMPLES["bar_chart"]()
        plots.png_bytes(figure)
        assert dict(matplotlib.rcParams) == before
        assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
    from matplotlib import _pylab_helpers

    assert not _pylab_helpers.Gcf.figs  # nothing left open


def test_make_figures_writes_all_pictures_from_library_data_and_saved_results(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "exam.json").write_text(
        '{"base": {"greeting": [3, 40]}, "chat": {"greeting": [40, 40]}}'
    )
    rows = '[{"step": 0, "val_bits_per_byte": 5.0}, {"step": 9, "val_bits_per_byte": 2.0}]'
    (data / "metrics.json").write_text(
        f'{{"runs": {{"pretrain": {rows}}}, "marks": {{"9": "end"}}}}'
    )
    drawn = {}
    for name, figure in figures.draw_all(data):
        drawn[name] = plots.svg_text(figure)
        assert {
            c for c in characters(figure) if ord(c) not in drawing.drawable_characters()
        } == set()
    assert list(drawn) == [
        "pipeline",
        "tokens",
        "masks",
        "packing",
        "learning_rate",
        "parameters",
        "exam",
        "loss",
    ]
    saved = plots.save(figures.parameters(), tmp_path / "parameters.svg")
    assert saved.read_text(encoding="utf-8") == drawn["parameters"]
    # matplotlib keeps each text as a comment beside its glyphs
    assert "215M" in drawn["parameters"]
