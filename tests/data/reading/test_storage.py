import gc
import logging
import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import fsspec
import numpy as np
import pytest

from pixelhdm.data.reading import local, remote
from pixelhdm.data.reading.local import ReadError
from pixelhdm.data.reading.storage import Storage, expand, is_local
from pixelhdm.errors import UserError
from tests.data.reading.servers import S3_ENVIRONMENT, WebServer, s3_server

DATA = np.random.default_rng(0).bytes(300_000)
TRANSIENT = [429, 500, 503, "stall", "stall_in_body", "reset", "truncate"]
QUICK = Storage(tries=3, timeout=0.2, wait=0.002)


@pytest.fixture
def server():
    with WebServer({"/bucket/a.tar": DATA, "/bucket/empty.tar": b""}) as running:
        yield running


@pytest.fixture(params=["http", "s3"])
def address(request, server, monkeypatch):
    """The address of the server's tar, as a web server's and as an object store's."""
    if request.param == "http":
        return f"{server.url}/bucket/a.tar"
    for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/a.tar"


def fresh() -> Storage:
    return pickle.loads(pickle.dumps(QUICK))


def failure(action, *arguments) -> ReadError:
    with pytest.raises(ReadError) as caught:
        action(*arguments)
    return caught.value


def check_exact(storage: Storage, path: str) -> None:
    for offset, length in [(0, 1), (512, 1000), (len(DATA) - 7, 7), (0, len(DATA)), (9, 0)]:
        assert storage.read(path, offset, length) == DATA[offset : offset + length]
    assert storage.size(path) == len(DATA)
    assert storage.read_whole(path) == DATA


# Exact bytes


@pytest.mark.parametrize("name", ["a.tar", "a#1.tar", "what?.tar", "a b%20é.tar", "{1,2}.tar"])
def test_local_bytes_are_exact(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DATA)
    check_exact(Storage(), str(path))
    assert expand(str(path)) == [str(path)]


def test_bytes_from_a_server_are_exact_and_take_one_request_each(address, server):
    check_exact(fresh(), address)
    assert len(server.requests) == 6  # nothing is asked for an empty read
    server.requests.clear()
    fresh().read(address, 512, 100)
    assert [tuple(request) for request in server.requests] == [
        ("GET", "/bucket/a.tar", "bytes=512-611")
    ]


def test_bytes_from_s3_are_exact_and_its_folders_listed(monkeypatch, caplog):
    strange = "shards/a/x#1 ?b%20+é.tar"
    objects = {f"shards/a/{n}.tar": DATA for n in range(3)}
    objects |= {strange: DATA, "shards/a/0.json": b"{}", "shards/a/b/9.tar": DATA}
    objects |= {"shards/empty.tar": b""}
    with s3_server(objects) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage = fresh()
        check_exact(storage, "s3://shards/a/0.tar")
        assert storage.read(f"s3://{strange}", 5, 20) == DATA[5:25]
        assert storage.size("s3://shards/empty.tar") == 0
        every = [f"s3://shards/a/{n}.tar" for n in range(3)]
        assert expand("s3://shards/a/", storage) == [*every, f"s3://{strange}"]
        assert expand("s3://shards/a/[0-9].tar", storage) == every
        assert expand("s3://shards/a/{0..2}.tar", storage) == every
        with pytest.raises(UserError, match="s3://shards/c/ must hold tars, got none"):
            expand("s3://shards/c/", storage)
        for path in ["s3://shards/b.tar", "s3://nowhere/b.tar"]:
            assert failure(storage.read, path, 0, 9).reason == "missing"
        assert failure(storage.read, every[0], len(DATA) + 9, 9).reason == "torn"
        assert failure(storage.read, every[0], len(DATA) - 9, 10).reason == "torn"
        caplog.set_level(logging.INFO, "werkzeug")
        caplog.clear()
        storage.read(every[0], 0, 9)
        assert len([r for r in caplog.records if "GET /shards" in r.getMessage()]) == 1


def test_bytes_from_fsspec_are_exact_and_its_folders_listed():
    files = fsspec.filesystem("memory")
    try:
        for name in ["a/0.tar", "a/1.tar", "a/0.json", "a/b/2.tar"]:
            files.pipe(f"/store/{name}", DATA)
        check_exact(Storage(), "memory://store/a/0.tar")
        both = ["memory://store/a/0.tar", "memory://store/a/1.tar"]
        assert expand("memory://store/a/") == expand("memory://store/a/*.tar") == both
        with pytest.raises(UserError, match="store/c/ must be a listable folder"):
            expand("memory://store/c/")
        assert failure(QUICK.read, "memory://store/c.tar", 0, 1).reason == "missing"
        assert failure(QUICK.read, both[0], len(DATA), 1).reason == "torn"
        assert failure(QUICK.read, both[0], len(DATA) + 9, 1).reason == "torn"
    finally:
        files.rm("/store", recursive=True)


def test_signed_and_quoted_addresses_reach_the_server_as_they_are(server):
    server.files |= {"/a b#1é.tar": DATA, "/c//d.tar": DATA}
    for path in ["/bucket/a.tar?sig=a%2Fb&x=1", "/a%20b%231%C3%A9.tar", "/c//d.tar"]:
        assert fresh().read(server.url + path, 3, 9) == DATA[3:12]
        assert expand(server.url + path) == [server.url + path]
        assert server.requests[-1].path == path


# Faults


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_is_retried_while_tries_last(address, server, fault):
    storage = fresh()
    for action, expected in [
        (lambda: storage.read(address, 1000, 5000), DATA[1000:6000]),
        (lambda: storage.read_whole(address), DATA),
        (lambda: storage.size(address), len(DATA)),
    ]:
        server.requests.clear()
        server.next_faults.extend([fault, fault])
        assert action() == expected
        is_unmet = fault in ("stall_in_body", "truncate") and expected == len(DATA)
        assert len(server.requests) == 3 or is_unmet


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_lasting_fault_ends_as_unreachable(address, server, fault):
    server.fault = fault
    start = time.monotonic()
    error = failure(fresh().read, address, 1000, 5000)
    assert error.reason == "unreachable"
    assert f"{address} could not be read in 3 tries" in str(error)
    assert str(fault) in str(error) or isinstance(fault, str)
    assert len(server.requests) == 3  # tries of our own and of obstore's do not multiply
    assert time.monotonic() - start < 3 * 0.2 + 0.3


def test_a_server_that_is_not_there_is_unreachable():
    with WebServer({}) as gone:
        pass
    error = failure(fresh().read, f"{gone.url}/a.tar", 0, 9)
    assert error.reason == "unreachable"
    assert "(Connect)" in str(error)


@pytest.mark.parametrize(("status", "reason"), [(404, "missing"), (410, "missing"), (416, "torn")])
def test_a_lasting_answer_is_not_asked_for_again(address, server, status, reason):
    server.fault = status
    assert failure(fresh().read, address, 0, 9).reason == reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_stops_at_once(address, server, status):
    server.fault = status
    with pytest.raises(UserError, match=rf"a\.tar must be readable, got: status {status}"):
        fresh().read(address, 0, 9)
    assert len(server.requests) == 1


def test_a_server_without_ranges_is_refused(address, server):
    server.fault = "no_range"
    for action in [lambda s: s.read(address, 0, 9), lambda s: s.size(address)]:
        with pytest.raises(UserError, match="must answer range requests, got the whole file"):
            action(fresh())
    assert len(server.requests) == 2
    assert fresh().read_whole(address) == DATA


def test_a_read_beyond_the_end_is_torn(address, server):
    storage = fresh()
    for offset in [len(DATA) - 5, len(DATA), len(DATA) + 99]:
        error = failure(storage.read, address, offset, 10)
        assert error.reason == "torn"
        assert address in str(error)
    assert len(server.requests) == 3
    assert storage.size(address.replace("a.tar", "empty.tar")) == 0


def test_local_errors_have_their_reasons(tmp_path):
    path = tmp_path / "a.tar"
    for action in [QUICK.read_whole, QUICK.size, lambda path: QUICK.read(path, 0, 9)]:
        error = failure(action, str(path))
        assert (error.reason, error.detail) == ("missing", f"{path} does not exist")
    path.write_bytes(DATA)
    storage = fresh()
    assert storage.read(str(path), 0, 10) == DATA[:10]
    os.truncate(path, 1000)  # under an open file
    error = failure(storage.read, str(path), 990, 20)
    assert error.reason == "torn"
    assert str(error) == f"{path} ends at byte 1000, before byte 1010"
    assert pickle.loads(pickle.dumps(error)).reason == "torn"


def test_local_errors_that_pass_are_retried(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(DATA)
    errors, pread = [OSError(5, "Input/output error"), OSError(116, "Stale file handle")], os.pread

    def failing(*arguments):
        if errors:
            raise errors.pop()
        return pread(*arguments)

    monkeypatch.setattr(local.os, "pread", failing)
    assert fresh().read(str(path), 10, 10) == DATA[10:20]
    errors += [OSError(5, "Input/output error")] * 9
    error = failure(fresh().read, str(path), 10, 10)
    assert error.reason == "unreachable"
    assert f"{path} could not be read in 3 tries, the last: [Errno 5] Input/output" in str(error)


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(local.os, "open", refuse)
    with pytest.raises(UserError, match=r"a\.tar must be readable, got: Permission denied"):
        QUICK.read(str(tmp_path / "a.tar"), 0, 1)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nothing://a/b.tar", "must have a scheme that fsspec can read"),
        ("s3:///b.tar", "must be a store that can be opened"),
        ("s3://bucket/../b.tar", "must be a valid address"),
    ],
)
def test_wrong_addresses_are_named(address, path, sentence):
    with pytest.raises(UserError, match=sentence):
        fresh().read(path, 0, 1)


def test_wrong_settings_are_named():
    for settings in [{"tries": 0}, {"max_open": 0}, {"timeout": 0.0}, {"wait": -1.0}]:
        with pytest.raises(UserError, match=f"{next(iter(settings))} .*must be|must be .*wait"):
            Storage(**settings)


# Threads and processes


def test_many_threads_read_many_files_with_few_open(tmp_path):
    for number in range(300):
        (tmp_path / f"{number}.tar").write_bytes(DATA[number : number + 2000])
    storage = Storage(max_open=4)

    def num_open() -> int:
        return len([d for d in os.listdir("/proc/self/fd") if is_shard(f"/proc/self/fd/{d}")])

    def is_shard(link: str) -> bool:
        return os.path.islink(link) and os.readlink(link).startswith(str(tmp_path))

    def reads(seed: int) -> bool:
        draw = np.random.default_rng(seed)
        for number, offset in zip(draw.permutation(300), draw.integers(0, 1900, 300), strict=True):
            expected = DATA[number + offset : number + offset + 100]
            if storage.read(str(tmp_path / f"{number}.tar"), int(offset), 100) != expected:
                return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(reads, range(16)))
    assert num_open() == 4
    del storage
    gc.collect()
    assert num_open() == 0


def test_many_threads_read_from_a_server_that_fails_now_and_then(address, server):
    server.next_faults.extend([None, 503, None, "reset", None, "truncate", "stall"] * 6)
    storage = Storage(tries=30, timeout=0.2, wait=0.002)
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda n: storage.read(address, n * 100, 100), range(200)))
    assert b"".join(parts) == DATA[:20_000]
    assert len(server.requests) == 200 + 6 * 4


def test_it_can_be_sent_to_another_process(tmp_path, address):
    path = tmp_path / "a.tar"
    path.write_bytes(DATA)
    storage = fresh()
    storage.read(str(path), 0, 9)
    storage.read(address, 0, 9)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(storage.read, str(path), 50, 9).result() == DATA[50:59]
        assert pool.submit(storage.read, address, 50, 9).result() == DATA[50:59]
        error = failure(pool.submit(storage.read, str(tmp_path / "b"), 0, 9).result)
    assert error.reason == "missing"
    assert pickle.loads(pickle.dumps(storage)) == storage


def test_a_forked_process_is_refused_not_hung(address, monkeypatch):
    monkeypatch.setattr(remote, "runtime_process", [os.getpid() + 1])
    with pytest.raises(UserError, match="must be read in a process that was not forked"):
        fresh().read(address, 0, 9)


def test_stalled_reads_do_not_hold_up_others(server):
    server.next_faults.extend(["stall"] * 8)
    storage, url = Storage(tries=2, timeout=0.5, wait=0.002), f"{server.url}/bucket/a.tar"
    threads = [threading.Thread(target=storage.read, args=(url, 0, 9)) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(server.requests) < 8:
        time.sleep(0.001)
    start = time.monotonic()
    assert storage.read(url, 0, 9) == DATA[:9]
    assert time.monotonic() - start < 0.4
    for thread in threads:
        thread.join()


# Names of shards


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["a/00.tar", "a/01.tar", "a/02.tar", "a/01.json", "b/x#?.tar", "c/0.tar.gz", "d/t"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("a", "a/00.tar a/01.tar a/02.tar"),
        ("a/", "a/00.tar a/01.tar a/02.tar"),
        ("a/*", "a/00.tar a/01.tar a/02.tar"),
        ("a/0[12].tar", "a/01.tar a/02.tar"),
        ("a/{00..02..2}.tar", "a/00.tar a/02.tar"),
        ("a/{02..00}.tar", "a/02.tar a/01.tar a/00.tar"),
        ("{b,a}/*.tar", "b/x#?.tar a/00.tar a/01.tar a/02.tar"),
        ("**/*.tar", "a/00.tar a/01.tar a/02.tar b/x#?.tar"),
        ("b/x#?.tar", "b/x#?.tar"),
        (["b", "a/{00,01}.tar"], "b/x#?.tar a/00.tar a/01.tar"),
        ("a/{02..03}.tar", "a/02.tar a/03.tar"),  # a missing one among others is the index's matter
        (
            "https://host/{a/{8..10},b}.tar",
            "https://host/a/8.tar https://host/a/9.tar https://host/a/10.tar https://host/b.tar",
        ),
        ("gs://bucket/{a..c}.tar", "gs://bucket/a.tar gs://bucket/b.tar gs://bucket/c.tar"),
    ],
)
def test_paths_are_expanded(shards, paths, expected):
    assert expand(paths) == expected.split()


def test_file_addresses_are_local(shards, tmp_path):
    assert expand(f"file://{tmp_path}/b/") == [f"{tmp_path}/b/x#?.tar"]
    assert is_local("a#b?/0.tar")
    assert not is_local("s3://a/0.tar")


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        ("nowhere", "nowhere must be a tar or a folder that exists, got neither"),
        ("a/01.json", r"a/01\.json must be a tar or a folder"),
        ("a/{03..05}.tar", r"must name tars that exist, got none"),
        ("a/*.zip", r"a/\*\.zip must hold tars, got none"),
        ("d", "d must hold tars, got none"),
        ([], "paths must name at least one tar"),
        ("a/{00..01.tar", "must have as many { as }"),
        ("c", r"c/0\.tar\.gz must not be compressed\. Re-shard it with main\.py prepare\."),
        ("c/0.tar.gz", r"Re-shard it with main\.py prepare"),
        ("https://host/0.tar.zst?sig=1", r"Re-shard it with main\.py prepare"),
        ("s3://bucket/a.TGZ", r"Re-shard it with main\.py prepare"),
        ("s3://bucket/a", "must end in .tar, or in a slash for a folder"),
        ("https://host/a/", r"for example https://host/a/\{00000\.\.00099\}\.tar, got a folder"),
        (["a", "a/{00,01}.tar"], r"each shard once, got a/00\.tar 2 times"),
    ],
)
def test_wrong_paths_are_named(shards, paths, sentence):
    with pytest.raises(UserError, match=sentence):
        expand(paths)
