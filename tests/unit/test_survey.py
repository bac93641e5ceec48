"""A look over a volume: its size, its age, its top, and no way out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.archive.survey import survey
from sidecar.errors import VolumeUnavailable


def test_size_age_and_the_names_of_the_top_two_levels(tmp_path: Path) -> None:
    (tmp_path / "base" / "1" / "deep").mkdir(parents=True)
    (tmp_path / "PG_VERSION").write_text("16\n")
    (tmp_path / "base" / "1" / "deep" / "data").write_bytes(b"x" * 10_000)
    os.utime(tmp_path / "PG_VERSION", (1_000, 1_000))
    os.utime(tmp_path / "base" / "1" / "deep" / "data", (2_000, 2_000))

    seen = survey(str(tmp_path), most=1_000, read=("PG_VERSION",), now=3_000)

    assert sorted(seen.names) == ["PG_VERSION", "base/", "base/1/"]
    assert seen.texts == {"PG_VERSION": "16\n"}
    assert (seen.files, seen.size, seen.newest, seen.whole) == (2, 10_003, 2_000.0, True)


def test_a_file_from_the_future_tells_no_age(tmp_path: Path) -> None:
    for name, moment in (("now", 3_000), ("future", 3_001)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (moment, moment))

    assert survey(str(tmp_path), most=1_000, read=(), now=3_000).newest == 3_000


def test_a_bound_that_is_hit_is_said(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"file-{number}").write_bytes(b"x" * 100)

    seen = survey(str(tmp_path), most=7, read=(), now=3_000)

    assert (seen.files, seen.size, seen.whole) == (7, 700, False)


def test_a_tree_deeper_than_the_bound_is_not_whole_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 100)).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))

    assert not survey(str(tmp_path), most=1_000, read=(), now=3_000).whole
    assert len(os.listdir("/proc/self/fd")) == before


def test_symlinks_and_pipes_are_neither_followed_nor_opened(tmp_path: Path) -> None:
    outside, volume = tmp_path / "outside", tmp_path / "volume"
    outside.mkdir()
    volume.mkdir()
    (outside / "secret").write_text("17\n")
    (volume / "link").symlink_to(outside)
    (volume / "PG_VERSION").symlink_to(outside / "secret")
    (volume / "below").mkdir()
    os.mkfifo(volume / "below" / "PG_VERSION")  # to open it would wait for a writer for ever

    seen = survey(str(volume), most=1_000, read=("PG_VERSION",), now=3_000)

    assert (seen.files, seen.texts, seen.whole) == (0, {}, True)
    assert sorted(seen.names) == ["PG_VERSION", "below/", "below/PG_VERSION", "link"]


def test_a_root_that_is_not_there_or_a_symlink_is_a_failure_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("gone", "link"):
        with pytest.raises(VolumeUnavailable, match="cannot be opened") as caught:
            survey(str(tmp_path / name), most=10, read=(), now=3_000)
        assert caught.value.hint
