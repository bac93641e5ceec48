"""What a harmless copy of a container is: from its inspection to the request that makes the copy. Pure.

It is like its model in all that its program sees of itself, and has none of what reaches beyond it: no network, no
privilege, no device, no name space of the host's, nothing writable but the volumes that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidecar.model import Mount
from sidecar.sets import without_secrets

# Docker's own (moby, oci/caps/defaults.go), and those that only concern memory and priority. With any other (SYS_ADMIN,
# DAC_READ_SEARCH) root in the copy could write to what it has read-only, or read what it was not given.
_CAPABILITIES = frozenset(
    [
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
        *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT", "IPC_LOCK", "SYS_NICE", "SYS_RESOURCE"),
    ]
)
_LIKE = ("Cmd", "Entrypoint", "Env", "Hostname", "OpenStdin", "StopSignal", "StopTimeout", "Tty", "User", "WorkingDir")
_HOST_LIKE = (
    *("CapDrop", "CpuPeriod", "CpuQuota", "GroupAdd", "Init", "NanoCpus", "ReadonlyRootfs", "ShmSize", "Sysctls"),
    *("Tmpfs", "Ulimits"),
)

# Nanoseconds. Checks are asked every 30 s by default, and somebody waits for a copy.
_SECOND = 1_000_000_000
_ASKED_EVERY, _ASKED_BY_DEFAULT = 2 * _SECOND, 30 * _SECOND
_MOST_PROCESSES = 4096


def copy_of(
    facts: Mapping[str, Any], *, mounts: Sequence[Mount], labels: Mapping[str, str], memory: int
) -> dict[str, Any]:
    """The body of POST /containers/create, from GET /containers/ID/json of the model; see the engine's port, `copy`."""
    configuration, host = facts["Config"], facts["HostConfig"]
    own_memory = host.get("Memory") or 0
    body = {key: configuration[key] for key in _LIKE if configuration.get(key) is not None}
    body |= {
        "Image": facts["Image"],  # what its name stood for when the model was made
        "Labels": dict(labels),
        "Healthcheck": _health_check(configuration.get("Healthcheck") or {}),
        "HostConfig": {
            **{key: host[key] for key in _HOST_LIKE if host.get(key)},
            "Mounts": [*map(_mount, mounts), *_memory_mounts(host)],
            "NetworkMode": "none",
            "CapAdd": [each for each in _capabilities(host) if each in _CAPABILITIES],
            "SecurityOpt": [each for each in host.get("SecurityOpt") or () if each.startswith("no-new-privileges")],
            "Memory": own_memory or memory,
            "MemorySwap": host.get("MemorySwap") if own_memory else 0,
            "PidsLimit": host.get("PidsLimit") or _MOST_PROCESSES,
            # Whoever serves somebody goes first; and if memory runs out, the copy does.
            "CpuShares": 256,
            "OomScoreAdj": 500,
            # Its words are wanted when it has ended, and nobody else's log is to get them.
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        },
    }
    return body


def withheld(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a container has that a copy of it does not get, in words; a network is not among it, which none gets."""
    host = facts["HostConfig"]
    kept_back = ["privileged"] if host.get("Privileged") else []
    kept_back += [f"capability {each}" for each in _capabilities(host) if each not in _CAPABILITIES]
    kept_back += [f"device {each['PathOnHost']}" for each in host.get("Devices") or ()]
    kept_back += ["devices"] if host.get("DeviceRequests") else []
    spaces = [("PidMode", "processes"), ("IpcMode", "shared memory"), ("UTSMode", "host name")]
    kept_back += [f"the host's {what}" for key, what in spaces if host.get(key) == "host"]
    return tuple(kept_back)


def blotting(environment: Sequence[str]) -> Callable[[str], str]:
    """A function that takes out of a text the values which look like secrets in an environment (`NAME=VALUE`)."""
    given = dict(each.partition("=")[::2] for each in environment)
    # A short one could be any word: blotting `no` out of a log helps nobody.
    secret = {value: shown for name, value in given.items() if (shown := without_secrets({name: value})[name]) != value}
    longest_first = sorted((value for value in secret if len(value) >= 4), key=len, reverse=True)

    def blotted(text: str) -> str:
        for value in longest_first:
            text = text.replace(value, secret[value])
        return text

    return blotted


def has_health_check(configuration: Mapping[str, Any]) -> bool:
    """Whether a container's `Config` has a health check that is not switched off."""
    test = (configuration.get("Healthcheck") or {}).get("Test") or ["NONE"]
    return bool(test[0] != "NONE")


def _health_check(check: Mapping[str, Any]) -> dict[str, Any]:
    if not has_health_check({"Healthcheck": check}):
        return {"Test": ["NONE"]}
    kept = {key: check[key] for key in ("Test", "Timeout", "Retries", "StartPeriod") if check.get(key)}
    return {**kept, "Interval": min(check.get("Interval") or _ASKED_BY_DEFAULT, _ASKED_EVERY)}


def _capabilities(host: Mapping[str, Any]) -> list[str]:
    return [each.upper().removeprefix("CAP_") for each in host.get("CapAdd") or ()]


def _mount(mount: Mount) -> dict[str, Any]:
    if mount.kind == "volume":
        return {"Type": "volume", "Source": mount.volume, "Target": mount.target, "ReadOnly": not mount.writable}
    # What is mounted below a read-only bind would be writable all the same (tried).
    options = {"NonRecursive": True, "Propagation": "rprivate"}
    bind = {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": True}
    return {**bind, "BindOptions": options}


def _memory_mounts(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(each) for each in host.get("Mounts") or () if each.get("Type") == "tmpfs"]
