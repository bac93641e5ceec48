"""Reads what this machine's owner has set for its package managers, so that image builds reach the same places.

Nothing read here is ever committed: it goes into the local base image only. Standard library alone, because it runs
before anything is installed. Usage: machine_settings.py debian-mirror | pip-configuration.
"""

import configparser
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# Settings that say where packages come from. Others (timeouts, colours) are the machine's own business.
PIP_SOURCES = ("index-url", "extra-index-url", "find-links", "trusted-host")


def debian_mirrors(apt: Path = Path("/etc/apt")) -> Iterator[tuple[str, str]]:
    """Yield (suite, address) of every enabled binary source, deb822 files and one-line files alike."""
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources" and path.is_file():
            lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
            for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
                fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE))
                if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes").lower() == "no":
                    continue
                for suite in fields.get("Suites", "").split():
                    for address in fields.get("URIs", "").split():
                        yield suite, address
        elif path.suffix == ".list" and path.is_file():
            for line in path.read_text().splitlines():
                if match := re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)\s", line):
                    yield match[2], match[1]


def debian_mirror(sources: Iterator[tuple[str, str]]) -> str | None:
    """Return the address that serves a whole Debian release, not its updates nor another vendor's packages."""
    releases = ("bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable")
    for suite, address in sources:
        if suite in releases and re.search(r"/debian(/|$)", address):
            return address
    return None


def pip_configuration(environment: Mapping[str, str], home: Path) -> str:
    """Return a pip.conf that points to the machine's own package index; the files' order is pip's, the last one wins.

    Directories of this machine are left out: they do not exist inside an image, and pip would warn at every use.
    """
    values: dict[str, str] = {}
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
    ]
    parser = configparser.RawConfigParser()
    parser.read([*files, *filter(None, [environment.get("PIP_CONFIG_FILE")])])
    for section in ("global", "install"):
        if parser.has_section(section):
            values |= {key: value for key, value in parser.items(section) if key in PIP_SOURCES}
    for key in PIP_SOURCES:
        if value := environment.get("PIP_" + key.upper().replace("-", "_")):
            values[key] = value
    lines = ["[global]"]
    for key, value in sorted(values.items()):
        remote = [item for item in value.split() if key == "trusted-host" or item.startswith(("http://", "https://"))]
        if remote:
            lines.append(f"{key} = {' '.join(remote)}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the answer to the one question asked."""
    match sys.argv[1:]:
        case ["debian-mirror"]:
            mirror = os.environ.get("DEBIAN_MIRROR") or debian_mirror(debian_mirrors())
            if mirror is None:
                return 1
            print(mirror)
        case ["pip-configuration"]:
            print(pip_configuration(os.environ, Path.home()), end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
