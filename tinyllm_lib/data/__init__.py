"""Notebook 01: raw files (the sample, seq-monkey, BELLE, your own) become streams of documents and
dialogues.

Below them what every other folder stands on: whole files, records of what a thing was made from,
and the machine.

    allowed_cpus: cores that this process may use
    allowed_memory: bytes of memory that this process may use
    atomic_path: write a file or a folder so that it is whole or absent, also after a crash or a
        power cut
    BadLine: one line cannot be used
    content_fingerprint: A hash of anything that JSON can hold, the order of its keys apart
    convert_message: turn BELLE's `conversations` (or the whole record) into messages with roles
    CorpusError: the corpus as a whole cannot be used
    differences: what differs between two records, a phrase for each
    download_pretrain: fetch the seq-monkey corpus (10B tokens) into `raw_dir`
    download_sft: fetch BELLE's 3.5M dialogues into `raw_dir`, for `read_dialogues`
    DownloadError: the file could not be fetched
    ensure_home: where there is no home directory to write to, a temporary one for this process
        and those it starts
    file_fingerprint: size and a hash of a file, whatever its name
    get_workspace: the workspace of a profile, given by its name, by an object with a `name`, or
        by the environment
    made_by_us: what we made a file from, or all files of a folder
    read_dialogues: stream dialogues in BELLE's format as lists of messages, see `convert_message`
        and `read_texts`
    read_json: the JSON object in a file
    read_lines: lines of a corpus file, or of the .jsonl and .json files inside a tar archive, one
        after the other
    read_texts: stream the documents of a corpus
    ReadReport: what became of every line
    RealCorpus: A file on a hub, and how much is in it
    Rejection: how often one kind of bad line was met, and where first
    require: `path` if it exists, else a FileNotFoundError that says what makes it
    require_writable: nothing if `path` can be written, its folders made where they are missing
    sha256: the checksum of a file, from every byte of it
    sign: notes beside files that we made them, from what, and how they are now
    split_text: cut a text into chunks of at most `max_chars` characters, at sentence ends where
        there is one
    temporary_folder: where temporary files and programs made on the way find room
    utf8_output: for a `main()`
    Workspace: the folder of one profile
    write_json: write `content` as indented JSON in UTF-8, whole or not at all
    BELLE: BELLE, 3.5 million Chinese dialogues: where it lies, and its size
    MAX_LINE_BYTES: a longer line is no line of a corpus
    SENTENCE_END: where a text may be split
    SEQ_MONKEY: the seq-monkey corpus of 10B tokens: where it lies, and its size
    SYSTEM_PROMPT: what the system says where a dialogue does not
"""

from tinyllm_lib.data.download import (
    BELLE,
    SEQ_MONKEY,
    DownloadError,
    RealCorpus,
    download_pretrain,
    download_sft,
)
from tinyllm_lib.data.files import atomic_path, read_json, require_writable, write_json
from tinyllm_lib.data.machine import (
    allowed_cpus,
    allowed_memory,
    ensure_home,
    temporary_folder,
    utf8_output,
)
from tinyllm_lib.data.provenance import (
    content_fingerprint,
    differences,
    file_fingerprint,
    made_by_us,
    sha256,
    sign,
)
from tinyllm_lib.data.readers import (
    SENTENCE_END,
    SYSTEM_PROMPT,
    ReadReport,
    Rejection,
    convert_message,
    read_dialogues,
    read_texts,
    split_text,
)
from tinyllm_lib.data.streams import MAX_LINE_BYTES, BadLine, CorpusError, read_lines
from tinyllm_lib.data.workspace import Workspace, get_workspace, require

__all__ = [
    "BELLE",
    "MAX_LINE_BYTES",
    "SENTENCE_END",
    "SEQ_MONKEY",
    "SYSTEM_PROMPT",
    "BadLine",
    "CorpusError",
    "DownloadError",
    "ReadReport",
    "RealCorpus",
    "Rejection",
    "Workspace",
    "allowed_cpus",
    "allowed_memory",
    "atomic_path",
    "content_fingerprint",
    "convert_message",
    "differences",
    "download_pretrain",
    "download_sft",
    "ensure_home",
    "file_fingerprint",
    "get_workspace",
    "made_by_us",
    "read_dialogues",
    "read_json",
    "read_lines",
    "read_texts",
    "require",
    "require_writable",
    "sha256",
    "sign",
    "split_text",
    "temporary_folder",
    "utf8_output",
    "write_json",
]
