"""Pictures: pure functions, data in, matplotlib figure out. They know nothing of files or models.

    from tinyllm_lib.course import plots
    plots.show(plots.token_strip(["中国", "的", "首都"], ids=[812, 270, 1904]))

Chinese glyphs always show, every figure carries alt text, and none needs colour to be understood.
"""

from tinyllm_lib.course.plots.bars import (
    bar_chart,
    exam_bars,
    next_token_bars,
    parts_bar,
    stacked_bars,
)
from tinyllm_lib.course.plots.curves import (
    cache_timing,
    compression_curve,
    learning_rate_curve,
    lengths_histogram,
    line_chart,
    loss_curve,
)
from tinyllm_lib.course.plots.drawing import png_bytes, save, show, svg_text
from tinyllm_lib.course.plots.maps import attention_map, mask_map, rope_pairs, rotary_rows
from tinyllm_lib.course.plots.merges import merge_steps, merge_table
from tinyllm_lib.course.plots.optimisers import circle_images, valley_paths
from tinyllm_lib.course.plots.panels import curve_panels, seed_dots
from tinyllm_lib.course.plots.strips import batch_blocks, mask_ladder, token_strip
from tinyllm_lib.course.plots.tokens import visible
