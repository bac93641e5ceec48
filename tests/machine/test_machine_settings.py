"""What image builds take over from the machine they run on."""

import importlib.util
from pathlib import Path

import pytest

_specification = importlib.util.spec_from_file_location(
    "machine_settings", Path(__file__).with_name("machine_settings.py")
)
assert _specification
assert _specification.loader
machine_settings = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(machine_settings)

DEB822 = """\
# a comment
Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb
# in the middle of a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
"""


def mirror(apt: Path) -> str | None:
    answer: str | None = machine_settings.debian_mirror(machine_settings.debian_mirrors(apt))
    return answer


def apt_with(directory: Path, **files: str) -> Path:
    (directory / "sources.list.d").mkdir()
    for name, text in files.items():
        (directory / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return directory


def test_the_mirror_of_a_deb822_file_is_its_enabled_binary_release(tmp_path: Path) -> None:
    assert mirror(apt_with(tmp_path, debian_sources=DEB822)) == "http://mirror.example/debian"


@pytest.mark.parametrize(
    "line",
    [
        "deb http://mirror.example/debian bookworm main",
        "deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian bookworm main contrib",
    ],
)
def test_the_mirror_of_a_one_line_file_is_found_with_and_without_options(tmp_path: Path, line: str) -> None:
    apt = apt_with(tmp_path)
    (apt / "sources.list").write_text(f"# deb http://commented.example/debian bookworm main\n{line}\n")
    assert mirror(apt) == "http://mirror.example/debian"


def test_another_vendors_packages_are_no_debian_mirror(tmp_path: Path) -> None:
    assert mirror(apt_with(tmp_path, vendor_list="deb https://vendor.example/node_20.x nodistro main\n")) is None


def test_disabled_files_are_not_read(tmp_path: Path) -> None:
    assert mirror(apt_with(tmp_path, debian_sources_disabled=DEB822)) is None


def test_pip_settings_come_from_the_users_file_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / ".config/pip/pip.conf"
    file.parent.mkdir(parents=True)
    file.write_text("[global]\nindex-url = https://first.example/simple\ntrusted-host = first.example\ntimeout = 9\n")
    text = machine_settings.pip_configuration({"PIP_INDEX_URL": "https://second.example/simple"}, tmp_path)
    assert "index-url = https://second.example/simple\n" in text
    assert "trusted-host = first.example\n" in text
    assert "timeout" not in text
    assert "https://first.example" not in text


def test_directories_of_this_machine_stay_out_of_an_image(tmp_path: Path) -> None:
    environment = {"PIP_FIND_LINKS": "/opt/wheels https://wheels.example/", "PIP_EXTRA_INDEX_URL": "file:///opt/simple"}
    text = machine_settings.pip_configuration(environment, tmp_path)
    assert "find-links = https://wheels.example/\n" in text
    assert "/opt" not in text
