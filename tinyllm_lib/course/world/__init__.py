"""The sample corpus and its exam: a small world of facts, and everything that is written about it.

What the rest of the course uses of it:

    CLASS_MEANING: in words, what the classes of the sample's exam ask
    CorpusMix: what the corpus is made of
    facts: all facts, or those about one kind of subject ("country", "element", …)
    sample_recipe: what the sample files are made from, for their record
    World: all facts, with the role of every entity
    write_sample_corpus: writes pretrain.jsonl, sft.jsonl and exam.jsonl into a folder
    HELD_OUT_RELATIONS: what no dialogue asks about, so that the exam can
"""

from tinyllm_lib.course.world.exam import CLASS_MEANING
from tinyllm_lib.course.world.facts import facts
from tinyllm_lib.course.world.mix import CorpusMix
from tinyllm_lib.course.world.sample import sample_recipe, write_sample_corpus
from tinyllm_lib.course.world.world import HELD_OUT_RELATIONS, World
