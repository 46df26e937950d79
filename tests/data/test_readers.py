import bz2
import gzip
import io
import json
import lzma
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_lib.data import (
    BadLine,
    CorpusError,
    ReadReport,
    convert_message,
    read_dialogues,
    read_texts,
    split_text,
    streams,
)
from tools.bench.harness import peak_memory_mb

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXTS = [f"第{number}篇文章，讲的是数字{number}。\n它有两行。" for number in range(300)]


def jsonl(texts) -> bytes:
    return b"".join(
        json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts
    )


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def dialogue(*turns: str, **fields) -> dict:
    speakers = ("human", "assistant") * len(turns)
    turns = [
        {"from": speaker, "value": turn} for speaker, turn in zip(speakers, turns, strict=False)
    ]
    return {"id": "0", "conversations": turns, **fields}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- formats


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("corpus.jsonl", bytes),
        ("corpus.json", bytes),
        ("corpus.jsonl.gz", gzip.compress),
        ("corpus.jsonl.bz2", bz2.compress),
        ("corpus.jsonl.xz", lzma.compress),
        ("two streams.jsonl.bz2", lambda data: bz2.compress(data[:999]) + bz2.compress(data[999:])),
        (
            "two streams.jsonl.gz",
            lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
        ),
        (
            "two streams.jsonl.xz",
            lambda data: lzma.compress(data[:999]) + lzma.compress(data[999:]),
        ),
        ("空 格/语料 库.jsonl", bytes),
        ("corpus.tar", lambda data: tar_of(a_jsonl=data)),
        ("corpus.jsonl.tar.bz2", lambda data: bz2.compress(tar_of(folder__a_jsonl=data))),
        ("corpus.tgz", lambda data: gzip.compress(tar_of(README_md=b"hello", a_json=data))),
        ("renamed by a browser", lambda data: bz2.compress(tar_of(a_jsonl=data))),
    ],
)
def test_every_format_gives_the_same_documents(tmp_path, name, pack):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = write(tmp_path / name, pack(jsonl(TEXTS)))
    assert list(read_texts(path)) == TEXTS


def test_bz2_on_one_core_and_on_all_give_the_same(tmp_path, monkeypatch):
    pytest.importorskip("rapidgzip")
    texts = jsonl(random.Random(0).randbytes(99).hex() for _ in range(9000))
    path = write(tmp_path / "corpus.jsonl.bz2", bz2.compress(texts))
    monkeypatch.setattr(streams, "LARGE", 0)
    on_all = list(read_texts(path))
    monkeypatch.setitem(sys.modules, "rapidgzip", None)
    assert list(read_texts(path)) == on_all != []


def test_several_files_and_several_members_in_order(tmp_path):
    one = write(tmp_path / "one.jsonl", jsonl(TEXTS[:10]))
    two = write(
        tmp_path / "two.tar", tar_of(a_jsonl=jsonl(TEXTS[10:20]), b_jsonl=jsonl(TEXTS[20:30]))
    )
    assert list(read_texts([one, str(two)])) == TEXTS[:30]


def test_line_ends_of_windows_byte_order_mark_and_no_final_newline(tmp_path):
    windows = jsonl(TEXTS[:3]).replace(b"\n", b"\r\n")
    content = b"\xef\xbb\xbf" + windows + b"\r\n" + b'{"text": "end"}'
    report = ReadReport()
    assert list(read_texts(write(tmp_path / "w.jsonl", content), report=report)) == [
        *TEXTS[:3],
        "end",
    ]
    assert (report.lines, report.blank) == (4, 1)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [
        BOM + jsonl(["一"]) + BOM + jsonl(["二"]),
        jsonl(["一", "二"]) + BOM,
    ],
    ids=["cat of two", "an empty one last"],
)
def test_marks_that_cat_leaves_inside_a_file_cost_no_document(tmp_path, content):
    report = ReadReport()
    assert list(read_texts(write(tmp_path / "a.jsonl", content), report=report)) == ["一", "二"]
    assert (report.lines, report.rejected_lines) == (2, 0)


def test_such_marks_inside_a_text_are_text(tmp_path):
    texts = ["\ufeff一\ufeff", "二\x1a", "三\r四", "\x00五"]
    assert list(read_texts(write(tmp_path / "a.jsonl", jsonl(texts)))) == texts


@pytest.mark.parametrize(
    "content",
    [b"", b"\n \r\n\t\n", BOM, gzip.compress(b"")],
    ids=["empty", "blank", "BOM", "gz of nothing"],
)
def test_a_file_without_a_document_gives_none(tmp_path, content):
    assert list(read_texts(write(tmp_path / "a", content))) == []


def test_a_folder_is_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing or no file"):
        read_texts(tmp_path)


def test_unusual_line_separators_do_not_end_a_line(tmp_path):
    text = "a\u2028b\u0085c\x0cd"
    assert list(read_texts(write(tmp_path / "a.jsonl", jsonl([text])))) == [text]


# ---- bad lines

BAD_LINES = {
    "malformed JSON": b'{"text": "half',
    "not an object": b'["text"]',
    "missing text": '{"title": "标题", "body": "x"}'.encode(),
    "text not a string": b'{"text": null}',
    "invalid UTF-8": b'{"text": "\xff\xfe"}',
    "empty document": '{"text": " \\n\u3000"}'.encode(),
    "lone surrogate": b'{"text": "\\ud83d"}',
    "line too long": b'{"text": "' + b"x" * 5000 + b'"}',
}


def test_a_dirty_file_is_counted_by_kind_with_the_first_line_and_nothing_is_lost(tmp_path):
    good = jsonl(TEXTS).splitlines(keepends=True)
    bad = [line + b"\n" for line in BAD_LINES.values()] * 2
    path = write(tmp_path / "dirty.jsonl", b"".join([*good[:100], *bad, *good[100:], *good[:7]]))
    rejects, report = tmp_path / "rejected.jsonl", ReadReport()

    texts = list(
        read_texts(
            path, rejects=rejects, max_rejected_share=0.1, max_line_bytes=1000, report=report
        )
    )

    assert texts == TEXTS
    assert report.rejected == dict.fromkeys(BAD_LINES, 2)
    for number, kind in enumerate(BAD_LINES, 101):
        assert report.first[kind].startswith(f"first: dirty.jsonl line {number}")
    assert rejects.read_bytes() == b"".join(line for line in bad if len(line) < 1000)
    assert (report.lines, report.kept, report.duplicates, report.rejected_lines) == (
        323,
        300,
        7,
        16,
    )
    assert "found: title, body" in report.first["missing text"]
    table = str(report)
    assert re.search(
        r"^  missing text +2  first: dirty\.jsonl line 103 \(found: title, body\)$", table, re.M
    )


def test_deep_nesting_and_huge_numbers_are_only_bad_lines(tmp_path):
    lines = b"[" * 100_000 + b"\n" + b'{"text": ' + b"9" * 10_000 + b"}\n"
    report = ReadReport()
    assert not list(
        read_texts(write(tmp_path / "a.jsonl", lines), max_rejected_share=1, report=report)
    )
    assert report.rejected["malformed JSON"] == 2


def test_the_same_bad_lines_every_time_the_file_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(TEXTS) + b"oops\n")
    rejects = tmp_path / "rejected.jsonl"
    for split in ("train", "val"):
        list(read_texts(path, rejects=rejects, split=split))
        assert rejects.read_bytes() == b"oops\n"


def test_too_many_bad_lines_stop_the_run_early_and_say_so(tmp_path):
    lines = jsonl(f"文{number}" for number in range(5000)).splitlines(keepends=True)
    lines[16::20] = [b"oops\n"] * len(lines[16::20])  # 5%, the first in line 17
    path, report = write(tmp_path / "pretrain.jsonl", b"".join(lines)), ReadReport()
    with pytest.raises(CorpusError) as caught:
        list(read_texts(path, report=report, rejects=tmp_path / "rejected.jsonl"))
    message = str(caught.value)
    assert report.lines < 1100  # judged from line 1000 on, not after the whole file
    for part in (
        "malformed JSON",
        "pretrain.jsonl line 17",
        "max_rejected_share=0.01",
        "rejected.jsonl",
    ):
        assert part in message
    assert "\n" not in message


def test_a_short_file_is_judged_at_its_end(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(TEXTS[:20]) + b"oops\n")
    texts = []
    with pytest.raises(CorpusError, match="1 of 21 lines"):
        texts.extend(read_texts(path))
    assert len(list(read_texts(path, max_rejected_share=0.05))) == 20


def test_a_json_array_is_recognised_in_the_message(tmp_path):
    path = write(
        tmp_path / "a.json", json.dumps([{"text": "一"}, {"text": "二"}], indent=1).encode()
    )
    with pytest.raises(CorpusError, match="not one large JSON array"):
        list(read_texts(path))


@pytest.mark.parametrize("name", ["c.bz2", "c.gz", "c.xz", "c.tar.bz2", "c.tar.gz", "c.tar"])
def test_a_truncated_archive_keeps_what_came_before(tmp_path, name):
    words = random.Random(0)
    texts = [words.randbytes(200).hex() for _ in range(20_000)]  # several bzip2 blocks
    data = tar_of(a_jsonl=jsonl(texts)) if ".tar" in name else jsonl(texts)
    packers = {
        ".bz2": bz2.compress,
        ".gz": gzip.compress,
        ".xz": lambda data: lzma.compress(data, preset=0),
    }
    pack = packers.get(Path(name).suffix, bytes)
    packed = pack(data)
    path, report = write(tmp_path / name, packed[: len(packed) * 3 // 4]), ReadReport()

    with pytest.warns(UserWarning, match="damaged or cut off"):
        read = list(read_texts(path, report=report))

    assert read == texts[: len(read)]
    assert len(read) > 0.5 * len(texts)
    assert report.rejected == {"damaged archive": 1}
    assert f"line {len(read) + 1} " in report.first["damaged archive"]
    assert report.lines == report.kept + 1


@pytest.mark.parametrize("cut", [0, 200], ids=["between two files", "in a header"])
def test_an_archive_cut_off_between_its_files_is_noticed(tmp_path, cut):
    first, both = (
        tar_of(a_jsonl=jsonl(TEXTS)),
        tar_of(a_jsonl=jsonl(TEXTS), b_jsonl=jsonl(["more"])),
    )
    border = both.index(b"b.jsonl")
    path = write(tmp_path / "a.tar", both[: border + cut])
    assert first.startswith(both[:border])
    with pytest.warns(UserWarning, match="damaged or cut off"):
        assert list(read_texts(path)) == TEXTS


@pytest.mark.parametrize("zeros", [1, 512], ids=["a byte", "all of it"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_damaged_header_within_an_archive_is_noticed(tmp_path, zeros, pack):
    data = bytearray(tar_of(a_jsonl=jsonl(TEXTS), b_jsonl=jsonl(["more"])))
    header = data.index(b"b.jsonl")
    data[header : header + zeros] = bytes(zeros)
    with pytest.warns(UserWarning, match="data after the last readable member"):
        assert list(read_texts(write(tmp_path / "a.tar", pack(bytes(data))))) == TEXTS


def test_a_few_lines_before_a_break_are_kept_too(tmp_path):
    path = write(tmp_path / "a.gz", gzip.compress(jsonl(TEXTS[:2]))[:-8])
    with pytest.warns(UserWarning, match="damaged or cut off"):
        assert list(read_texts(path, max_rejected_share=1)) == TEXTS[:2]


def test_a_damaged_checksum_is_noticed_after_the_last_line(tmp_path):
    packed = bytearray(gzip.compress(tar_of(a_jsonl=jsonl(TEXTS))))
    packed[-8] ^= 1  # the CRC at the end of the stream
    with pytest.warns(UserWarning, match="damaged"):
        assert list(read_texts(write(tmp_path / "a.tar.gz", packed))) == TEXTS


def test_an_error_page_saved_under_the_name_of_an_archive(tmp_path):
    path = write(tmp_path / "corpus.tar.bz2", b"<html>404</html>")
    with pytest.raises(CorpusError, match="fetch it again"):
        list(read_texts(path))


def test_an_archive_without_a_corpus(tmp_path):
    path = write(tmp_path / "a.tar", tar_of(README_md=b"# hello", data_parquet=b"PAR1"))
    with pytest.raises(CorpusError, match="README.md, data.parquet"):
        list(read_texts(path))


def test_arguments_are_checked_at_the_call(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(TEXTS[:1]))
    with pytest.raises(FileNotFoundError, match="absent.jsonl"):
        read_texts(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="'train', 'val'"):
        read_texts(path, split="test")
    with pytest.raises(ValueError, match="between 0 and 1"):
        read_texts(path, val_share=5)
    with pytest.raises(ValueError, match="overwrite"):
        read_texts(path, rejects=path)
    with pytest.raises(ValueError, match="no corpus file"):
        read_texts([])


# ---- duplicates and splits


def test_duplicates_across_files_are_dropped_once_and_counted(tmp_path):
    one = write(tmp_path / "one.jsonl", jsonl(TEXTS[:20]))
    two = write(tmp_path / "two.jsonl", jsonl(TEXTS[10:30]))
    report = ReadReport()
    assert list(read_texts([one, two], report=report)) == TEXTS[:30]
    assert report.duplicates == 10
    assert len(list(read_texts([one, two], deduplicate=False))) == 40


def test_split_is_a_partition_that_does_not_move_when_the_corpus_grows(tmp_path):
    texts = [f"文档{number}" for number in range(4000)]
    small = write(tmp_path / "small.jsonl", jsonl(texts[:2000]))
    large = write(tmp_path / "large.jsonl", jsonl(reversed(texts)))

    def part(path, split, **options):
        return set(read_texts(path, split=split, **options))

    assert part(large, "train") | part(large, "val") == set(texts)
    assert not part(large, "train") & part(large, "val")
    assert part(small, "val") == part(large, "val") & set(texts[:2000])
    assert 20 <= len(part(large, "val")) <= 65  # 1% of 4000, give or take three standard deviations
    assert part(large, "val") < part(large, "val", val_share=0.1)  # a larger share only adds
    assert part(large, "train", val_share=0) == part(large, "val", val_share=1) == set(texts)


# ---- dialogues


def test_convert_message():
    record = dialogue("你好", "你好！", "再见", "再见！")
    messages = [
        {"role": "system", "content": "你是一个AI助手"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": "再见"},
        {"role": "assistant", "content": "再见！"},
    ]
    assert convert_message(record) == convert_message(record["conversations"]) == messages
    assert convert_message(record, system=None) == messages[1:]
    assert convert_message(record, system="说短话")[0]["content"] == "说短话"


BAD_DIALOGUES = {
    "missing conversations": {"id": "1", "messages": []},
    "malformed conversations": {"conversations": "你好"},
    "empty dialogue": {"conversations": []},
    "unknown speaker": {"conversations": [{"from": "bot", "value": "你好"}]},
    "empty message": dialogue("你好", " "),
    "ends on the user": dialogue("你好", "你好！", "还在吗？"),
}


@pytest.mark.parametrize("kind", BAD_DIALOGUES)
def test_convert_message_names_what_is_wrong(kind):
    with pytest.raises(BadLine, match=kind) as caught:
        convert_message(BAD_DIALOGUES[kind])
    assert caught.value.kind == kind


@pytest.mark.parametrize("turn", ["你好", {"from": "human"}, {"from": "human", "value": 3}, None])
def test_a_malformed_turn(turn):
    with pytest.raises(BadLine, match="malformed conversations: message 2"):
        convert_message([{"from": "human", "value": "你好"}, turn])


def test_read_dialogues_counts_what_it_rejects(tmp_path):
    good = [dialogue(f"问{number}", f"答{number}", id=str(number)) for number in range(500)]
    again = dialogue("问0", "答0", id="another id")
    lines = [*good, *BAD_DIALOGUES.values(), again, dialogue("\ud83d", "答")]
    path = write(
        tmp_path / "sft.json", b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    )
    report, rejects = ReadReport(), tmp_path / "rejected.jsonl"
    dialogues = list(read_dialogues(path, report=report, rejects=rejects, max_rejected_share=0.02))
    assert dialogues == [convert_message(line) for line in good]
    assert report.rejected == dict.fromkeys([*BAD_DIALOGUES, "lone surrogate"], 1)
    for number, kind in enumerate(BAD_DIALOGUES, 501):
        assert report.first[kind].startswith(f"first: sft.json line {number}")
    assert report.first["lone surrogate"].startswith("first: sft.json line 508")
    assert report.duplicates == 1
    copied = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert copied == [*BAD_DIALOGUES.values(), lines[-1]]


@pytest.mark.parametrize("count", [2, 20, 50, 200])
def test_a_small_corpus_has_a_validation_document_and_it_is_not_trained_on(tmp_path, count):
    """By the hash alone 98%, 82%, 61% and 13% of 20 corpora of each size would have none."""
    for corpus in range(20):
        texts = [f"集{corpus}文档{number}" for number in range(count)]
        path = write(tmp_path / "small.jsonl", jsonl(texts))
        train, val = list(read_texts(path, split="train")), set(read_texts(path, split="val"))
        assert val and train == [text for text in texts if text not in val]
        assert len(train) + len(val) == count
        backwards, report = write(tmp_path / "b.jsonl", jsonl(reversed(texts))), ReadReport()
        assert set(read_texts(backwards, split="val", report=report)) == val
        assert (report.lines, report.kept, report.other_split) == (count, len(val), len(train))
        assert list(read_texts(path, split="train", val_share=0)) == texts


def test_one_document_is_trained_on_and_copies_of_it_are_one(tmp_path):
    path = write(tmp_path / "one.jsonl", jsonl(["文档"] * 3))
    for deduplicate, found in ((True, 1), (False, 3)):
        assert len(list(read_texts(path, split="train", deduplicate=deduplicate))) == found
        assert not list(read_texts(path, split="val", deduplicate=deduplicate))


def test_the_split_of_a_dialogue_does_not_depend_on_the_system_prompt(tmp_path):
    lines = [dialogue(f"问{number}", f"答{number}") for number in range(300)]
    path = write(
        tmp_path / "sft.json", b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    )

    def replies(system):
        dialogues = read_dialogues(path, split="val", val_share=0.1, system=system)
        return [messages[-1]["content"] for messages in dialogues]

    parts = [replies(system) for system in ("你是一个AI助手", "另一个", None)]
    assert parts[0] == parts[1] == parts[2] != []


# ---- split_text


def test_split_text_cuts_at_sentence_ends():
    assert split_text("一二三。四五？”六七八九", max_chars=8) == ["一二三。四五？”", "六七八九"]
    assert split_text("Pi is 3.14. Yes! No", max_chars=12) == ["Pi is 3.14.", " Yes! No"]
    # no sentence end in reach
    assert split_text("一二三四五六七", max_chars=3) == ["一二三", "四五六", "七"]
    assert split_text("") == []
    with pytest.raises(ValueError, match="max_chars"):
        split_text("一", max_chars=0)


@given(st.text(alphabet="一二。！”.a \n😀") | st.text(), st.integers(1, 20))
def test_split_text_loses_nothing_and_keeps_the_limit(text, max_chars):
    chunks = split_text(text, max_chars)
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= max_chars for chunk in chunks)


# ---- size

PEAK_MEMORY = """
import sys
from tools.bench.harness import peak_memory_mb
from tinyllm_lib.data import read_texts
print(sum(len(text) for text in read_texts(sys.argv[1], max_rejected_share=1)))
print(peak_memory_mb())
"""


def peak_memory(path: Path) -> int:
    """Peak resident memory of a process that reads `path`, in MB."""
    command = [sys.executable, "-c", PEAK_MEMORY, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(peak_memory_mb() is None, reason="peak memory is not known on this system")
def test_memory_does_not_grow_with_the_file_nor_with_a_line(tmp_path):
    def documents(count):
        return (b'{"text": "%d ' % number + b"x" * 2000 + b'"}\n' for number in range(count))

    small, large, long_line = (
        tmp_path / "5 MB.jsonl",
        tmp_path / "60 MB.jsonl",
        tmp_path / "one line.jsonl",
    )
    small.write_bytes(b"".join(documents(2_500)))
    with open(large, "wb") as file:
        file.writelines(documents(30_000))
    with open(long_line, "wb") as file:
        file.writelines(
            [b'{"text": "', *(b"x" * 2**20 for _ in range(200)), b'"}\n', *documents(2_500)]
        )

    floor = peak_memory(small)
    assert peak_memory(large) < floor + 10  # MB; a process alone varies by some of them
    # 16 MiB of the 200 MiB are held before the line is given up
    assert peak_memory(long_line) < floor * 3


# ---- real text


def real(name: str) -> Path:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here: real text to try things on, no part of the repository")
    return path


def test_real_documents():
    report = ReadReport()
    characters = sum(
        len(text) for text in read_texts(real("pretrain_corpus.jsonl.tar.bz2"), report=report)
    )
    assert (report.lines, report.kept, report.duplicates, characters) == (
        195_065,
        194_991,
        74,
        15_644_489,
    )
    assert not report.rejected


def test_real_dialogues():
    report = ReadReport()
    dialogues = list(read_dialogues(real("dialogues.json"), report=report))
    assert (report.lines, report.kept, report.duplicates) == (17_468, 17_466, 2)
    assert all(messages[-1]["role"] == "assistant" for messages in dialogues)
