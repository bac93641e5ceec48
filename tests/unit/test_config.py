"""Settings: every mistake at once and in words, near misses named, secrets never shown, nothing accepted in silence."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import config
from sidecar.config import PLANNED, SETTINGS, Settings, StageFault
from sidecar.errors import ConfigInvalid
from sidecar.model import Quiesce

DOCUMENT = Path(__file__).parents[2] / "docs" / "SETTINGS.md"

# What a container of this image has without anyone's doing, and what shells, Compose and orchestrators add.
ORDINARY = {
    "PATH": "/usr/bin",
    "HOSTNAME": "2f6d0c7f2f3a",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "TERM": "xterm",
    "PWD": "/",
    "SHLVL": "1",
    "GPG_KEY": "7169605F62C751356D054A26A821E680E5FA6305",
    "PYTHON_VERSION": "3.13.1",
    "PYTHON_SHA256": "9cf9427bee9e2242e3877dd0f6b641c1853ca461f39d6503ce260a59c80bf0d9",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "http_proxy": "http://proxy:3128",
    "NO_PROXY": "localhost",
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    "DOCKER_PORT": "tcp://172.17.0.2:2375",
    "DOCKER_TLS_CERTDIR": "/certs",
    "NOTIFY_SOCKET": "/run/notify",
    "container": "podman",
    "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE",
    "AWS_ENDPOINT_URL_STS": "https://sts.example.org",
    "LOG_LEVEL": "debug",
    "POSTGRES_PASSWORD": "pw",
    "DB_HOST": "db",
}


def no_files(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


def load(_files: dict[str, str] | None = None, /, **environ: str) -> Settings:
    def read(path: str) -> str:
        if _files and path in _files:
            return _files[path]
        return no_files(path)

    return config.load(environ, read)


def problems(_files: dict[str, str] | None = None, /, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        load(_files, **environ)
    return caught.value.problems


def test_with_nothing_set_everything_has_a_usable_value():
    settings = load()

    assert settings.schedule is not None
    assert settings.schedule.expression == "0 3 * * *"
    assert settings.prefix == "backups"
    assert settings.local_dir == "/data/backups"
    assert settings.max_pause == timedelta(seconds=30)
    assert settings.quiesce is Quiesce.PAUSE
    assert settings.compression == 2
    assert settings.spool_max is None
    assert settings.log_level == logging.INFO
    assert settings.warnings == ()


def test_without_a_bucket_sets_stay_local_and_that_is_known_to_be_nobodys_decision():
    assert load().stores == ("local",)
    assert load().local_by_default
    assert load(S3_BACKUP_BUCKET="").local_by_default


def test_local_sets_by_decision_are_no_default():
    assert load(BACKUP_STORES="local").stores == ("local",)
    assert not load(BACKUP_STORES="local").local_by_default


def test_with_a_bucket_sets_go_to_s3():
    settings = load(S3_BACKUP_BUCKET="sets")

    assert settings.stores == ("s3",)
    assert not settings.local_by_default


def test_both_stores_can_be_named_in_any_spelling():
    assert load(S3_BACKUP_BUCKET="sets", BACKUP_STORES=" S3, local ,s3").stores == ("s3", "local")


def test_s3_without_a_bucket_is_a_mistake():
    assert problems(BACKUP_STORES="s3,local") == ("BACKUP_STORES names s3, but S3_BACKUP_BUCKET is not set",)


def test_a_bucket_that_no_store_uses_is_pointed_out():
    assert any("leaves s3 out" in each for each in load(S3_BACKUP_BUCKET="sets", BACKUP_STORES="local").warnings)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("BACKUP_MAX_PAUSE", "90s", "max_pause", timedelta(seconds=90)),
        ("BACKUP_MAX_PAUSE", "10m", "max_pause", timedelta(minutes=10)),
        ("BACKUP_FULL_EVERY", "7d", "full_every", timedelta(days=7)),
        ("BACKUP_FULL_EVERY", "1h30m", "full_every", timedelta(minutes=90)),
        ("BACKUP_SPOOL_MAX", "64MiB", "spool_max", 64 * 1024 * 1024),
        ("BACKUP_SPOOL_MAX", "2 GB", "spool_max", 2_000_000_000),
        ("BACKUP_COMPRESSION", "gzip:0", "compression", 0),
        ("BACKUP_INCLUDE", "shop_*, wiki_data,", "include", ("shop_*", "wiki_data")),
        ("BACKUP_QUIESCE", "stop", "quiesce", Quiesce.STOP),
        ("BACKUP_PREFIX", "/production/backups/", "prefix", "production/backups"),
        ("BACKUP_LOG_LEVEL", "WARNING", "log_level", logging.WARNING),
        ("BACKUP_SCHEDULE", "off", "schedule", None),
        ("BACKUP_GUARD", "off", "guard", False),
        ("BACKUP_HTTP", ":8080", "http", ("0.0.0.0", 8080)),
        ("BACKUP_HTTP", "[::1]:80", "http", ("::1", 80)),
        ("BACKUP_OBJECT_LOCK", "governance:30d", "object_lock", "governance:30d"),
        ("AWS_ENDPOINT_URL_S3", "http://seaweed:8333/", "endpoint", "http://seaweed:8333"),
        ("AWS_DEFAULT_REGION", "eu-central-1", "region", "eu-central-1"),
        ("AWS_ENDPOINT_URL", "http://seaweed:8333", "endpoint", "http://seaweed:8333"),
        ("DOCKER_VOLUMES_DIR", "/srv/docker/volumes/", "docker_volumes_dir", "/srv/docker/volumes"),
        ("BACKUP_TEST_STAGE", "frozen=kill", "stage_fault", StageFault("frozen", "kill")),
    ],
)
def test_a_value_is_read_into_its_type(name: str, text: str, field: str, value: object):
    assert getattr(load(**{name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BACKUP_MAX_PAUSE", "30"),
        ("BACKUP_MAX_PAUSE", "0s"),
        ("BACKUP_MAX_PAUSE", "-5s"),
        ("BACKUP_MAX_PAUSE", "1.5h"),
        ("BACKUP_MAX_PAUSE", "٣٠s"),  # noqa: RUF001 - digits, but not ASCII's
        ("BACKUP_SPOOL_MAX", "64"),
        ("BACKUP_SPOOL_MAX", "10G"),
        ("BACKUP_SPOOL_MAX", "0GiB"),
        ("BACKUP_COMPRESSION", "gzip:9"),
        ("BACKUP_COMPRESSION", "zstd"),
        ("BACKUP_KEEP_S3", "0"),
        ("BACKUP_KEEP_LOCAL", "many"),
        ("BACKUP_SCHEDULE", "0 25 * * *"),
        ("BACKUP_VERIFY_SCHEDULE", "sometimes"),
        ("BACKUP_STORES", "s4"),
        ("BACKUP_STORES", ","),
        ("BACKUP_QUIESCE", "freeze"),
        ("BACKUP_LOG_LEVEL", "loud"),
        ("BACKUP_LOCAL_DIR", "backups"),
        ("BACKUP_LOCAL_DIR", "/data/../etc"),
        ("BACKUP_PREFIX", "a//b"),
        ("BACKUP_PREFIX", "../a"),
        ("BACKUP_HOST", "a/b"),
        ("BACKUP_HTTP", "8080"),
        ("BACKUP_HTTP", ":70000"),
        ("BACKUP_OBJECT_LOCK", "30d"),
        ("BACKUP_SSE", "yes"),
        ("S3_BACKUP_BUCKET", "s3://sets/there"),
        ("AWS_ENDPOINT_URL_S3", "seaweed:8333"),
        ("AWS_ENDPOINT_URL_S3", "http://seaweed:8333/bucket"),
        ("AWS_ENDPOINT_URL_S3", "http://seaweed:99999"),
        ("AWS_ENDPOINT_URL_S3", "http://[seaweed"),
        ("DOCKER_HOST", "/var/run/docker.sock"),
        ("NOTIFY_SNS_TOPIC_ARN", "topic"),
        ("TZ", "Berlin"),
        ("TZ", "../../etc/passwd"),
        ("BACKUP_TEST_STAGE", "boiled=hold"),
    ],
)
def test_a_value_that_cannot_be_used_is_shown_with_what_is_accepted(name: str, text: str):
    (problem,) = problems(**{name: text})

    assert problem.startswith(f"{name} is {text!r}: ")
    assert "; accepted: " in problem


def test_all_mistakes_are_reported_at_once():
    found = problems(
        BACKUP_MAX_PAUSE="soon",
        S3_BACKUP_BUKET="sets",
        BACKUP_STORES="s3",
        TZ="Mars/Olympus",
        AWS_ACCESS_KEY_ID="AKIA",
        BACKUP_SPOOL_MAX_FILE="/none",
    )

    assert len(found) == 6
    for name in ("BACKUP_MAX_PAUSE", "S3_BACKUP_BUKET", "S3_BACKUP_BUCKET", "TZ", "AWS_SECRET", "BACKUP_SPOOL_MAX"):
        assert any(name in problem for problem in found), name


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [each for each in SETTINGS if each.name != "BACKUP_AGE_RECIPIENTS"], ids=lambda setting: setting.name
)
def test_every_setting_can_come_from_a_file_trimmed(setting: config.Setting):
    examples = {
        "BACKUP_STORES": "local",
        "BACKUP_SPOOL_MAX": "1GiB",
        "BACKUP_OBJECT_LOCK": "compliance:3d",
        "BACKUP_STORAGE_CLASS": "STANDARD_IA",
        "BACKUP_SSE": "AES256",
        "BACKUP_VERIFY_SCHEDULE": "0 4 * * *",
        "BACKUP_DRILL_SCHEDULE": "0 5 * * 0",
        "BACKUP_HTTP": "127.0.0.1:8080",
        "AWS_ENDPOINT_URL_S3": "http://s3:1",
        "NOTIFY_SNS_TOPIC_ARN": "arn:aws:sns:eu-central-1:123456789012:backups",
        "NOTIFY_PING_URL": "https://ping.example.org/x",
    }
    text = examples.get(setting.name, setting.default or "example")
    # The key pair is checked as a pair, and a token needs it.
    pair = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"} if setting.name.startswith("AWS_") else {}
    pair.pop(setting.name, None)

    from_file = load({"/run/secrets/it": f"  {text}\n"}, **{f"{setting.name}_FILE": "/run/secrets/it"}, **pair)

    assert getattr(from_file, setting.field) == getattr(load(**{setting.name: text}, **pair), setting.field)


def test_a_setting_given_both_ways_is_a_mistake():
    found = problems({"/f": "one"}, S3_BACKUP_BUCKET="two", S3_BACKUP_BUCKET_FILE="/f")

    assert found == ("S3_BACKUP_BUCKET and S3_BACKUP_BUCKET_FILE are both set; keep one of them",)


def test_an_empty_variable_beside_a_file_is_not_set():
    assert load({"/f": "sets"}, S3_BACKUP_BUCKET="", S3_BACKUP_BUCKET_FILE="/f").bucket == "sets"


def test_a_file_that_is_missing_empty_or_not_text_is_a_mistake_not_an_unset_setting():
    def read_binary(_: str) -> str:
        return b"\xff".decode()

    assert "cannot be read: No such file" in problems(S3_BACKUP_BUCKET_FILE="/none")[0]
    assert "is empty" in problems({"/f": " \n"}, S3_BACKUP_BUCKET_FILE="/f")[0]
    pair = problems(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY_FILE="/none")
    assert len(pair) == 1  # and not that the secret is not set
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        config.load({"S3_BACKUP_BUCKET_FILE": "/f"}, read_binary)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("S3_BACKUP_BUKET", "S3_BACKUP_BUCKET"),
        ("S3_BAKCUP_BUCKET", "S3_BACKUP_BUCKET"),
        ("S3_BACKUP_BUKCET_FILE", "S3_BACKUP_BUCKET_FILE"),
        ("BACKUP_S3_BUCKET", "S3_BACKUP_BUCKET"),
        ("S3_BUCKET_BACKUP", "S3_BACKUP_BUCKET"),
        ("s3_backup_bucket", "S3_BACKUP_BUCKET"),
        ("BACKUP_SCHEDUL", "BACKUP_SCHEDULE"),
        ("BACKUPSCHEDULE", "BACKUP_SCHEDULE"),
        ("BACKUP_STORE", "BACKUP_STORES"),
        ("NOTIFY_URL", "NOTIFY_URLS"),
        ("AWS_REGON", "AWS_REGION"),
        ("AWS_ACCES_KEY_ID", "AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESSKEY", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ENDPOINT_URL_S4", "AWS_ENDPOINT_URL_S3"),
        ("AWS_PROFIL", "AWS_PROFILE"),
        ("DOCKER_HOTS", "DOCKER_HOST"),
        ("DOCKER_TLS_VERIFIY", "DOCKER_TLS_VERIFY"),
    ],
)
def test_a_near_miss_is_a_mistake_that_names_what_was_meant(name: str, meant: str):
    (problem,) = problems(**{name: "anything"})

    assert problem == f"{name} is not a known setting; did you mean {meant}?"


@pytest.mark.parametrize("name", ["BACKUP_RETENTION_DAYS", "NOTIFY_EVERYBODY", "S3_BACKUP_FOLDER", "BACKUP_X"])
def test_an_unknown_name_of_our_own_kind_is_a_mistake(name: str):
    (problem,) = problems(**{name: "anything"})

    assert problem.startswith(f"{name} is not a known setting; ")


def test_an_ordinary_environment_raises_no_alarm():
    assert load(**ORDINARY).warnings == ()


def test_every_variable_that_botocore_reads_is_known():
    names: set[str] = set()
    for _, variable, _, _ in BOTOCORE_DEFAUT_SESSION_VARIABLES.values():
        names |= {variable} if isinstance(variable, str) else set(variable or ())

    assert len(names) > 10
    assert load(**dict.fromkeys(names - {"AWS_DEFAULT_REGION"}, "1")).warnings == ()


@pytest.mark.parametrize("name", ["S3_BUCKET", "AWS_ENDPOINT", "AWS_S3_ENDPOINT", "AWS_S3_BUCKET_NAME", "BUCKET"])
def test_a_name_of_another_product_for_the_bucket_is_pointed_out(name: str):
    assert [each for each in load(**{name: "anything"}).warnings if name in each]


@settings(max_examples=50, deadline=None)
@given(
    setting=st.sampled_from(SETTINGS),
    position=st.integers(0, 40),
    letter=st.sampled_from("AXZ_9"),
    way=st.integers(0, 2),
)
def test_any_one_letter_slip_in_a_name_is_a_mistake(setting: config.Setting, position: int, letter: str, way: int):
    name = setting.name
    if len(name) < 8:
        return  # TZ: any two letters are one letter away from it
    position %= len(name)
    slipped = name[:position] + (letter if way else "") + name[position + (way != 1) :]
    if slipped in {each.name for each in SETTINGS} or slipped == "AWS_ENDPOINT_URL":
        return

    assert any(slipped in problem for problem in problems(**{slipped: "x"}))


# --- secrets --------------------------------------------------------------------------------------------------------

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDDaSession",
    "NOTIFY_URLS": "mailto://me:letmein@example.org,slack://token-a/token-b",
    "NOTIFY_PING_URL": "https://ping.example.org/5b1c",
    "HTTPS_PROXY": "http://user:pr%40xy@proxy:3128",
}


def test_secrets_are_known_for_redaction_and_never_shown():
    settings = load(**SECRETS)

    assert set(settings.secrets()) >= {
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
        "FwoGZXIvYXdzEBYaDDaSession",
        "mailto://me:letmein@example.org",
        "letmein",
        "slack://token-a/token-b",
        "https://ping.example.org/5b1c",
        "pr@xy",
    }
    for secret in settings.secrets():
        assert secret not in repr(settings)


def test_a_short_access_key_id_is_a_name_not_a_secret():
    settings = load(AWS_ACCESS_KEY_ID="demo", AWS_SECRET_ACCESS_KEY="hunter2")

    assert settings.secrets() == ("hunter2",)
    assert "demo" not in repr(settings)


def test_no_problem_shows_a_secrets_value():
    found = problems(
        AWS_SECRET_ACCESS_KEY="wJalr\x07XUtnFEMI",
        AWS_SECRET_ACESS_KEY="wJalrXUtnFEMI",
        AWS_SESSION_TOKEN="FwoGZ\x07",
        NOTIFY_PING_URL="ftp://FwoGZ",
        BACKUP_AGE_RECIPIENTS="AGE-SECRET-KEY-1FwoGZ",
        AWS_ENDPOINT_URL_S3="https://wJalr:FwoGZ@s3.example.org",
        DOCKER_HOST="tcp://wJalr:FwoGZ@engine:2375",
    )

    assert len(found) == 8
    assert "wJalr" not in " ".join(found)
    assert "FwoGZ" not in " ".join(found)


@pytest.mark.parametrize("given_alone", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_half_of_a_pair_of_credentials_is_a_mistake(given_alone: str):
    (problem,) = problems(**{given_alone: "value"})

    assert given_alone in problem
    assert "value" not in problem


def test_who_asks_for_encryption_never_gets_plain_archives():
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    for environ in ({"BACKUP_AGE_RECIPIENTS": recipient}, {"BACKUP_AGE_RECIPIENTS_FILE": "/f"}):
        (problem,) = problems({"/f": recipient}, **environ)
        assert "does not encrypt" in problem


# --- .env, of which Compose hands on only the names that it knows ---------------------------------------------------


def test_a_slip_of_letters_in_dotenv_is_a_mistake_though_it_never_reaches_the_container():
    text = "# ours\nS3_BACKUP_BUKET=sets\nexport BACKUP_SHEDULE = 0 4 * * *\nPOSTGRES_PASSWORD=x\n"
    found = problems({config.DOTENV: text})
    assert found == (
        "BACKUP_SHEDULE is not a known setting; did you mean BACKUP_SCHEDULE?",
        "S3_BACKUP_BUKET is not a known setting; did you mean S3_BACKUP_BUCKET?",
    )


def test_a_setting_in_dotenv_that_did_not_reach_the_container_is_warned_about():
    text = "BACKUP_SCHEDULE=0 4 * * *\nBACKUP_KEEP_S3=\nBACKUP_LOCAL_DIR=/srv/sets\nAWS_SECRET_ACCESS_KEY_FILE=/run/s\n"
    warnings = load({config.DOTENV: text}).warnings
    assert [warning.split()[0] for warning in warnings] == ["AWS_SECRET_ACCESS_KEY_FILE", "BACKUP_SCHEDULE"]
    assert load({config.DOTENV: "BACKUP_SCHEDULE=0 4 * * *"}, BACKUP_SCHEDULE="0 4 * * *").warnings == ()


def test_other_names_in_dotenv_are_nobodys_business():
    assert load({config.DOTENV: "COMPOSE_PROJECT_NAME=shop\nDOCKER_SOCKET=/x\nTZX=1\n"}).warnings == ()


# --- what does not exist yet ------------------------------------------------------------------------------------------

EXPLICIT = {
    "BACKUP_FULL_EVERY": "7d",
    "BACKUP_KEEP_LOCAL": "7",
    "BACKUP_KEEP_S3": "30",
    "BACKUP_OBJECT_LOCK": "governance:30d",
    "BACKUP_VERIFY_SCHEDULE": "0 5 * * 0",
    "BACKUP_DRILL_SCHEDULE": "0 6 1 * *",
    "BACKUP_HTTP": ":8080",
    "NOTIFY_URLS": "mailto://me@example.org",
    "NOTIFY_LEVEL": "error",
    "NOTIFY_SNS_TOPIC_ARN": "arn:aws:sns:eu-central-1:123456789012:backups",
    "NOTIFY_PING_URL": "https://ping.example.org",
}


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_a_setting_that_nothing_acts_on_yet_says_so_when_it_is_set(name: str):
    (warning,) = load(**{name: EXPLICIT[name]}).warnings

    assert warning == f"{name} is set, but this version {PLANNED[name]}"


@pytest.mark.parametrize(("name", "text"), [("BACKUP_OBJECT_LOCK", "off"), ("BACKUP_VERIFY_SCHEDULE", "off")])
def test_switching_off_what_does_not_exist_needs_no_warning(name: str, text: str):
    assert load(**{name: text}).warnings == ()


# --- documentation --------------------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def test_every_setting_is_documented_and_every_documented_setting_exists():
    assert documented().keys() == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_settings_documented_default_and_meaning_are_those_of_the_code(setting: config.Setting):
    default, meaning = documented()[setting.name]

    assert default == (setting.default_words or (f"`{setting.default}`" if setting.default else "none"))
    assert meaning.startswith(setting.meaning)
    assert ("Planned" in meaning) == (setting.name in PLANNED)
