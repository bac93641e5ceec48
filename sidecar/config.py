"""Settings from environment variables: one table, all mistakes at once, nothing ignored in silence. Pure.

`SETTINGS` is the one place where a setting is named; docs/SETTINGS.md is held against it by a test. This is not built
on pydantic-settings: the rules that matter here (`NAME_FILE`, both set, near misses, every mistake in words and without
a secret's value) would be ours to write either way.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta, tzinfo
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from sidecar import schedule as cron
from sidecar.errors import ConfigInvalid
from sidecar.model import Quiesce
from sidecar.schedule import Schedule

STAGES = ("planned", "copied", "journalled", "frozen", "thawed", "archived", "assembled", "committed")


@dataclass(frozen=True, slots=True)
class StageFault:
    """What a test wants at one stage of a run. action: `hold` (stay there) or `kill` (SIGKILL to ourselves)."""

    stage: str
    action: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked. None stands for "not set"; sizes are bytes.

    stores: `s3`, `local`, in the order given. http: (address, port). compression: ISA-L's level, 0 to 3.
    warnings: sentences for the start-up log and for every run's reader.
    """

    bucket: str | None
    region: str | None
    endpoint: str | None
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    max_attempts: int
    prefix: str
    host: str | None
    stores: tuple[str, ...]
    local_dir: str
    schedule: Schedule | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    quiesce: Quiesce
    max_pause: timedelta
    full_every: timedelta
    compression: int
    spool_max: int | None
    keep_local: int
    keep_s3: int
    age_recipients: tuple[str, ...]
    object_lock: str | None
    storage_class: str | None
    sse: str | None
    verify_schedule: Schedule | None
    drill_schedule: Schedule | None
    drill_timeout: timedelta
    drill_memory: int
    guard: bool
    http: tuple[str, int] | None
    log_level: int
    notify_urls: tuple[str, ...] = field(repr=False)
    notify_level: str
    notify_sns_topic_arn: str | None
    notify_ping_url: str | None = field(repr=False)
    docker_host: str
    docker_volumes_dir: str
    timezone: tzinfo
    stage_fault: StageFault | None = None
    local_by_default: bool = False  # nobody has said that local sets are enough: every run warns and is partial
    warnings: tuple[str, ...] = ()
    environment_secrets: tuple[str, ...] = field(default=(), repr=False)

    def secrets(self) -> tuple[str, ...]:
        """Texts that must never reach a log.

        A long access key ID is among them: no secret by itself, but no reader of a log needs it. A short one (`demo`)
        is left alone, because hiding it would garble names.
        """
        keys = [self.secret_access_key, self.session_token, self.notify_ping_url, *self.notify_urls]
        if self.access_key_id and len(self.access_key_id) >= 16:
            keys.append(self.access_key_id)
        return tuple(each for each in (*keys, *_passwords(self.notify_urls), *self.environment_secrets) if each)


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable of ours.

    field: its name in `Settings`. read: text -> value; a ValueError's text says what is wrong with it. default: as one
    would write it; None where there is none, and then the value is `absent`. default_words: what the documentation
    says of a default that depends on others.
    """

    name: str
    field: str
    meaning: str
    accepted: str
    read: Callable[[str], Any]
    default: str | None = None
    absent: Any = None
    secret: bool = False
    default_words: str | None = None


# --- reading one value -----------------------------------------------------------------------------------------------

_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZE_UNITS: dict[str, int] = {
    "B": 1,
    **{f"{unit}iB": 1024**power for power, unit in enumerate("KMGT", start=1)},
    **{f"{unit}B": 1000**power for power, unit in enumerate("kMGT", start=1)},
}


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds a character that cannot be printed")
    return text


def _matching(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def read(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError("it is of another form")
        return text

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError("it is none of the words")
        return text.lower()

    return read


def _switch(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


def _log_level(text: str) -> int:
    level: int = getattr(logging, _one_of("debug", "info", "warning", "error")(text).upper())
    return level


def _quiesce(text: str) -> Quiesce:
    return Quiesce(_one_of(*Quiesce)(text))


def _list(text: str) -> tuple[str, ...]:
    return tuple(item for each in text.split(",") if (item := _text(each.strip())))


def _stores(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(each.lower() for each in _list(text)))
    if not names or not set(names) <= {"s3", "local"}:
        raise ValueError("it names another store")
    return names


def duration(text: str) -> timedelta:
    """A span of time as settings and labels write it: `90s`, `1h30m`. Raises ValueError."""
    parts = re.findall(r"([0-9]{1,7})([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("it is not a duration")
    seconds = sum(int(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if not seconds:
        raise ValueError("it is no time at all")
    return timedelta(seconds=seconds)


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})\s*([A-Za-z]+)", text)
    unit = _SIZE_UNITS.get(match[2]) if match else None
    if not match or not unit:
        raise ValueError("it is not a size with its unit")
    if not int(match[1]):
        raise ValueError("nothing fits in it")
    return int(match[1]) * unit


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or not int(text):
        raise ValueError("it is not a whole number of at least 1")
    return int(text)


def _directory(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError("it is not an absolute path")
    return "/" + _text(text).strip("/")


def _prefix(text: str) -> str:
    segments = _text(text).strip("/").split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise ValueError("it is not a path of plain segments")
    return "/".join(segments)


def _bucket(text: str) -> str:
    if "/" in text:
        raise ValueError("it holds a `/`: the name alone is wanted, the path below it is BACKUP_PREFIX")
    return _matching(r"[A-Za-z0-9._-]{3,255}")(text)


def _cron(text: str) -> Schedule | None:
    return None if text.lower() == "off" else cron.parse(text, UTC)


def _zone(text: str) -> tzinfo:
    try:
        return ZoneInfo(text.removeprefix(":"))
    except (OSError, ValueError, KeyError) as exc:
        raise ValueError("no time zone of this name is known here") from exc


def _url(*schemes: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        parts = urlsplit(_text(text))
        if parts.scheme not in schemes:
            raise ValueError(f"it does not begin with {' or '.join(each + '://' for each in schemes)}")
        if parts.scheme == "unix":
            if not parts.path:
                raise ValueError("it names no socket")
            return text
        if not parts.hostname:
            raise ValueError("it names no host")
        _ = parts.port  # raises ValueError when it is out of range
        return text

    return read


def _engine(text: str) -> str:
    if urlsplit(_url("unix", "tcp", "http", "https")(text)).username is not None:
        raise ValueError("it holds a user name, which no Docker client sends")
    return text


def _endpoint(text: str) -> str:
    parts = urlsplit(_url("http", "https")(text))
    if parts.username is not None:
        raise ValueError("it holds a user name: keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("it goes on after the host: the bucket is S3_BACKUP_BUCKET, the path BACKUP_PREFIX")
    return text.rstrip("/")


def _compression(text: str) -> int:
    return int(_matching(r"gzip:[0-3]")(text)[-1])


def _address(text: str) -> tuple[str, int] | None:
    if text.lower() == "off":
        return None
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\s/]*)):([0-9]{1,5})", text)
    if not match or not 0 < int(match[3]) < 65_536:
        raise ValueError("it is not an address with a port")
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 - the form `:8080` asks for it


def _object_lock(text: str) -> str | None:
    return None if text == "off" else _matching(r"(governance|compliance):[1-9][0-9]{0,4}d")(text)


def _recipients(text: str) -> tuple[str, ...]:
    keys = _list(text)
    if any(each.startswith("AGE-SECRET-KEY-") for each in keys):
        raise ValueError("it holds a secret key: only public recipients belong on this machine")
    if not keys or not all(each.startswith(("age1", "ssh-ed25519 ", "ssh-rsa ")) for each in keys):
        raise ValueError("it holds something that is no recipient")
    return keys


def _stage_fault(text: str) -> StageFault:
    stage, _, action = text.partition("=")
    if stage not in STAGES or action not in ("hold", "kill"):
        raise ValueError("no such stage or action")
    return StageFault(stage, action)


# --- the table -------------------------------------------------------------------------------------------------------

_DURATIONS = "a duration such as 90s, 10m, 7d or 1h30m"
_CRON = f"{cron.ACCEPTED}, or `off`"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "S3_BACKUP_BUCKET",
        "bucket",
        "The S3 bucket that sets go to. It must exist.",
        "a bucket's name",
        _bucket,
    ),
    Setting(
        "AWS_REGION",
        "region",
        "The bucket's region. `AWS_DEFAULT_REGION` is read when it is not set.",
        "a region's name such as eu-central-1",
        _matching(r"[A-Za-z0-9_-]+"),
    ),
    Setting(
        "AWS_ENDPOINT_URL_S3",
        "endpoint",
        "The S3 server's address, for any server but AWS. `AWS_ENDPOINT_URL` is read when it is not set.",
        "http://HOST[:PORT] or https://HOST[:PORT]",
        _endpoint,
    ),
    Setting(
        "AWS_ACCESS_KEY_ID",
        "access_key_id",
        "With the secret key: who we are to S3. Without them boto3 looks in its usual places (profile, role).",
        "an access key ID",
        _text,
        secret=True,
    ),
    Setting(
        "AWS_SECRET_ACCESS_KEY",
        "secret_access_key",
        "See `AWS_ACCESS_KEY_ID`.",
        "a secret key",
        _text,
        secret=True,
    ),
    Setting(
        "AWS_SESSION_TOKEN",
        "session_token",
        "The third part of temporary credentials.",
        "a session token",
        _text,
        secret=True,
    ),
    Setting(
        "AWS_MAX_ATTEMPTS",
        "max_attempts",
        "How often a request to S3 that fails for now is made, with longer and longer waits, for a quarter of an hour "
        "at most; for 15 seconds while it has not answered once in a job that has another store to turn to.",
        "a whole number of at least 1",
        _count,
        default="20",
    ),
    Setting(
        "BACKUP_PREFIX",
        "prefix",
        "The path in the bucket that everything of ours lies under.",
        "a path such as backups or production/backups",
        _prefix,
        default="backups",
    ),
    Setting(
        "BACKUP_HOST",
        "host",
        "A name below the prefix that keeps this host's sets apart from another's in the same bucket.",
        "letters, digits, dot, hyphen and underscore, with a letter or digit first",
        _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"),
    ),
    Setting(
        "BACKUP_STORES",
        "stores",
        "Where every set goes. `local` alone says that sets on this machine are enough.",
        "s3, local, or both by comma",
        _stores,
        absent=(),
        default_words="`s3` when a bucket is set, else `local` with a warning in every run",
    ),
    Setting(
        "BACKUP_LOCAL_DIR",
        "local_dir",
        "The directory in the container that local sets lie in. For Compose it is the directory on the host.",
        "an absolute path",
        _directory,
        default="/data/backups",
    ),
    Setting(
        "BACKUP_SCHEDULE",
        "schedule",
        "When the daemon makes a backup by itself, in the time zone `TZ`.",
        _CRON,
        _cron,
        default="0 3 * * *",
    ),
    Setting(
        "BACKUP_INCLUDE",
        "include",
        "Patterns (`*`, `?`, `[...]`) of volumes to back up.",
        "patterns by comma",
        _list,
        absent=(),
        default_words="all volumes",
    ),
    Setting(
        "BACKUP_EXCLUDE",
        "exclude",
        "Patterns of volumes to leave out; one that begins with / accepts that a bind mount is not backed up.",
        "patterns by comma",
        _list,
        absent=(),
    ),
    Setting(
        "BACKUP_QUIESCE",
        "quiesce",
        "How containers are kept from writing while their volumes are read, unless a label says otherwise.",
        "pause, stop or none",
        _quiesce,
        default="pause",
    ),
    Setting(
        "BACKUP_MAX_PAUSE",
        "max_pause",
        "The longest that a group of containers may be frozen; then it is thawed and its backup fails.",
        _DURATIONS,
        duration,
        default="30s",
    ),
    Setting(
        "BACKUP_FULL_EVERY",
        "full_every",
        "How often a run reads every file instead of trusting signatures, and compares them with the set before.",
        _DURATIONS,
        duration,
        default="7d",
    ),
    Setting(
        "BACKUP_COMPRESSION",
        "compression",
        "ISA-L's gzip level: 0 is fastest, 3 smallest.",
        "gzip:0 to gzip:3",
        _compression,
        default="gzip:2",
    ),
    Setting(
        "BACKUP_SPOOL_MAX",
        "spool_max",
        "The most that copies and clones may take on the state volume. A tenth of that disk always stays free.",
        "a size such as 64MiB or 20GiB",
        _size,
        default_words="bounded by the disk's reserve alone",
    ),
    Setting(
        "BACKUP_KEEP_LOCAL",
        "keep_local",
        "How many sets the local store keeps.",
        "a whole number of at least 1",
        _count,
        default="7",
    ),
    Setting(
        "BACKUP_KEEP_S3",
        "keep_s3",
        "How many sets S3 keeps.",
        "a whole number of at least 1",
        _count,
        default="30",
    ),
    Setting(
        "BACKUP_AGE_RECIPIENTS",
        "age_recipients",
        "Public age keys that archives are encrypted to.",
        "public keys age1... by comma",
        _recipients,
        absent=(),
        # Not a secret, but the usual mistake is to paste the secret key here.
        secret=True,
    ),
    Setting(
        "BACKUP_OBJECT_LOCK",
        "object_lock",
        "S3 object lock of every object: mode and time.",
        "governance:DAYS or compliance:DAYS with days such as 30d, or off",
        _object_lock,
    ),
    Setting(
        "BACKUP_STORAGE_CLASS",
        "storage_class",
        "The S3 storage class of archives.",
        "a storage class such as STANDARD_IA",
        _matching(r"[A-Z0-9_]+"),
        default_words="the bucket's",
    ),
    Setting(
        "BACKUP_SSE",
        "sse",
        "Server-side encryption that S3 is asked for.",
        "AES256, aws:kms or aws:kms:dsse",
        _matching(r"AES256|aws:kms(:dsse)?"),
        default_words="the bucket's",
    ),
    Setting(
        "BACKUP_VERIFY_SCHEDULE",
        "verify_schedule",
        "When the newest set is read back, every byte of it, and compared. Reading from S3 may cost money.",
        _CRON,
        _cron,
        default="0 5 * * 0",
    ),
    Setting(
        "BACKUP_DRILL_SCHEDULE",
        "drill_schedule",
        "When the newest set is restored into scratch volumes, and copies of its services are started on them.",
        _CRON,
        _cron,
        default="0 6 1 * *",
    ),
    Setting(
        "BACKUP_DRILL_TIMEOUT",
        "drill_timeout",
        "How long each service of a drill may take until its health check, or its label `backup.drill`, is content.",
        _DURATIONS,
        duration,
        default="5m",
    ),
    Setting(
        "BACKUP_DRILL_MEMORY",
        "drill_memory",
        "The memory that a copy of a service gets in a drill where the service has no limit of its own.",
        "a size such as 64MiB or 20GiB",
        _size,
        default="1GiB",
    ),
    Setting(
        "BACKUP_GUARD",
        "guard",
        "Whether a guard container keeps `docker-compose down -v` from deleting volumes.",
        "on or off",
        _switch,
        default="on",
    ),
    Setting(
        "BACKUP_HTTP",
        "http",
        "The address of the read-only status page and metrics.",
        "ADDRESS:PORT, :PORT or off",
        _address,
    ),
    Setting(
        "BACKUP_LOG_LEVEL",
        "log_level",
        "The least level that is logged.",
        "debug, info, warning or error",
        _log_level,
        default="info",
    ),
    Setting(
        "NOTIFY_URLS",
        "notify_urls",
        "Where notifications go.",
        "URLs by comma",
        _list,
        absent=(),
        secret=True,
    ),
    Setting(
        "NOTIFY_LEVEL",
        "notify_level",
        "The least level that is worth a notification.",
        "info, warning or error",
        _one_of("info", "warning", "error"),
        default="warning",
    ),
    Setting(
        "NOTIFY_SNS_TOPIC_ARN",
        "notify_sns_topic_arn",
        "An SNS topic that notifications go to.",
        "arn:aws:sns:REGION:ACCOUNT:TOPIC",
        _matching(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_.-]+"),
    ),
    Setting(
        "NOTIFY_PING_URL",
        "notify_ping_url",
        "A URL that is requested after every good run, for a monitor that misses it when it stays away.",
        "http://... or https://...",
        _url("http", "https"),
        secret=True,
    ),
    Setting(
        "DOCKER_HOST",
        "docker_host",
        "The Docker Engine's address.",
        "unix:///PATH or tcp://HOST:PORT",
        _engine,
        default="unix:///var/run/docker.sock",
    ),
    Setting(
        "DOCKER_VOLUMES_DIR",
        "docker_volumes_dir",
        "The directory on the host in which the engine keeps its volumes, mounted at `/volumes`.",
        "an absolute path",
        _directory,
        default="/var/lib/docker/volumes",
    ),
    Setting(
        "TZ",
        "timezone",
        "The time zone that schedules are read in.",
        "a name of the IANA time zone database such as Europe/Berlin",
        _zone,
        default="UTC",
    ),
)

# Accepted and checked, but nothing acts on them yet: setting one is answered by a warning that says so.
PLANNED: Mapping[str, str] = {
    "BACKUP_KEEP_LOCAL": "never deletes a set",
    "BACKUP_KEEP_S3": "never deletes a set",
    "BACKUP_OBJECT_LOCK": "does not lock objects: whoever may delete in the bucket can delete the sets",
    "BACKUP_HTTP": "does not serve HTTP",
    "NOTIFY_URLS": "does not send notifications",
    "NOTIFY_LEVEL": "does not send notifications",
    "NOTIFY_SNS_TOPIC_ARN": "does not send notifications",
    "NOTIFY_PING_URL": "does not send notifications",
}

TEST_STAGE = Setting(
    "BACKUP_TEST_STAGE",
    "stage_fault",
    "For tests only: the stage of a run at which it holds or is killed.",
    f"STAGE=hold or STAGE=kill with a stage of {', '.join(STAGES)}",
    _stage_fault,
)

# --- names -----------------------------------------------------------------------------------------------------------

# What boto3 and botocore read themselves (their configuration guide); a near miss of one is a mistake all the same.
_BOTO3_NAMES = """
ACCOUNT_ID ACCOUNT_ID_ENDPOINT_MODE AUTH_SCHEME_PREFERENCE CA_BUNDLE CONFIG_FILE CONTAINER_AUTHORIZATION_TOKEN
CONTAINER_AUTHORIZATION_TOKEN_FILE CONTAINER_CREDENTIALS_FULL_URI CONTAINER_CREDENTIALS_RELATIVE_URI
CREDENTIAL_EXPIRATION CREDENTIAL_FILE CSM_CLIENT_ID CSM_ENABLED CSM_HOST CSM_PORT DATA_PATH DEFAULTS_MODE
DEFAULT_PROFILE DEFAULT_REGION DISABLE_HOST_PREFIX_INJECTION DISABLE_REQUEST_COMPRESSION EC2_METADATA_DISABLED
EC2_METADATA_SERVICE_ENDPOINT EC2_METADATA_SERVICE_ENDPOINT_MODE EC2_METADATA_V1_DISABLED ENDPOINT_DISCOVERY_ENABLED
ENDPOINT_URL EXECUTION_ENV IGNORE_CONFIGURED_ENDPOINT_URLS IMDS_USE_IPV6 LOGIN_CACHE_DIRECTORY MAX_ATTEMPTS
METADATA_SERVICE_NUM_ATTEMPTS METADATA_SERVICE_TIMEOUT PROFILE REQUEST_CHECKSUM_CALCULATION
REQUEST_MIN_COMPRESSION_SIZE_BYTES RESPONSE_CHECKSUM_VALIDATION RETRY_MODE ROLE_ARN ROLE_SESSION_NAME
S3_DISABLE_EXPRESS_SESSION_AUTH S3_DISABLE_MULTIREGION_ACCESS_POINTS S3_USE_ARN_REGION
S3_US_EAST_1_REGIONAL_ENDPOINT SDK_UA_APP_ID SECURITY_TOKEN SHARED_CREDENTIALS_FILE SIGV4A_SIGNING_REGION_SET
STS_REGIONAL_ENDPOINTS USE_DUALSTACK_ENDPOINT USE_FIPS_ENDPOINT WEB_IDENTITY_TOKEN_FILE
"""
_BOTO3 = frozenset(f"AWS_{name}" for name in _BOTO3_NAMES.split())
_DOCKER = frozenset({
    "DOCKER_API_VERSION",
    "DOCKER_BUILDKIT",
    "DOCKER_CERT_PATH",
    "DOCKER_CONFIG",
    "DOCKER_CONTENT_TRUST",
    "DOCKER_CONTEXT",
    "DOCKER_DEFAULT_PLATFORM",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
})  # fmt: skip
# Of docker-compose.backup.yml itself (an `env_file` brings them along), and systemd's socket, which Podman hands on.
_COMPOSE = frozenset({"BACKUP_DOCKER_HOST", "BACKUP_PROPAGATION", "DOCKER_SOCKET", "NOTIFY_SOCKET"})

_OWN = {setting.name: setting for setting in SETTINGS}
_KNOWN = frozenset(_OWN) | {f"{name}_FILE" for name in _OWN} | _BOTO3 | _DOCKER | _COMPOSE | {TEST_STAGE.name}
_READ = frozenset(_OWN) | {f"{name}_FILE" for name in _OWN}
# What Compose itself takes out of .env: it means something else there, or is not handed on.
_COMPOSE_ONLY = _COMPOSE | {"BACKUP_LOCAL_DIR", "DOCKER_HOST"}
_ASSIGNMENT = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*[^\s#]", re.MULTILINE)
DOTENV = "/compose/.env"  # where docker-compose.backup.yml mounts its own directory
_NAMESPACES = ("BACKUP_", "NOTIFY_", "S3_BACKUP")
_DOCUMENT = "docs/SETTINGS.md lists every setting"


def _edits(one: str, other: str) -> int:
    """The least number of letters to insert, delete, replace, or swap with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, start=1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                least = min(least, older[j - 2] + 1)
            row.append(least)
    return row[-1]


def _slips(known: str) -> int:
    """How many edits away from a known name a name is still a slip."""
    if len(known) < 8:
        return 0
    # DOCKER_PORT, two from DOCKER_HOST, and AWS_ENDPOINT_URL_STS, two from ..._S3, are honest names of others.
    return 1 if len(known) < 12 or known.startswith("AWS_ENDPOINT_URL_") else 2


def near_miss(name: str) -> str | None:
    """The known name that an unknown one was probably meant to be: a slip of letters, of case, of the words' order."""
    if name in _KNOWN:
        return None
    upper = name.upper()
    alike = [known for known in _KNOWN if abs(len(known) - len(upper)) <= 2]
    slips = [(edits, known) for known in alike if (edits := _edits(upper, known)) <= _slips(known)]
    if slips:
        return min(slips)[1]
    words = sorted(upper.split("_"))
    return next((known for known in _OWN if sorted(known.split("_")) == words), None)


def _names_in_dotenv(read_file: Callable[[str], str]) -> set[str]:
    """The names that have a value in the file `.env` beside the Compose file; none where it is not mounted."""
    try:
        text = read_file(DOTENV)
    except (OSError, UnicodeDecodeError):
        return set()
    return set(_ASSIGNMENT.findall(text))


def _strangers(names: set[str], *, bucket_known: bool) -> tuple[list[str], list[str]]:
    """Problems and warnings for names that nobody here reads."""
    problems, warnings = [], []
    for name in sorted(names - _KNOWN):
        if meant := near_miss(name):
            problems.append(f"{name} is not a known setting; did you mean {meant}?")
        elif name.startswith(_NAMESPACES):
            alike = difflib.get_close_matches(name, sorted(_OWN), n=1, cutoff=0.8)
            problems.append(f"{name} is not a known setting; " + (f"did you mean {alike[0]}?" if alike else _DOCUMENT))
        elif alike := _part_of_connection(name):
            warnings.append(f"{name} is set, but nothing here reads it; did you mean {alike[0]}?")
        elif not bucket_known and "BUCKET" in name.upper().split("_"):
            warnings.append(f"{name} is set, but nothing here reads it, and no bucket is set: that is S3_BACKUP_BUCKET")
    return problems, warnings


def _part_of_connection(name: str) -> list[str]:
    """Names of the S3 connection of which `name` is a shorter form: S3_BUCKET, AWS_ENDPOINT."""
    words = set(name.upper().split("_"))
    candidates = [each for each in sorted(_OWN) if each.startswith(("S3_", "AWS_"))]
    return [each for each in candidates if len(words) >= 2 and words < set(each.split("_"))]


# --- load ------------------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """What was set: the variable that it came from (NAME, NAME_FILE, a fallback) and the text."""

    source: str
    text: str


def load(environ: Mapping[str, str], read_file: Callable[[str], str]) -> Settings:
    """Read every setting.

    read_file: a path -> its text; raises OSError or UnicodeDecodeError. An empty variable counts as not set. Names that
    stand in DOTENV are checked too, because Compose hands on only those that it knows: a slip of letters would be lost.
    Raises ConfigInvalid with every mistake there is.
    """
    given, problems = _given(environ, read_file)
    values: dict[str, Any] = {}
    for setting in (*SETTINGS, TEST_STAGE):
        source, text = given.get(setting.name, (setting.name, setting.default))
        try:
            values[setting.field] = setting.absent if text is None else setting.read(text)
        except ValueError as exc:
            problems.append(f"{source} is {_shown(setting, text or '')}: {exc}; accepted: {setting.accepted}")
    unusable = [name for name in _OWN if name not in given and environ.get(f"{name}_FILE", "").strip()]
    problems += _contradictions({*given, *unusable}, values)
    written = _names_in_dotenv(read_file)
    strange, warnings = _strangers(written | set(environ), bucket_known="S3_BACKUP_BUCKET" in given)
    warnings += [
        f"{name} is set in .env but not in this container: `up -d` again, or hand it on in an override file"
        for name in sorted(written - _COMPOSE_ONLY)
        if name in _READ and name not in environ
    ]
    if problems or strange:
        raise ConfigInvalid([*problems, *strange], hint=_DOCUMENT)
    for name in ("schedule", "verify_schedule", "drill_schedule"):
        values[name] = values[name] and replace(values[name], zone=values["timezone"])
    values["local_by_default"] = not values["stores"] and not values["bucket"]
    values["stores"] = values["stores"] or (("s3",) if values["bucket"] else ("local",))
    if values["bucket"] and "s3" not in values["stores"]:
        warnings.append("S3_BACKUP_BUCKET is set, but BACKUP_STORES leaves s3 out: nothing goes to the bucket")
    for name, lacking in PLANNED.items():
        if name in given and values[_OWN[name].field]:
            warnings.append(f"{given[name].source} is set, but this version {lacking}")
    return Settings(**values, warnings=tuple(warnings), environment_secrets=_environment_secrets(environ))


def _given(environ: Mapping[str, str], read_file: Callable[[str], str]) -> tuple[dict[str, _Given], list[str]]:
    """What was set, by setting; and what went wrong on the way."""
    given: dict[str, _Given] = {}
    problems: list[str] = []
    for name in (*_OWN, TEST_STAGE.name):
        source, text = name, environ.get(name, "").strip()
        path = environ.get(f"{name}_FILE", "").strip() if name in _OWN else ""
        if text and path:
            problems.append(f"{name} and {name}_FILE are both set; keep one of them")
        elif path:
            source = f"{name}_FILE"
            try:
                text = _from_file(path, read_file)
            except ValueError as exc:
                problems.append(f"{source} names {path!r}, which {exc}")
        if text:
            given[name] = _Given(source, text)
    fallbacks = {"AWS_REGION": "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3": "AWS_ENDPOINT_URL"}
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":  # botocore's switch, for its own names
        del fallbacks["AWS_ENDPOINT_URL_S3"]
    for name, fallback in fallbacks.items():
        if name not in given and (text := environ.get(fallback, "").strip()):
            given[name] = _Given(fallback, text)
    return given, problems


def _from_file(path: str, read_file: Callable[[str], str]) -> str:
    try:
        text = read_file(path).strip()
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ValueError("is not UTF-8 text") from exc
    if not text:  # unlike an empty variable, which Compose makes of every `${NAME:-}`, this cannot be meant
        raise ValueError("is empty")
    return text


def _contradictions(given: Collection[str], values: Mapping[str, Any]) -> Iterator[str]:
    """Mistakes that lie between settings. given: the names that were set, usably or not."""
    if "s3" in values.get("stores", ()) and "S3_BACKUP_BUCKET" not in given:
        yield "BACKUP_STORES names s3, but S3_BACKUP_BUCKET is not set"
    key, secret = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    if (key in given) != (secret in given):
        present, missing = (key, secret) if key in given else (secret, key)
        yield f"{present} is set, but {missing} is not"
    elif "AWS_SESSION_TOKEN" in given and key not in given:
        yield f"AWS_SESSION_TOKEN is set, but {key} and {secret} are not"
    if values.get("age_recipients"):
        # A warning would not do: whoever asks for encryption must never get archives that anyone can read.
        yield "BACKUP_AGE_RECIPIENTS is set, but this version does not encrypt; leave it out to store plain archives"


def _shown(setting: Setting, text: str) -> str:
    if setting.secret:
        return "not usable (its value is not shown)"
    text = text if len(text) <= 100 else text[:100] + "..."
    return repr(re.sub(r"//[^/]*@", "//[hidden]@", text))


def _environment_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Secrets in variables that are not ours: a proxy's password, the token of a container's credentials."""
    proxies = [environ.get(name, "") for name in environ if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")]
    tokens = [environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", ""), environ.get("AWS_SECURITY_TOKEN", "")]
    return tuple(each for each in (*tokens, *_passwords(proxies)) if each)


def _passwords(urls: Iterable[str]) -> Iterator[str]:
    for url in urls:
        with suppress(ValueError):
            password = urlsplit(url).password or ""
            yield from {password, unquote(password)} - {""}
