"""A flipped byte in the bucket, on the real container and a real S3 server: who says so, and who says it is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import BUCKET, S3, Machine, Sidecar, docker, wait_until

pytestmark = pytest.mark.engine("machine")

FILL = (
    "head -c 30000000 /dev/urandom > /data/random && echo hello > /data/letter && touch /data/ready && sleep infinity"
)


@pytest.fixture(scope="module")
def sidecar(machine: Machine, make_sidecar: SidecarMaker) -> Iterator[Sidecar]:
    volume = machine.volume("verify-data")
    app = machine.run("verify-app", ["bash", "-c", FILL], "--volume", f"{volume}:/data")
    wait_until(lambda: docker("exec", app, "test", "-e", "/data/ready", check=False).code == 0, "files are there")
    sidecar = make_sidecar("verify", include=[volume])
    sidecar.up()
    try:
        yield sidecar
    finally:
        machine.remove(app)


def test_a_flipped_byte_in_the_bucket_turns_verify_list_and_status_red_and_repairing_it_green(
    sidecar: Sidecar, s3: S3
) -> None:
    report, _ = sidecar.good_run()
    (volume,) = (each["volume"] for each in report["volumes"])
    key = f"{sidecar.prefix}/{report['set']}/{volume}.tar.gz"
    whole = s3.read(key)

    done = sidecar.verb("verify", "--json")
    assert done.code == 0, done
    verified = done.json()
    assert (verified["set"], verified["how"], verified["outcome"]) == (report["set"], "full", "good")
    assert verified["volumes"][0]["bytes_read"] > len(whole)
    (listed,) = sidecar.verb("list", "--json", check=True).json()["sets"]
    assert (listed["verified"]["outcome"], listed["verified"]["stores"]) == ("good", ["s3"])
    assert sidecar.verb("status", "--check").code == 0

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    # With a checksum that is not the manifest's kind: the store must not be the one to give it away.
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(flipped), ChecksumAlgorithm="SHA256")
    assert sidecar.verb("verify", "--quick").code == 0
    done = sidecar.verb("verify")
    assert done.code == 1, done
    assert "damaged" in done.out
    assert "SHA-256" in done.out
    listing = sidecar.verb("list")
    assert listing.code == 0
    assert "damaged" in listing.out
    assert "DAMAGED in s3" in sidecar.verb("list", "latest").out
    checked = sidecar.verb("status", "--check")
    assert checked.code == 1
    assert checked.out.startswith(f"not healthy: the newest set, {report['set']}, is damaged")
    status = sidecar.verb("status", "--json").json()
    assert (status["last_verify"]["set"], status["last_verify"]["outcome"]) == (report["set"], "failed")
    plan = sidecar.verb("restore", "latest", "--dry-run")
    assert "is known to be damaged" in plan.out
    (event,) = [each for each in sidecar.events("verify_finished") if each["outcome"] == "failed"]
    assert (event["level"], event["volumes"]) == ("error", [volume])

    docker("restart", sidecar.name)
    sidecar.wait_ready()
    assert sidecar.verb("status", "--check").code == 1  # it is known after a restart, too

    s3.client.put_object(Bucket=BUCKET, Key=key, Body=whole)
    assert sidecar.verb("verify", "--quick").code == 1  # a quick look cannot know
    assert sidecar.verb("verify").code == 0
    assert sidecar.verb("status", "--check").code == 0
    assert "damaged" not in sidecar.verb("list").out
    assert sidecar.verb("verify", "backup-20010101_000000").code == 10


def test_a_set_is_kept_by_a_verb_and_the_bucket_says_so(sidecar: Sidecar, s3: S3) -> None:
    report, _ = sidecar.good_run()
    assert sidecar.verb("keep", report["set"]).code == 0
    assert b'"keep": true' in s3.read(f"{sidecar.prefix}/{report['set']}/marks.json")
    (kept,) = [each for each in sidecar.verb("list", "--json").json()["sets"] if each["set"] == report["set"]]
    assert kept["keep"]
    assert sidecar.verb("unkeep", report["set"]).code == 0
    assert b'"keep": false' in s3.read(f"{sidecar.prefix}/{report['set']}/marks.json")
    assert sidecar.verb("keep", "backup-20010101_000000").code == 10
