"""What only the teaching needs: the sample corpus, profiles, pictures, panels, exercises and the
demo. `python -m tinyllm_lib.course` runs all notebooks.

    get_profile: the profile called `name`, else the one of TINYLLM_PROFILE, else `laptop`
    get_workspace: the workspace of a profile, given by its name, by an object with a `name`, or
        by the environment
    write_sample_corpus: write pretrain.jsonl, sft.jsonl and exam.jsonl into a folder, each whole
        or not at all
"""

from tinyllm_lib.course.profiles import get_profile
from tinyllm_lib.course.world.sample import write_sample_corpus
from tinyllm_lib.data.workspace import get_workspace

__all__ = ["get_profile", "get_workspace", "write_sample_corpus"]
