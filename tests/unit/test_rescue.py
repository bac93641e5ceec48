"""Telling the kernel's freezer, in the trees that cgroups v1 and v2 show."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.engine.rescue import Order, tell_kernel

DATABASE = "149b1821e0bc96bcfff24fc593d4518dde79f11a9072545c045e1829cf66d47f"
OTHER = "2379ae1e3378ebb2c5f5af77709b5f4d04b3b4472538cad6b165ba52a16edc92"


def frozen(root: Path, directory: str, name: str, word: str) -> Path:
    path = root / directory / name
    path.parent.mkdir(parents=True)
    path.write_text(word)
    return path


@pytest.mark.parametrize(
    "place",
    ["freezer/docker/{}", "freezer/system.slice/docker-{}.scope", "freezer/kubepods/pod7/{}"],
)
def test_version_1_is_told_in_the_freezers_hierarchy(tmp_path: Path, place: str) -> None:
    ours = frozen(tmp_path, place.format(DATABASE), "freezer.state", "FROZEN")
    others = frozen(tmp_path, place.format(OTHER), "freezer.state", "FROZEN")
    (tmp_path / "memory" / "docker" / DATABASE).mkdir(parents=True)
    assert tell_kernel(Order.THAW, DATABASE, tmp_path) == [str(ours)]
    assert (ours.read_text(), others.read_text()) == ("THAWED", "FROZEN")
    tell_kernel(Order.FREEZE, DATABASE, tmp_path)
    assert ours.read_text() == "FROZEN"


@pytest.mark.parametrize("place", ["docker/{}", "system.slice/docker-{}.scope"])
def test_version_2_is_told_in_the_only_one(tmp_path: Path, place: str) -> None:
    ours = frozen(tmp_path, place.format(DATABASE), "cgroup.freeze", "1")
    others = frozen(tmp_path, place.format(OTHER), "cgroup.freeze", "1")
    assert tell_kernel(Order.THAW, DATABASE, tmp_path) == [str(ours)]
    assert (ours.read_text(), others.read_text()) == ("0", "1")
    tell_kernel(Order.FREEZE, DATABASE, tmp_path)
    assert ours.read_text() == "1"


def test_a_container_that_has_no_cgroup_any_more_needs_nothing(tmp_path: Path) -> None:
    frozen(tmp_path, f"docker/{OTHER}", "cgroup.freeze", "1")
    assert tell_kernel(Order.THAW, DATABASE, tmp_path) == []
