"""The documents of a set: names, keys, manifest, owner, and RECOVER.txt as a shell reads it."""

import gzip
import io
import json
import os
import re
import shlex
import stat
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import sets
from sidecar.archive import index
from sidecar.archive.blocks import BlockPlan, Continuation
from sidecar.archive.entry import Entry, Kind
from sidecar.errors import SetInvalid
from sidecar.report import Outcome, Reason

# --- names and keys --------------------------------------------------------------------------------------------------

moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 30)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def test_a_set_is_named_by_its_start_in_utc() -> None:
    noon_in_kathmandu = datetime(2026, 3, 29, 12, 0, 7, 999_999, timezone(timedelta(hours=5, minutes=45)))

    assert sets.set_name(noon_in_kathmandu) == "backup-20260329_061507"


@given(moments, zones)
def test_the_name_of_a_set_gives_its_time_back_to_the_second_in_whatever_zone_it_was_told(
    moment: datetime, zone: timezone
) -> None:
    name = sets.set_name(moment.astimezone(zone)) if moment.year > 1970 else sets.set_name(moment)

    assert sets.set_time(name) == moment.replace(microsecond=0)


@given(moments, moments)
def test_the_order_of_names_is_the_order_of_time(one: datetime, other: datetime) -> None:
    one, other = one.replace(microsecond=0), other.replace(microsecond=0)

    assert (sets.set_name(one) < sets.set_name(other)) == (one < other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "backup-",
        "owner.json",
        "backup-20260329",
        "backup-20260329_06150",
        "backup-20260329_061507x",
        "backup-20260329_061507\n",
        "xbackup-20260329_061507",
        "Backup-20260329_061507",
        "backup-20260229_000000",
        "backup-20261301_000000",
        "backup-20260329_240000",
        "backup-20260329_235960",
        "backup-20260329-061507",
        "backup-\u0662\u0660\u0662\u0666\u0660\u0663\u0662\u0669_\u0660\u0666\u0661\u0665\u0660\u0667",
    ],
)
def test_what_only_looks_like_a_set_is_none(name: str) -> None:
    assert sets.set_time(name) is None


@given(st.text())
def test_any_name_that_is_taken_for_a_sets_is_exactly_the_name_of_that_time(text: str) -> None:
    for name in (text, f"backup-{text}"):
        moment = sets.set_time(name)
        assert moment is None or sets.set_name(moment) == name


def test_the_keys_of_a_set_are_those_of_the_interface() -> None:
    name = "backup-20260329_061507"

    assert sets.archive_key(name, "shop_db") == "backup-20260329_061507/shop_db.tar.gz"
    assert sets.index_key(name, "shop_db") == "backup-20260329_061507/shop_db.index.jsonl.gz"
    assert sets.manifest_key(name) == "backup-20260329_061507/manifest.json"
    assert sets.recover_key(name) == "backup-20260329_061507/RECOVER.txt"
    assert sets.OWNER == "owner.json"


ODD_NAMES = ["manifest", "manifest.json", "RECOVER.txt", "a", "a.tar.gz", "a.index.jsonl.gz", "a.index", "host/export"]


def test_no_two_volumes_share_a_key_with_each_other_or_with_a_document_of_the_set() -> None:
    keys = [key(name, volume) for volume in ODD_NAMES for name in ["s"] for key in (sets.archive_key, sets.index_key)]

    keys += [sets.manifest_key("s"), sets.recover_key("s"), "s/marks.json"]
    assert len(set(keys)) == len(keys)


# --- the manifest ----------------------------------------------------------------------------------------------------

# Every character JSON may have to carry, lone surrogates (names that are not UTF-8) among them.
texts = st.text(st.characters(), max_size=12)
counts = st.integers(0, 2**63)
text_maps = st.dictionaries(texts, texts, max_size=3)
outcomes = st.sampled_from(list(Outcome))
objects = st.builds(sets.StoredObject, texts, counts, texts)
volumes = st.builds(
    sets.SetVolume,
    volume=texts,
    group=texts,
    outcome=outcomes,
    archive=objects,
    index=objects,
    raw_bytes=counts,
    files=counts,
    driver=texts,
    options=text_maps,
    labels=text_maps,
    mountpoint=texts,
    changed_files=st.lists(texts, max_size=3).map(tuple),
)
groups = st.builds(sets.SetGroup, texts, texts, st.floats(0, 1e9), st.lists(texts, max_size=3).map(tuple))
reasons = st.builds(Reason, texts, texts, texts, st.none() | texts, st.none() | texts)
manifests = st.builds(
    sets.Manifest,
    set=texts,
    time=texts,
    outcome=outcomes,
    host=texts,
    engine=texts,
    version=texts,
    volumes=st.lists(volumes, max_size=2).map(tuple),
    groups=st.lists(groups, max_size=2).map(tuple),
    reasons=st.lists(reasons, max_size=2).map(tuple),
    tags=text_maps,
)


def a_volume(name: str = "shop_db", **facts: object) -> sets.SetVolume:
    set_name = "backup-20260329_061507"
    return sets.SetVolume(
        volume=name,
        group=str(facts.get("group", "shop")),
        outcome=Outcome(facts.get("outcome", Outcome.GOOD)),
        archive=sets.StoredObject(sets.archive_key(set_name, name), 1234, "0badcafe"),
        index=sets.StoredObject(sets.index_key(set_name, name), 234, "deadbeef"),
        raw_bytes=20480,
        files=12,
        driver=str(facts.get("driver", "local")),
        options=dict(facts.get("options", {})),
        labels={"com.docker.compose.project": "shop"},
        mountpoint=f"/var/lib/docker/volumes/{name}/_data",
        changed_files=tuple(facts.get("changed_files", ())),
    )


def a_manifest(*members: sets.SetVolume, host: str = "docker-1") -> sets.Manifest:
    return sets.Manifest(
        set="backup-20260329_061507",
        time="2026-03-29T06:15:07Z",
        outcome=Outcome.PARTIAL,
        host=host,
        engine="ABCD:EFGH",
        version="0.1.0",
        volumes=members or (a_volume(),),
        groups=(sets.SetGroup("shop", "2026-03-29T06:15:09.120Z", 131.4, ("shop-db-1",)),),
        reasons=(Reason("unprotected_mount", "app:/x is not backed up", "make it a volume", None, "s3"),),
        tags={"why": "before the upgrade"},
    )


@given(manifests)
def test_a_manifest_is_read_back_as_it_was_written(manifest: sets.Manifest) -> None:
    assert sets.Manifest.from_json(manifest.to_json(), where="manifest.json") == manifest


@given(manifests)
def test_a_manifest_is_plain_ascii_json_that_says_its_format(manifest: sets.Manifest) -> None:
    document = json.loads(manifest.to_json().decode("ascii"))

    assert (document["format"], document["kind"]) == (1, "manifest")


def test_every_truncation_of_a_manifest_is_refused_by_name_and_nothing_else_is_raised() -> None:
    whole = a_manifest().to_json()
    body = whole.rstrip(b"\n")

    for length in range(len(body)):
        with pytest.raises(SetInvalid, match=r"backup-1/manifest\.json is damaged") as caught:
            sets.Manifest.from_json(whole[:length], where="backup-1/manifest.json")
        assert caught.value.hint
    assert sets.Manifest.from_json(body, where="x") == a_manifest()


@given(st.binary(max_size=80))
def test_bytes_that_are_no_manifest_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(SetInvalid):
        sets.Manifest.from_json(data, where="manifest.json")


def places_in(document: object, path: tuple = ()) -> list[tuple]:
    """The path of every value in a JSON document."""
    children: list[tuple] = []
    if isinstance(document, dict):
        children = list(document.items())
    elif isinstance(document, list):
        children = list(enumerate(document))
    return [path] * bool(path) + [place for key, value in children for place in places_in(value, (*path, key))]


def parent_of(document: dict, place: tuple) -> dict:
    for key in place[:-1]:
        document = document[key]
    return document


DOCUMENT = json.loads(a_manifest(a_volume(options={"type": "nfs"}, changed_files=["./a"])).to_json())
PLACES = [place for place in places_in(DOCUMENT) if place != ("kind",)]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_value_of_the_wrong_kind_anywhere_in_a_manifest_is_refused(place: tuple) -> None:
    right = parent_of(DOCUMENT, place)[place[-1]]
    may_be_null = place[:1] == ("reasons",) and place[-1] in ("volume", "store")
    kind = (int, float) if isinstance(right, int | float) else (type(right),)
    wrong = [w for w in (7, "7", "seven", [7], {"seven": 7}, True, None) if not isinstance(w, kind) or w is True]
    if place[-1] in ("size", "raw_bytes", "files"):
        wrong.append(-7)
    for value in wrong:
        if may_be_null and (value is None or isinstance(value, str)):
            continue
        damaged = json.loads(json.dumps(DOCUMENT))
        parent_of(damaged, place)[place[-1]] = value
        if damaged["format"] is True:  # in Python it equals 1
            continue

        with pytest.raises(SetInvalid):
            sets.Manifest.from_json(json.dumps(damaged).encode(), where="manifest.json")


@pytest.mark.parametrize(
    "place",
    # `named`, `boot` and `read_at` are missing in sets that an earlier version made.
    [
        p
        for p in PLACES
        if isinstance(p[-1], str)
        and not {"options", "labels", "tags"} & set(p[:-1])
        and p[-1] not in ("named", "boot", "read_at")
    ],
    ids=lambda place: ".".join(map(str, place)),
)
def test_a_manifest_without_one_of_its_keys_is_refused(place: tuple) -> None:
    damaged = json.loads(json.dumps(DOCUMENT))
    del parent_of(damaged, place)[place[-1]]

    with pytest.raises(SetInvalid):
        sets.Manifest.from_json(json.dumps(damaged).encode(), where="manifest.json")


def test_unknown_keys_of_a_later_version_are_ignored_at_every_level() -> None:
    document = json.loads(a_manifest().to_json())
    for each in (document, document["volumes"][0], document["volumes"][0]["archive"], document["groups"][0]):
        each["colour"] = {"of": ["the", "sea"]}
    document["reasons"][0]["colour"] = None

    assert sets.Manifest.from_json(json.dumps(document).encode(), where="x") == a_manifest()


@pytest.mark.parametrize("reader", [lambda data: sets.Manifest.from_json(data, where="owner.json"), sets.owner_of])
def test_a_document_of_another_format_is_refused_with_what_to_do(reader: object) -> None:
    with pytest.raises(SetInvalid, match="format 2") as caught:
        reader(b'{"format": 2, "engine": "A", "host": "h"}')

    assert "newer" in caught.value.hint


@pytest.mark.parametrize("data", [b"[" * 200_000, b"\xff\xfe" * 100_000, b"[1]", b"null", b'"manifest"', b"NaN"])
def test_a_hostile_document_is_refused_in_a_short_sentence(data: bytes) -> None:
    with pytest.raises(SetInvalid) as caught:
        sets.Manifest.from_json(data, where="manifest.json")

    assert len(caught.value.message) < 200


# --- owner.json ------------------------------------------------------------------------------------------------------


@given(texts, texts, texts)
def test_an_owner_document_names_engine_host_and_state(engine: str, host: str, state: str) -> None:
    data = sets.owner_document(engine, host, datetime(2026, 3, 29, tzinfo=UTC), state)

    assert sets.owner_of(data) == sets.Owner(engine, host, state)
    assert json.loads(data.decode("ascii"))["since"] == "2026-03-29T00:00:00Z"
    assert (json.loads(data)["format"], json.loads(data)["kind"]) == (1, "owner")


def test_every_truncation_of_an_owner_document_is_refused_and_nothing_else_is_raised() -> None:
    body = sets.owner_document("ABCD", "host", datetime(2026, 3, 29, tzinfo=UTC), "state").rstrip(b"\n")

    for length in range(len(body)):
        with pytest.raises(SetInvalid, match=r"owner\.json is damaged") as caught:
            sets.owner_of(body[:length])
        assert caught.value.hint


def test_an_owner_of_an_older_version_has_no_state() -> None:
    data = json.dumps({"format": 1, "kind": "owner", "engine": "A", "host": "h", "since": "2026-01-01T00:00:00Z"})
    assert sets.owner_of(data.encode()) == sets.Owner("A", "h", "")


@pytest.mark.parametrize("engine", [None, 7, ["A"]])
def test_an_owner_that_is_not_text_is_no_owner(engine: object) -> None:
    with pytest.raises(SetInvalid):
        sets.owner_of(json.dumps({"format": 1, "engine": engine, "host": "h"}).encode())


# --- marks.json ------------------------------------------------------------------------------------------------------

VERDICTS = st.none() | st.builds(
    sets.Verified,
    texts,
    st.sampled_from(sets.How),
    st.just(Outcome.FAILED),
    texts.filter(bool),
)
GOOD = sets.Verified("2026-04-05T05:02:11Z", sets.How.FULL, Outcome.GOOD)


@given(st.booleans(), VERDICTS | st.just(GOOD), st.dictionaries(st.just("drilled") | st.just("colour"), texts))
def test_marks_are_read_back_as_they_were_written_with_what_this_version_does_not_know(
    keep: bool, verified: sets.Verified | None, others: dict[str, str]
) -> None:
    marks = sets.Marks(keep, verified, {"drilled": None} | others)

    assert sets.Marks.from_json(marks.to_json(), where="x/marks.json") == marks


@pytest.mark.parametrize(
    "change",
    [
        {"keep": "yes"},
        {"keep": None},
        {"verified": []},
        {"verified": {"time": "2026", "how": "slowly", "outcome": "good", "why": ""}},
        {"verified": {"time": "2026", "how": "full", "outcome": "partial", "why": "x"}},
        {"verified": {"time": "2026", "how": "full", "outcome": "failed", "why": ""}},
        {"verified": {"time": "2026", "how": "full", "outcome": "good", "why": "x"}},
        {"verified": {"time": "2026", "how": "full", "outcome": "good"}},
        {"format": 2},
    ],
)
def test_marks_that_make_no_sense_are_refused_and_nothing_else_is_raised(change: dict[str, object]) -> None:
    document = json.loads(sets.Marks(True, GOOD).to_json()) | change

    with pytest.raises(SetInvalid) as caught:
        sets.Marks.from_json(json.dumps(document).encode(), where="x/marks.json")
    assert caught.value.hint


def test_every_truncation_of_marks_is_refused_and_nothing_else_is_raised() -> None:
    body = sets.Marks(True, GOOD).to_json().rstrip(b"\n")

    for length in range(len(body)):
        with pytest.raises(SetInvalid):
            sets.Marks.from_json(body[:length], where="x/marks.json")


# --- secrets in driver options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"type": "nfs", "o": "addr=10.0.0.1,rw,nfsvers=4.1,sec=sys,timeo=600,nconnect=4", "device": ":/export/db"},
        {"type": "none", "o": "bind", "device": "/srv/data"},
        {"type": "tmpfs", "o": "size=100m,uid=1000", "device": "tmpfs"},
        {"size": "10G"},
        {},
    ],
)
def test_options_without_a_secret_are_recorded_as_they_are(options: dict[str, str]) -> None:
    assert sets.without_secrets(options) == options


@pytest.mark.parametrize(
    ("option", "value", "recorded"),
    [
        ("o", "username=u,password=S3CRET,vers=3.0", "username=u,password=…,vers=3.0"),
        ("o", "addr=h,user=u,pass=S3CRET", "addr=h,user=u,pass=…"),
        ("o", "PASSWORD=S3CRET,password2=S3CRET,uid=0", "PASSWORD=…,password2=…,uid=0"),
        ("o", "password=S3CRET with=blanks S3CRET,ro", "password=…,ro"),
        ("o", "password=S3=CRET,ro", "password=…,ro"),
        ("o", "password=S3CRET\nS3CRET,ro", "password=…,ro"),
        ("o", "name=admin,secret=S3CRET==,fs=cephfs", "name=admin,secret=…,fs=cephfs"),
        ("o", "credentials=/root/S3CRET", "credentials=…"),
        ("args", "--uid 0 --sftp-pass=S3CRET", "--uid 0 --sftp-pass=…"),
        ("device", "//u:S3CRET@nas/share", "//u:…@nas/share"),
        ("device", "https://u:S3@CRET@dav.example/x", "https://u:…@dav.example/x"),
        ("password", "S3CRET", "…"),
        ("sftp-pass", "S3CRET", "…"),
        ("s3-secret-access-key", "S3CRET", "…"),
        ("account_key", "S3CRET", "…"),
        ("authToken", "S3CRET", "…"),
        ("config", "S3CRET", "…"),
    ],
)
def test_a_secret_of_a_driver_option_is_not_recorded(option: str, value: str, recorded: str) -> None:
    blotted = sets.without_secrets({option: value, "type": "cifs"})

    assert blotted == {option: recorded, "type": "cifs"}
    assert "CRET" not in str(blotted)


@given(
    st.sampled_from(["password", "pass", "secret", "Token"]),
    st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), min_size=1).map("S3CRET".join("<>").join),
    st.lists(st.sampled_from(["ro", "vers=3.0", "uid=7"]), max_size=3),
    st.lists(st.sampled_from(["ro", "vers=3.0", "uid=7"]), max_size=3),
)
def test_no_secret_between_commas_survives_and_every_other_option_does(
    word: str, secret: str, before: list[str], after: list[str]
) -> None:
    recorded = sets.without_secrets({"o": ",".join([*before, f"{word}={secret}", *after])})["o"]

    assert recorded == ",".join([*before, f"{word}=…", *after])


def test_a_long_option_is_blotted_in_no_time() -> None:
    value = "pass" * 50_000

    assert sets.without_secrets({"o": value}) == {"o": value}


# --- RECOVER.txt -----------------------------------------------------------------------------------------------------

# Docker's own driver allows [a-zA-Z0-9_.-] only; plugins allow more (`host/export` is how one of them names a share).
VOLUME_NAMES = [
    "shop_db",
    "a.b-c",
    "nas/export",
    "two words",
    "it's",
    'say "so"',
    "$(touch CAUGHT)",
    "`touch CAUGHT`",
    "; touch CAUGHT #",
    "& touch CAUGHT &",
    "-rf",
    "*",
    "~",
    "ümlaut",
    "back\\slash",
    "!x",
]


def commands(text: str) -> list[str]:
    """The commands of a RECOVER.txt: what stands seven blanks in, with the lines that a backslash continues."""
    found: list[str] = []
    continued = False
    for line in text.split("\n"):
        if continued:
            found[-1] += "\n" + line
        elif line.startswith(" " * 7):
            found.append(line.strip())
        continued = bool(found) and line.endswith("\\")
    return found


def restoring(text: str) -> list[str]:
    return [command for command in commands(text) if "tar --numeric-owner" in command]


def archive_of(content: bytes) -> bytes:
    """A tar of two gzip members, as an archive of ours is, made with Python's tarfile."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("./content")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    raw = stream.getvalue()
    return gzip.compress(raw[:700]) + gzip.compress(raw[700:])


def written_set(root: Path, manifest: sets.Manifest) -> None:
    for volume in manifest.volumes:
        path = root / volume.archive.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive_of(volume.volume.encode()))


def shell(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A directory that a stand-in for `aws` on PATH serves as s3://bucket; it notes each call's arguments."""
    served = tmp_path / "bucket"
    served.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    aws = programs / "aws"
    aws.write_text(
        "#!/bin/bash\n"
        f'printf \'%s\\n\' "$#" "$@" >> {shlex.quote(str(tmp_path))}/calls\n'
        "if [[ $1 == --endpoint-url ]]; then shift 2; fi\n"
        "[[ $1 == s3 && $2 == cp && $3 == s3://bucket/* && $4 == - && $# == 4 ]] || exit 64\n"
        f'exec cat -- {shlex.quote(str(served))}/"${{3#s3://bucket/}}"\n'
    )
    aws.chmod(aws.stat().st_mode | stat.S_IXUSR)
    return served


@pytest.mark.parametrize(
    ("endpoint", "prefix"),
    [
        (None, "production/backups"),
        (None, ""),
        ("http://s3.example:8333", "production/backups"),
        ("http://s3.example/a b?c=$(touch CAUGHT)", "it's $(touch CAUGHT)"),
    ],
)
def test_the_commands_of_recover_txt_restore_every_volume_from_s3(
    bucket: Path, tmp_path: Path, endpoint: str | None, prefix: str
) -> None:
    manifest = a_manifest(*(a_volume(name) for name in VOLUME_NAMES))
    written_set(bucket / prefix, manifest)
    base = f"s3://bucket/{prefix}".rstrip("/")
    text = sets.recover_text(manifest, base=base, endpoint=endpoint)
    (where,) = [command for command in commands(text) if command.startswith("SET=")]

    for name, command in zip(VOLUME_NAMES, restoring(text), strict=True):
        target = tmp_path / "restored"
        target.mkdir()
        done = shell(f"{where}\n{command}", tmp_path, DIR=str(target), PATH=f"{tmp_path}/bin:{os.defpath}")
        assert (done.returncode, done.stderr) == (0, ""), name
        assert (target / "content").read_text() == name
        (target / "content").unlink()
        target.rmdir()

    calls = (tmp_path / "calls").read_text()
    assert (f"--endpoint-url\n{endpoint}\n" in calls) is (endpoint is not None)
    assert calls.count("s3://bucket/") == len(VOLUME_NAMES)
    assert not list(tmp_path.rglob("CAUGHT"))


def test_the_commands_of_recover_txt_restore_every_volume_from_the_directory_it_lies_in_wherever_that_is_now(
    tmp_path: Path,
) -> None:
    manifest = a_manifest(*(a_volume(name) for name in VOLUME_NAMES))
    copied_to = tmp_path / "a disk with $(blanks)"
    written_set(copied_to, manifest)
    text = sets.recover_text(manifest, base="/data/backups", endpoint=None)
    (where,) = [command for command in commands(text) if command.startswith("SET=")]

    for name, command in zip(VOLUME_NAMES, restoring(text), strict=True):
        target = tmp_path / "restored"
        target.mkdir()
        done = shell(f"{where}\n{command}", copied_to / manifest.set, DIR=str(target))
        assert (done.returncode, done.stderr) == (0, ""), name
        assert (target / "content").read_text() == name
        (target / "content").unlink()
        target.rmdir()
    assert not list(tmp_path.rglob("CAUGHT"))
    assert "aws" not in " ".join(commands(text))


@pytest.mark.parametrize("base", ["s3://bucket/p", "/data/backups"])
def test_by_the_commands_of_recover_txt_one_file_is_found_and_restored_and_no_other(
    bucket: Path, tmp_path: Path, base: str
) -> None:
    manifest = a_manifest(a_volume("db"))
    archive = bucket / "p" / manifest.volumes[0].archive.key
    archive.parent.mkdir(parents=True)
    source, target = tmp_path / "source", tmp_path / "restored"
    for directory in (source / "a directory", target):
        directory.mkdir(parents=True)
    for name in ("wanted", "not wanted", "a directory/it's wanted too"):
        (source / name).write_text(name)
    subprocess.run(["tar", "-czf", archive, "-C", source, "."], check=True)
    text = sets.recover_text(manifest, base=base, endpoint=None)
    where, listing, one = [
        each.replace("VOLUME", "db") for each in commands(text) if re.search("SET=|-tzf|PATH$", each)
    ]

    def run(*script: str) -> str:
        path = f"{tmp_path}/bin:{os.defpath}"
        done = shell("\n".join((where, *script)), archive.parent, DIR=str(target), PATH=path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    listed = run(listing).splitlines()
    for path in ("./wanted", "./a directory/it's wanted too"):
        assert path in listed
        run(one.replace("PATH", shlex.quote(path)))
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {name: name for name in ("wanted", "a directory/it's wanted too")}


@pytest.mark.parametrize("base", ["s3://bucket/p", "/data/backups"])
def test_the_check_of_recover_txt_says_whole_for_a_whole_archive_and_nothing_for_a_torn_one(
    bucket: Path, tmp_path: Path, base: str
) -> None:
    manifest = a_manifest(a_volume("db"))
    written_set(bucket / "p", manifest)
    archive = bucket / "p" / manifest.volumes[0].archive.key
    text = sets.recover_text(manifest, base=base, endpoint=None)
    script = "\n".join([c for c in commands(text) if c.startswith("SET=") or "gzip -t" in c]).replace("VOLUME", "db")

    def check() -> subprocess.CompletedProcess[str]:
        return shell(script, archive.parent, PATH=f"{tmp_path}/bin:{os.defpath}")

    assert check().stdout == "whole\n"
    for damage in (archive.read_bytes()[:-1], archive.read_bytes()[:-5] + bytes(5)):
        archive.write_bytes(damage)
        torn = check()
        assert torn.returncode != 0
        assert torn.stdout == ""


@pytest.mark.parametrize("base", ["s3://bucket/p", "s3://bucket/p/", "/data/backups"])
def test_every_command_of_recover_txt_is_one_that_bash_can_parse(tmp_path: Path, base: str) -> None:
    text = sets.recover_text(a_manifest(*map(a_volume, VOLUME_NAMES)), base=base, endpoint="https://s3.example")

    done = shell("set -n\n" + "\n".join(commands(text)), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "//backup-" not in text


def test_recover_txt_says_what_is_not_whole_and_what_was_not_a_plain_volume() -> None:
    manifest = a_manifest(
        a_volume("db", outcome=Outcome.PARTIAL, changed_files=["./log/today", "./$(touch CAUGHT)'\n       reboot"]),
        a_volume("share", driver="local", options={"type": "nfs", "device": ":/export", "o": "addr=nas,rw"}),
        a_volume("cloud", driver="rclone"),
    )
    text = sets.recover_text(manifest, base="s3://bucket/p", endpoint=None)

    assert "   db: 12 entries, 1234 bytes, 20480 bytes unpacked (partial)\n" in text
    assert "   Changed while it was read: ./log/today\n" in text
    assert "--driver local --opt device=:/export --opt o=addr=nas,rw --opt type=nfs\n" in text
    assert "it was made with --driver rclone\n" in text
    assert text.count("it was made with") == 2
    assert not any("reboot" in command or "CAUGHT" in command for command in commands(text))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_file_name_in_recover_txt_is_one_harmless_word_of_one_line(path: str) -> None:
    manifest = a_manifest(a_volume("db", changed_files=[path]))
    text = sets.recover_text(manifest, base="/data/backups", endpoint=None)

    (line,) = [line for line in text.split("\n") if line.startswith("   Changed while it was read: ")]
    assert len(shlex.split(line.partition(": ")[2])) == 1
    assert (
        len(text.splitlines()) == len(sets.recover_text(manifest, base="/data/backups", endpoint=None).split("\n")) - 1
    )


def test_recover_txt_names_the_tools_and_warns_of_the_reader_that_stops_at_the_first_block() -> None:
    text = sets.recover_text(a_manifest(), base="s3://bucket/p", endpoint=None)

    assert "GNU tar (as root) and the AWS CLI" in text
    assert "r|gz" in text
    assert "docker-1" in text
    assert "2026-03-29T06:15:07Z" in text


# --- docs/FORMAT.md --------------------------------------------------------------------------------------------------

FORMAT_PAGE = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()


def example(heading: str) -> str:
    """The first example under `## heading`."""
    section = FORMAT_PAGE.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    return section.partition("```")[2].partition("\n")[2].partition("\n```")[0]


def documented_manifest() -> sets.Manifest:
    return sets.Manifest.from_json(example("manifest.json").encode(), where="docs/FORMAT.md")


def test_the_documented_manifest_is_byte_for_byte_what_the_code_writes() -> None:
    assert documented_manifest().to_json().decode() == example("manifest.json") + "\n"


def test_every_key_of_a_manifest_is_documented() -> None:
    table = FORMAT_PAGE.partition("\n## manifest.json")[2].partition("\n## ")[0].partition("| Key |")[2]
    document = json.loads(a_manifest().to_json())
    keys = {"set", "time", "outcome", "host", "engine", "version", "tags", "volumes[]", "groups[]"}
    keys |= {"missing[]", "reasons[]", "named[]", "boot"}

    assert {f"{key}[]" if isinstance(value, list) else key for key, value in document.items()} - keys == {
        "format",
        "kind",
    }
    for word in [*keys, *(f".{key}" for key in document["volumes"][0])]:
        assert f"`{word}`" in table
    for key in [*document["groups"][0], *document["reasons"][0], *document["volumes"][0]["archive"]]:
        assert f"`{key}`" in table


def test_the_documented_keys_are_those_of_the_set_in_the_examples() -> None:
    manifest = documented_manifest()
    (volume,) = manifest.volumes

    assert example("Keys").split() == [
        sets.OWNER,
        volume.archive.key,
        volume.index.key,
        sets.recover_key(manifest.set),
        sets.manifest_key(manifest.set),
        sets.marks_key(manifest.set),
    ]


def test_the_documented_index_is_byte_for_byte_what_the_code_writes_and_is_of_that_set() -> None:
    lines = [line.encode() + b"\n" for line in example("The index").split("\n")]
    (volume,) = documented_manifest().volumes
    blocks = list(index.read_index(lines))
    summary = json.loads(lines[-1])

    again = [index.header_line(volume.volume, documented_manifest().set)]
    for block, files, continues in ((each.block, each.files, each.continues) for each in blocks):
        entries = [(Entry(file.path, file.kind, file.signature, file.link), file.at) for file in files]
        again.append(
            index.block_line(
                block, BlockPlan(entries=entries, continues=Continuation(*continues) if continues else None)
            )
        )
    sockets = [path.encode() for path in summary["sockets"]]
    again.append(
        index.summary_line(
            blocks=len(blocks),
            files=volume.files,
            size=volume.archive.size,
            crc32=int(volume.archive.crc32, 16),
            sockets=sockets,
        )
    )
    assert again == lines
    assert sum(each.block.raw_length for each in blocks) == volume.raw_bytes
    last = blocks[-1].block
    assert f"--range bytes={last.offset}-{last.offset + last.length - 1} " in FORMAT_PAGE


def test_every_column_of_the_index_is_documented_in_its_order() -> None:
    table = FORMAT_PAGE.partition("| Column | Value |")[2].partition("\n\n")[0]
    first_cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)

    assert re.findall(r"`(\w+)`", " ".join(first_cells)) == list(index.COLUMNS)
    assert all(f"`{kind}`" in table for kind in Kind if kind is not Kind.SOCKET)


def test_the_documented_recover_txt_is_what_the_code_writes_for_that_set() -> None:
    text = sets.recover_text(
        documented_manifest(), base="s3://company-backups/backups", endpoint="https://s3.example.com"
    )

    assert example("RECOVER.txt") + "\n" == text


def test_the_documented_owner_is_what_the_code_writes() -> None:
    document = json.loads(example("owner.json"))
    since = datetime.fromisoformat(document["since"])

    names = (document["engine"], document["host"], since, document["state"])
    assert sets.owner_document(*names).decode() == example("owner.json") + "\n"
    assert document["engine"] == documented_manifest().engine


def test_the_documented_marks_are_what_the_code_writes_and_every_key_is_documented() -> None:
    marks = sets.Marks.from_json(example("marks.json").encode(), where="docs/FORMAT.md")
    table = FORMAT_PAGE.partition("\n## marks.json")[2].partition("| Key |")[2]

    assert marks.to_json().decode() == example("marks.json") + "\n"
    for key in {*json.loads(marks.to_json()), *json.loads(marks.to_json())["verified"]} - {"format", "kind"}:
        assert f"`{key}`" in table
