"""The file of a shared table: made, found again, refused with what was found, what was expected and what to do."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shield import Policy, PolicyError, ReceiptError, Request, Shield, StoreError
from shield.core import MappedFile, Mapping, Registry, SharedTable
from shield.store import StoreURLError, open_store
from shield.store.shared import PrivateTable, SharedStore, remove_table, table_path, tables

POLICY = Policy.parse(
    'version = 1\nname = "files"\n'
    '[[limit]]\nname = "b"\nkey = ["user"]\nrate = "5/h"\ncost = "request"\n'
    '[[limit]]\nname = "p"\nkey = ["user"]\nalgorithm = "concurrency"\nlimit = 3\n'
)
SMALL = "max_keys=100&max_leases=50&max_receipts=20&max_nonces=10"
# Where the header has its fields.
BYTE_ORDER, LAYOUT, SIZE, MAX_KEYS, PROBES, CLOCK = 8, 12, 16, 24, 56, 96
LAYOUT_NOW, HEADER_BYTES = 2, 4096


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"shared://orders?{SMALL}&dir={tmp_path}"


@pytest.fixture
def path(url: str) -> Path:
    """The file of a table that was made and is used by nobody."""
    SharedStore(url)
    return table_path(url)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def refusal(url: str) -> str:
    with pytest.raises(StoreURLError) as refused:
        SharedStore(url)
    return str(refused.value)


# ---- made and found again -------------------------------------------------------------------------------------------


def test_a_table_is_one_file_for_its_owner_alone_and_all_of_it_is_there(url, path):
    found = path.stat()
    assert path.name == "shield-orders.table"
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_blocks * 512 >= found.st_size == MappedFile.size_bytes(100, 50, 20, 10)
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"


async def test_a_restart_finds_what_was_spent_and_accepts_receipts_and_leases(url):
    before = Shield(POLICY, url)
    decision = before.check_nowait(Request(user="u", cost=4))
    await before.close()
    after = Shield(POLICY, url)
    assert after.check_nowait(Request(user="u", cost=1)).limits[0].remaining == 0
    assert await after.release(decision.leases) == 1
    assert await after.report(decision.receipt, cost=1)
    assert not await before.report(decision.receipt, cost=1)


async def test_another_table_accepts_neither(url):
    here, there = Shield(POLICY, url), Shield(POLICY, url.replace("orders", "others"))
    decision = here.check_nowait(Request(user="u", cost=4))
    assert there.check_nowait(Request(user="u", cost=4)).limits[0].remaining == 1
    assert await there.release(decision.leases) == 0
    with pytest.raises(ReceiptError):
        await there.report(decision.receipt, cost=1)


def test_options_that_are_not_given_are_those_of_the_file(url, path):
    assert SharedStore(f"shared://orders?dir={path.parent}").table.max_keys == 100


@pytest.mark.parametrize(
    ("option", "made"),
    [("max_keys=200", 100), ("max_leases=51", 50), ("max_receipts=1", 20), ("max_nonces=11", 10)],
    ids=lambda value: value,
)
def test_another_geometry_is_refused(path, option, made):
    name, asked = option.split("=")
    told = refusal(f"shared://orders?{option}&dir={path.parent}")
    assert told.startswith(f"shared://: {name}: the table {path} was made with {made}, and {asked} is asked for")


def test_processes_that_make_it_at_the_same_time_end_with_one(tmp_path):
    code = (
        "import sys; from shield.store.shared import SharedStore\n"
        "sys.stdin.readline(); print(SharedStore(sys.argv[1]).secret.hex())"
    )
    url = f"shared://race?{SMALL}&dir={tmp_path}"
    running = [
        subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    secrets = {process.communicate(timeout=60)[0] for process in running}
    assert len(secrets) == 1
    assert secrets.pop().strip()
    assert len(list(tmp_path.iterdir())) == 1


def test_without_nameless_files_a_temporary_name_is_used_and_removed(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    SharedStore(f"shared://named?{SMALL}&dir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["shield-named.table"]


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "data", "told"),
    [
        (0, b"SQLite f", "it begins with b'SQLite f', not with b'SHIELDTB': it is no table of Shield's"),
        (BYTE_ORDER, b"\1\2\3\4", "another byte order"),
        (LAYOUT, b"\7\0\0\0", f"it has layout 7, and this release of Shield reads layout {LAYOUT_NOW}"),
        (SIZE, b"\0" * 8, "it was cut off or enlarged"),
        (MAX_KEYS, b"\0" * 8, "max_keys must be from 1 to"),
        (MAX_KEYS, b"\xff" * 8, "max_keys must be from 1 to"),
        (PROBES, b"\x10", "it has 16 probes"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(url, path, offset, data, told):
    patch(path, offset, data)
    error = refusal(url)
    assert error.startswith(f"{path} cannot be used as a shared table: ")
    assert told in error
    assert error.endswith("Use another name, or remove the file while nobody uses it")


@pytest.mark.parametrize("size", [0, 1, 100, HEADER_BYTES - 1, HEADER_BYTES, 100_000, -1])
def test_a_file_that_was_cut_off_or_enlarged_is_refused(url, path, size):
    whole = path.stat().st_size
    os.truncate(path, size if size >= 0 else whole + 4096)
    assert str(path) in refusal(url)


def test_files_that_others_can_write_or_that_are_none_are_refused(url, path):
    path.chmod(0o660)
    assert "others may use it (mode 0660, expected 0600)" in refusal(url)
    path.chmod(0o600)
    moved = path.rename(path.with_suffix(".moved"))
    path.symlink_to(moved)
    with pytest.raises(StoreError, match="symbolic link"):
        SharedStore(url)
    path.unlink()
    os.mkfifo(path)
    assert "it is no regular file" in refusal(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(url, path):
    os.chown(path, 65534, 65534)
    assert "it belongs to user 65534, and this process runs as user 0" in refusal(url)


def test_a_missing_directory_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"there is no directory .*gone; \?dir= chooses another"):
        SharedStore(f"shared://orders?dir={tmp_path / 'gone'}")
    with pytest.raises(StoreError, match="Not a directory"):
        SharedStore(f"shared://orders?dir={__file__}")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than a table needs, where we may mount one; else a limit on the size of files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield disk
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_at_the_start_and_leaves_nothing(tiny_disk):
    with pytest.raises(StoreError, match=r"the table is allocated whole; free some, ask for a smaller max_keys"):
        SharedStore(f"shared://orders?dir={tiny_disk}")
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("shared://", "followed by the table's name"),
        ("shared:///tmp/x", "followed by the table's name"),
        ("shared://a/b", "followed by the table's name"),
        ("shared://../x", "followed by the table's name"),
        ("shared://user:pw@x", "followed by the table's name"),
        ("shared://" + "x" * 65, "followed by the table's name"),
        ("shared://x?max_keys=0", "max_keys: found 0; allowed: 1 to 1000000000"),
        (
            "shared://x?max_key=5",
            "unknown option 'max_key'; known are dir, max_keys, max_leases, max_nonces, max_receipts",
        ),
    ],
)
def test_urls_that_are_none(url, told):
    with pytest.raises(StoreURLError, match=told):
        open_store(url)


# ---- the clock ------------------------------------------------------------------------------------------------------


def test_a_table_from_before_a_reboot_goes_on_from_the_wall_clocks_time(url, path):
    """Boot time begins anew; buckets do not."""
    now = Shield(POLICY, url)
    assert now.check_nowait(Request(user="u", cost=5)).allowed
    before_us = now.store.table.now_us()
    patch(path, CLOCK, b"\5\0\0\0\0\0\0\0" + (10**15).to_bytes(8, "little"))  # another boot, with another offset
    after = Shield(POLICY, url)
    assert abs(after.store.table.now_us() - before_us) < 60 * 10**6
    refused = after.check_nowait(Request(user="u", cost=5))
    assert not refused.allowed
    assert 3000 < refused.retry_after <= 3600


def test_another_time_namespace_is_refused(url, path):
    """Its boot clock is not ours, so instants would mean different things."""
    patch(path, CLOCK + 16, b"\1")
    assert "it is in use in another time namespace" in refusal(url)


def test_instants_have_a_bound(url):
    shield = Shield(POLICY, url, clock=lambda: 2**52 * 1000)
    with pytest.raises(OverflowError, match="past the year 2112"):
        shield.check_nowait(Request(user="u"))


# ---- what a policy may ask of it ------------------------------------------------------------------------------------


def bucket(name: str, rate: str) -> str:
    return f'[[limit]]\nname = "{name}"\nkey = ["user"]\nrate = "{rate}"\nburst = 10\n'


async def test_more_units_than_a_limit_can_have_are_an_error_of_the_policy(url):
    """Ten periods of more than a day can be told apart, for one limit of one file. Old numbers stay in force."""
    shield = Shield(Policy.parse(f'version = 1\nname = "p"\n{bucket("b", "1/30d")}'), url)
    assert shield.check_nowait(Request(user="u")).allowed
    for days in range(2, 11):
        await shield.replace_policy(Policy.parse(f'version = 1\nname = "p"\n{bucket("b", f"1/{days}d")}'))
    await shield.replace_policy(Policy.parse(f'version = 1\nname = "p"\n{bucket("b", "1/30d")}'))
    with pytest.raises(PolicyError, match="limit 'b': it has had 10 rates of different periods longer than a day"):
        await shield.replace_policy(Policy.parse(f'version = 1\nname = "p"\n{bucket("b", "1/11d")}'))
    assert shield.check_nowait(Request(user="u")).limits[0].remaining == 8
    await shield.replace_policy(Policy.parse(f'version = 1\nname = "p"\n{bucket("b", "1/h")}'))
    assert shield.check_nowait(Request(user="u")).limits[0].remaining == 7


def test_more_limits_than_a_file_can_know_are_an_error_of_the_policy(url):
    for first in range(0, 4096, 1024):
        limits = "".join(bucket(f"b{i}", "1/s") for i in range(first, first + 1024))
        Shield(Policy.parse(f'version = 1\nname = "many"\n{limits}'), url)
    with pytest.raises(PolicyError, match="limit 'one-more': the shared table has seen 4096 limits"):
        Shield(Policy.parse(f'version = 1\nname = "many"\n{bucket("one-more", "1/s")}'), url)
    Shield(Policy.parse(f'version = 1\nname = "many"\n{bucket("b7", "1/m")}'), url)


# ---- operators and supervisors --------------------------------------------------------------------------------------


def test_a_private_table_is_removed_by_its_maker_and_a_killed_makers_by_the_next(tmp_path):
    code = (
        "import os, sys; from shield.store.shared import PrivateTable\n"
        "print(PrivateTable(max_keys=9, dir=sys.argv[1]).url, flush=True); os.kill(os.getpid(), 9)"
    )
    left = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True).stdout.strip()
    assert table_path(left).exists()
    with PrivateTable(max_keys=9, dir=str(tmp_path)) as table:
        assert not table_path(left).exists()
        store = SharedStore(table.url)
        with PrivateTable(max_keys=9, dir=str(tmp_path)):
            assert table.path.exists(), "it is in use"
    assert not table.path.exists()
    assert Shield(POLICY, store).check_nowait(Request(user="u")).allowed, "who is attached goes on"


def test_operators_see_every_table_and_remove_one(url, path, tmp_path):
    Shield(POLICY, url).check_nowait(Request(user="u"))
    gc.collect()  # nobody has that table any more
    (tmp_path / "shield-broken.table").write_bytes(b"x" * 5000)
    (tmp_path / "shield-broken.table").chmod(0o600)
    broken, orders = tables(tmp_path)
    assert "it is no table of Shield's" in broken["error"]
    assert (orders["name"], orders["keys"], orders["attached"]) == ("orders", 1, False)
    store = SharedStore(url)
    assert list(tables(tmp_path))[1]["attached"]
    assert remove_table(url)
    assert not remove_table(url)
    assert store.ready


def test_a_full_table_meets_newcomers_as_each_limit_says(tmp_path):
    limits = "".join(
        f'[[limit]]\nname = "{w}"\nkey = ["{k}"]\nrate = "2/h"\nwhen_full = "{w}"\n'
        for w, k in (("share", "user"), ("deny", "tenant"), ("allow", "ip"))
    )
    shield = Shield(
        Policy.parse('version = 1\nname = "full"\n' + limits),
        f"shared://full?max_keys=1&max_leases=1&max_receipts=1&dir={tmp_path}",
        clock=lambda: 10**18,
    )
    assert all(shield.check_nowait(Request(user=f"first{i}")).allowed for i in range(32))
    shared = [shield.check_nowait(Request(user=f"u{i}")) for i in range(3)]
    assert [d.allowed for d in shared] == [True, True, False]
    denied = shield.check_nowait(Request(tenant="t"))
    assert (denied.reason, denied.status, denied.violated) == ("store_full", 503, ["deny"])
    passed = shield.check_nowait(Request(ip="192.0.2.1"))
    assert (passed.allowed, passed.degraded) == (True, True)
    counts = shield.stats()
    assert (counts["full_shared"], counts["full_denied"], counts["full_allowed"]) == (3, 1, 1)
    assert shield.check_nowait(Request(user="first0")).limits[0].remaining == 0, "who was there first lost nothing"


def test_places_and_receipts_have_bounds_of_their_own(tmp_path):
    shield = Shield(POLICY, f"shared://b?max_keys=999&max_leases=1&max_receipts=1&dir={tmp_path}", clock=lambda: 10**18)
    decisions = [shield.check_nowait(Request(user=f"u{i}")) for i in range(40)]
    assert [d.allowed for d in decisions] == [True] * 32 + [False] * 8
    assert (decisions[-1].reason, decisions[-1].status) == ("store_full", 503)
    assert shield.stats()["leases"] == 32


async def test_settled_receipts_are_bounded_and_make_room_when_they_expire(tmp_path):
    now = [10**18]
    shield = Shield(POLICY, f"shared://r?max_keys=999&max_receipts=1&dir={tmp_path}", clock=lambda: now[0])
    receipts = [shield.check_nowait(Request(user=f"u{i}")).receipt for i in range(33)]
    for receipt in receipts[:32]:
        assert await shield.report(receipt, cost=0)
    with pytest.raises(StoreError, match="max_receipts"):
        await shield.report(receipts[32], cost=0)
    now[0] += 299 * 10**9
    later = shield.check_nowait(Request(user="v")).receipt
    now[0] += 2 * 10**9
    assert await shield.report(later, cost=0)


def test_a_registry_of_this_process_alone_makes_no_shared_table():
    with pytest.raises(ValueError, match="mapped file"):
        SharedTable(Registry())


# ---- in memory ------------------------------------------------------------------------------------------------------


def test_a_mapping_is_the_file_and_begins_where_a_huge_page_may(tmp_path):
    huge = 2 << 20
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(2 * huge + 5)
        mapping = Mapping(file.fileno(), 2 * huge + 5)
        assert mapping.use_huge_pages() in (True, False)
        file.seek(2 * huge + 4)
        file.write(b"x")
        file.flush()
    view = memoryview(mapping)
    assert ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % huge == 0
    assert view[2 * huge + 4] == ord("x")
    del mapping  # a view keeps it
    view[0] = ord("y")
    assert (tmp_path / "file").read_bytes()[:1] == b"y"


def test_what_cannot_be_mapped_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        Mapping(0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping(-1, 10)
