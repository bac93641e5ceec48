"""docker-compose.backup.yml hands every setting on, and keeps the container as locked up as it is documented."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import SETTINGS

FILE = Path(__file__).parents[2] / "docker-compose.backup.yml"

# The host's directory, mounted at the fixed place; a test's switch.
NOT_HANDED_ON = {"BACKUP_LOCAL_DIR", "BACKUP_TEST_STAGE"}


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    found: dict[str, Any] = document["services"]["backup"]
    return found


def test_every_setting_reaches_the_container(service: dict[str, Any]) -> None:
    handed_on = {entry.split("=", 1)[0] for entry in service["environment"]}
    assert {setting.name for setting in SETTINGS} - NOT_HANDED_ON <= handed_on


def test_no_setting_has_a_value_of_its_own_but_the_engines_address(service: dict[str, Any]) -> None:
    """What is not set where Compose runs must stay unset, so that the program's defaults and warnings apply."""
    assert [entry.split("=", 1)[0] for entry in service["environment"] if "=" in entry] == ["DOCKER_HOST"]


def test_the_container_is_locked_up(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["cap_add"] == ["DAC_READ_SEARCH"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"ports", "privileged", "network_mode", "pid", "user"} & service.keys()


def test_volumes_are_mounted_for_reading_only(service: dict[str, Any]) -> None:
    mounts = [entry for entry in service["volumes"] if ":/volumes:" in entry]
    assert len(mounts) == 1
    assert mounts[0].split(":/volumes:")[1].startswith("ro,")
