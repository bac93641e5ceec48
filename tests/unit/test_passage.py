"""The short way to a restore's helper: taken where it is open, and never another's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.archive.unpack import STAGING, STREAM
from sidecar.errors import HelperEnded
from sidecar.jobs import passage as module
from sidecar.jobs.passage import passage


class ByTheEngine:
    """A helper, as far as the engine's connection leads to it."""

    def __init__(self) -> None:
        self.got = b""

    def send(self, data: bytes | memoryview) -> None:
        self.got += data

    def end(self) -> None:
        raise NotImplementedError

    def hear(self, timeout: float) -> bytes | None:
        raise NotImplementedError


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "VOLUMES_TARGET", str(tmp_path / "volumes"))
    staging = tmp_path / "volumes/db/_data" / STAGING
    staging.mkdir(parents=True)
    return staging


@pytest.fixture
def reader(staging: Path) -> Iterator[int]:
    os.mkfifo(staging / STREAM)
    descriptor = os.open(staging / STREAM, os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def sent(data: bytes) -> bytes:
    """What of it the engine has had to carry."""
    helper = ByTheEngine()
    with passage("db", helper, lambda: None) as send:
        send(data)
    return helper.got


def test_what_is_sent_goes_through_the_fifo_whole_and_its_end_is_seen(reader: int) -> None:
    data = os.urandom(3_000_000)
    os.set_blocking(reader, True)
    got = bytearray()

    def read() -> None:
        while piece := os.read(reader, 1 << 20):
            got.extend(piece)

    with passage("db", ByTheEngine(), lambda: None) as send:
        thread = threading.Thread(target=read)
        thread.start()
        send(data)
    thread.join(30)
    assert bytes(got) == data


def test_a_helper_that_is_gone_is_noticed(reader: int) -> None:
    with passage("db", ByTheEngine(), lambda: None) as send:
        os.dup2(os.open("/dev/null", os.O_RDONLY), reader)
        with pytest.raises(HelperEnded):
            send(b"x")


def test_who_waits_for_a_helper_that_takes_nothing_can_be_told_to_stop(
    reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    with passage("db", ByTheEngine(), stop) as send, pytest.raises(Stop):
        send(bytes(10_000_000))


def test_where_no_fifo_is_read_from_the_engine_carries_it(staging: Path) -> None:
    assert sent(b"x") == b"x"
    os.mkfifo(staging / STREAM)
    assert sent(b"x") == b"x"


def test_a_file_that_lies_in_its_place_is_left_alone(staging: Path) -> None:
    (staging / STREAM).write_bytes(b"precious")
    assert sent(b"x") == b"x"
    assert (staging / STREAM).read_bytes() == b"precious"


@pytest.mark.parametrize("which", ["the fifo", "its directory"])
def test_a_symlink_on_the_way_is_not_followed(staging: Path, reader: int, tmp_path: Path, which: str) -> None:
    if which == "the fifo":
        (staging / STREAM).rename(tmp_path / "elsewhere")
        (staging / STREAM).symlink_to(tmp_path / "elsewhere")
    else:
        staging.rename(tmp_path / "elsewhere")
        staging.symlink_to(tmp_path / "elsewhere")
    assert sent(b"x") == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_fifo_is_not_ours(staging: Path, reader: int) -> None:
    os.chown(staging / STREAM, 4242, 4242)
    assert sent(b"x") == b"x"
