import errno
import os

import pytest

from tinyllm_lib.data import atomic_path, require_writable


def test_atomic_file_replaces_only_when_whole(tmp_path):
    target = tmp_path / "new folder" / "data.json"
    with atomic_path(target) as temporary:
        assert temporary.name == target.name and temporary.parent.parent == target.parent
        temporary.write_text("one", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "one"

    def write_half(path):
        path.write_text("half", encoding="utf-8")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"), atomic_path(target) as temporary:
        write_half(temporary)
    assert target.read_text(encoding="utf-8") == "one"
    assert os.listdir(target.parent) == ["data.json"]


def test_atomic_folder_replaces_a_full_folder(tmp_path):
    target = tmp_path / "tokenizer"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            (temporary / "sub").mkdir(parents=True)
            (temporary / "sub" / "file").write_text(content, encoding="utf-8")
            if content == "old":
                (temporary / "left over").touch()
    assert (target / "sub" / "file").read_text(encoding="utf-8") == "new"
    assert sorted(os.listdir(target)) == ["sub"]
    assert os.listdir(tmp_path) == ["tokenizer"]


def test_atomic_path_that_nothing_was_written_to(tmp_path):
    with pytest.raises(FileNotFoundError, match="not written"), atomic_path(tmp_path / "x"):
        pass
    assert not list(tmp_path.iterdir())


# ---- other people's disks


def test_a_temporary_folder_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    def busy(path, **options):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))  # NFS, where a file is open

    monkeypatch.setattr(os, "rmdir", busy)
    with pytest.raises(RuntimeError, match="cut"), atomic_path(tmp_path / "file"):
        raise RuntimeError("cut")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_a_file_system_that_cannot_sync_is_written_to(tmp_path, monkeypatch, code):
    def sync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    assert (tmp_path / "folder" / "file").is_file()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_broken_or_full_is_an_error(tmp_path, monkeypatch, code):
    def sync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    with (
        pytest.raises(OSError, match=os.strerror(code)),
        atomic_path(tmp_path / "file") as temporary,
    ):
        temporary.touch()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_named(tmp_path, monkeypatch):
    closed = tmp_path / "theirs"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed)
    said = "theirs.new.file cannot be written: the folder .*theirs is closed .*TINYLLM_WORKSPACE"
    with pytest.raises(PermissionError, match=said):
        require_writable(closed / "new" / "file")
    with pytest.raises(PermissionError, match="is closed"), atomic_path(closed / "new" / "file"):
        pytest.fail("before anything is made")
    require_writable(tmp_path / "mine" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
