"""The file of blocks: what several writers make of it, a crash, a long life, and somebody's hand in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shield.block import Block
from shield.block import file as block_file
from shield.block.file import BlockFile, BlockFileError

NOW = 1_700_000_000_000_000


def block(value: str, stamp_us: int = NOW) -> Block:
    return Block("user", value, stamp_us, "blocked", "operator", stamp_us)


def opened(path: Path) -> BlockFile:
    file = BlockFile(path)
    file.open()
    return file


def values(blocks: list[Block]) -> list[str]:
    return [one.value for one in blocks]


def test_what_one_appends_the_other_reads_once(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "b"), opened(tmp_path / "b")
    news = [block("ada"), block("bob")]
    assert one.exchange(news, news) == ([], True)
    assert not one.has_news()
    assert other.has_news()
    heard, _ = other.exchange([], [])
    assert values(heard) == ["ada", "bob"]
    assert not other.has_news()
    assert other.exchange([block("eve")], [block("eve")]) == ([], True)
    assert values(one.exchange([], news)[0]) == ["eve"]
    assert oct((tmp_path / "b").stat().st_mode & 0o777) == "0o600"


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom shield.block import Block\n"
        "from shield.block.file import BlockFile\n"
        "file = BlockFile(Path(sys.argv[1])); file.open()\n"
        "for i in range(300):\n"
        "    said = [Block('user', f'{sys.argv[2]}-{i}', i, 'blocked', 'operator', i)]\n"
        "    assert file.exchange(said, said)[1]\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "b", name]) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    file = BlockFile(tmp_path / "b")
    assert len({one.value for one in file.open()}) == 900
    assert file.unread == 0


def test_what_a_crash_left_is_skipped_and_nothing_behind_it_lost(tmp_path: Path) -> None:
    one = opened(tmp_path / "b")
    one.exchange([block("ada")], [block("ada")])
    with open(tmp_path / "b", "ab") as torn:
        torn.write(b'{"kind":"user","value":"bo')
    other = opened(tmp_path / "b")
    assert other.unread == 1
    other.exchange([block("eve")], [block("eve")])
    assert values(one.exchange([], [])[0]) == ["eve"]
    assert values(BlockFile(tmp_path / "b").open()) == ["ada", "eve"]


def test_a_long_file_is_written_anew_and_the_others_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_file, "SPARE_LINES", 20)
    one, other = opened(tmp_path / "b"), opened(tmp_path / "b")
    inode = os.stat(tmp_path / "b").st_ino
    last = block("ada")
    for i in range(25):
        last = block("ada", NOW + i)
        one.exchange([last], [last])
    assert os.stat(tmp_path / "b").st_ino != inode
    assert len((tmp_path / "b").read_bytes().splitlines()) < 10
    assert other.has_news()
    heard, _ = other.exchange([block("bob")], [block("bob")])
    assert heard[-1] == last
    assert values(one.exchange([], [last])[0]) == ["bob"]


def test_a_file_that_was_removed_comes_back_whole(tmp_path: Path) -> None:
    one = opened(tmp_path / "b")
    both = [block("ada"), block("bob")]
    one.exchange(both[:1], both[:1])
    (tmp_path / "b").unlink()
    assert one.has_news()
    assert one.exchange(both[1:], both) == ([], True)
    assert values(BlockFile(tmp_path / "b").open()) == ["ada", "bob"]


def test_a_disk_that_does_not_take_it_is_counted_and_asked_again(tmp_path: Path) -> None:
    one = opened(tmp_path / "b")
    full = os.open("/dev/full", os.O_RDWR)
    write = os.write

    def fails(descriptor: int, data: bytes) -> int:
        return write(full, data)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", fails)
        assert one.exchange([block("ada")], [block("ada")]) == ([], False)
    os.close(full)
    assert one.faults == 1
    assert one.exchange([block("ada")], [block("ada")]) == ([], True)


@pytest.mark.parametrize("made", ["directory", "no folder"])
def test_a_file_that_cannot_be_used_is_said(tmp_path: Path, made: str) -> None:
    path = tmp_path / "b" if made == "directory" else tmp_path / "b" / "c"
    if made == "directory":
        path.mkdir()
    with pytest.raises(BlockFileError, match="cannot be used"):
        BlockFile(path).open()
