"""Notebook 01: raw files become streams of documents and dialogues.

Read `streams.py` (files to lines), `documents.py` (a line to messages), `readers.py` (a corpus).

    allowed_cpus: how many cores this process may use
    allowed_memory: how many bytes of memory this process may use
    atomic_path: a context that writes a file or a folder whole or not at all
    BadLine: the error for one line that cannot be used
    BELLE: where the real dialogues lie, 3.5 million: dataset and file
    content_fingerprint: a hash of anything that JSON can hold
    convert_message: a dialogue as BELLE writes it -> messages with roles
    CorpusError: the error for a corpus that cannot be used as a whole
    differences: phrases that say how two records of what a thing was made from differ
    download_pretrain: fetches the seq-monkey corpus
    download_sft: fetches BELLE's dialogues
    is_running: whether a process of this machine is there and not dead
    read_dialogues: streams the dialogues of a corpus, as messages
    read_json: the JSON object in a file, or what you say where there is none
    read_lines: streams the numbered lines of a file, packed or not
    read_texts: streams the documents of a corpus
    ReadReport: what became of every line of a corpus
    require_writable: an error that names the folder in the way, if one is
    SENTENCE_END: the pattern after which `split_text` may cut
    SEQ_MONKEY: where the real pretraining corpus lies, 10B tokens: dataset and file
    sha256: the checksum of a file
    split_text: cuts a text into chunks, at sentence ends where it can
    SYSTEM_PROMPT: what the system says where a dialogue does not
    utf8_output: makes what a command prints to a file or a pipe UTF-8, whatever the locale
    write_json: writes a JSON file whole or not at all
"""

from tinyllm_lib.data.documents import SENTENCE_END, SYSTEM_PROMPT, convert_message, split_text
from tinyllm_lib.data.download import BELLE, SEQ_MONKEY, download_pretrain, download_sft
from tinyllm_lib.data.files import atomic_path, read_json, require_writable, write_json
from tinyllm_lib.data.machine import allowed_cpus, allowed_memory, is_running, utf8_output
from tinyllm_lib.data.provenance import content_fingerprint, differences, sha256
from tinyllm_lib.data.readers import ReadReport, read_dialogues, read_texts
from tinyllm_lib.data.streams import BadLine, CorpusError, read_lines
