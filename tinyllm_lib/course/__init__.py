"""What only the teaching needs: the sample corpus, profiles, pictures, panels, exercises and the
demo. `python -m tinyllm_lib.course` runs all notebooks; `python -m tinyllm_lib.course.board FILE`
puts a recipe of your own on the board.

    compare_exams: two exams side by side, with what was gained and lost, and whether chance does so
    get_profile: the profile called so, else the one of TINYLLM_PROFILE, else `laptop`
    get_workspace: the folder of a profile's files, by default of that of the environment
    mcnemar: the p-value of paired answers, from how many were gained and lost
    Workspace: the paths in that folder
    write_sample_corpus: writes pretrain.jsonl, sft.jsonl and exam.jsonl into a folder
"""

from tinyllm_lib.course.comparison import compare_exams, mcnemar
from tinyllm_lib.course.profiles import get_profile
from tinyllm_lib.course.workspace import Workspace, get_workspace
from tinyllm_lib.course.world import write_sample_corpus
