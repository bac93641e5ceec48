"""What a run will do, decided from plain facts: groups, dependents, what is left out, what cannot be seen."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import NotFound
from sidecar.model import Container, ContainerState, Hooks, Mount, Quiesce, Volume
from sidecar.plan import Group, Plan, Selection, Surroundings, can_write, make_plan

ROOT = "/var/lib/docker/volumes"
ANONYMOUS = "0123456789abcdef" * 4
VOLUMES_MOUNT = Mount("bind", ROOT, "/volumes", writable=False)
STATE_MOUNT = Mount("volume", f"{ROOT}/backup-state/_data", "/state", writable=True, volume="backup-state")


def volume(name: str, *, project: str = "", group: str = "", **facts: object) -> Volume:
    labels = dict(facts.pop("labels", {}))
    if project:
        labels["com.docker.compose.project"] = project
    if group:
        labels["backup.group"] = group
    return Volume(name, str(facts.pop("mountpoint", f"{ROOT}/{name}/_data")), labels=labels, **facts)


def container(name: str, *mounts: Mount, project: str = "", **labels: str) -> Container:
    said = {key.replace("__", "."): value for key, value in labels.items()}
    if project:
        said["com.docker.compose.project"] = project
    return Container(f"id-of-{name}", name, "image", ContainerState.RUNNING, "2026-01-01T00:00:00Z", 7, said, mounts)


def named(name: str, target: str = "/data", *, writable: bool = True) -> Mount:
    return Mount("volume", f"{ROOT}/{name}/_data", target, writable, name)


def bind(source: str, target: str = "/data", *, writable: bool = True) -> Mount:
    return Mount("bind", source, target, writable)


def plan(
    *things: Volume | Container,
    own: tuple[Mount, ...] = (VOLUMES_MOUNT, STATE_MOUNT),
    mount_points: tuple[str, ...] = (),
    protected: dict[str, str] | None = None,
    bucket_hosts: tuple[str, ...] = (),
    **selection: object,
) -> Plan:
    around = Surroundings(
        volumes=[t for t in things if isinstance(t, Volume)],
        containers=[t for t in things if isinstance(t, Container)],
        own_mounts=own,
        mount_points=mount_points,
        protected=protected or {},
        bucket_hosts=bucket_hosts,
    )
    return make_plan(Selection(**selection), around)


def grouped(made: Plan) -> dict[str, list[str]]:
    return {group.name: [planned.volume.name for planned in group.volumes] for group in made.groups}


def frozen(made: Plan, group: str) -> list[str]:
    return [planned.container.name for planned in the_group(made, group).containers]


def the_group(made: Plan, name: str) -> Group:
    (group,) = [group for group in made.groups if group.name == name]
    return group


def left_out(made: Plan) -> dict[str, str]:
    return {skipped.volume: skipped.code for skipped in made.skipped}


# --- groups ----------------------------------------------------------------------------------------------------------


def test_volumes_of_one_compose_project_are_one_group() -> None:
    made = plan(volume("shop_db", project="shop"), volume("shop_files", project="shop"), volume("blog", project="blog"))

    assert grouped(made) == {"blog": ["blog"], "shop": ["shop_db", "shop_files"]}


def test_the_label_backup_group_moves_a_volume_out_of_its_project_and_joins_it_with_others() -> None:
    made = plan(
        volume("shop_db", project="shop"),
        volume("shop_metrics", project="shop", group="metrics"),
        volume("host_metrics", group="metrics"),
    )

    assert grouped(made) == {"metrics": ["host_metrics", "shop_metrics"], "shop": ["shop_db"]}


def test_a_volume_made_by_hand_belongs_to_the_one_project_that_writes_it() -> None:
    made = plan(volume("pictures"), container("shop-web-1", named("pictures"), project="shop"))

    assert grouped(made) == {"shop": ["pictures"]}


def test_a_volume_that_two_projects_write_is_a_group_of_its_own_and_freezes_both() -> None:
    made = plan(
        volume("pictures"),
        container("shop-web-1", named("pictures"), project="shop"),
        container("blog-web-1", named("pictures"), project="blog"),
    )

    assert grouped(made) == {"pictures": ["pictures"]}
    assert frozen(made, "pictures") == ["blog-web-1", "shop-web-1"]


def test_a_project_that_only_reads_a_volume_does_not_draw_it_into_its_group() -> None:
    made = plan(
        volume("pictures"),
        container("shop-web-1", named("pictures"), project="shop"),
        container("blog-web-1", named("pictures", writable=False), project="blog"),
    )

    assert grouped(made) == {"shop": ["pictures"]}


def test_a_volume_of_a_project_that_a_container_without_one_writes_too_stays_in_the_project() -> None:
    made = plan(volume("shop_db", project="shop"), container("adminer", named("shop_db")))

    assert grouped(made) == {"shop": ["shop_db"]}
    assert frozen(made, "shop") == ["adminer"]


def test_a_volume_without_project_label_or_container_is_a_group_by_itself() -> None:
    made = plan(volume("attic"), volume("cellar"), container("tool", named("cellar")))

    assert grouped(made) == {"attic": ["attic"], "cellar": ["cellar"]}
    assert frozen(made, "attic") == []


def test_a_container_that_spans_two_groups_is_frozen_with_each() -> None:
    made = plan(
        volume("shop_db", project="shop"),
        volume("blog_db", project="blog"),
        container("exporter", named("shop_db", "/a"), named("blog_db", "/b")),
    )

    assert frozen(made, "blog") == frozen(made, "shop") == ["exporter"]


# --- dependents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mount", "writes"),
    [
        (named("db"), True),
        (named("db", writable=False), False),
        (named("db2"), False),
        (bind(f"{ROOT}/db/_data"), True),
        (bind(f"{ROOT}/db/_data/"), True),
        (bind(f"{ROOT}/db/_data", writable=False), False),
        (bind(f"{ROOT}/db"), True),
        (bind("/var/lib"), True),
        (bind("/"), True),
        (bind("/", writable=False), False),
        (bind(f"{ROOT}/db/_data/base/1"), True),
        (bind(f"{ROOT}/db/../db/_data"), True),
        (bind(f"{ROOT}/db/_data-old"), False),
        (bind(f"{ROOT}/db2/_data"), False),
        (bind(f"{ROOT}/d"), False),
        (bind("/srv"), False),
        (Mount("tmpfs", "", "/data", writable=True), False),
    ],
    ids=str,
)
def test_a_dependent_has_a_writable_mount_of_the_volume_or_a_writable_bind_at_above_or_below_it(
    mount: Mount, writes: bool
) -> None:
    assert can_write(container("app", mount), volume("db")) is writes


@pytest.mark.parametrize("how", ["bind", "rw,rbind"])
@pytest.mark.parametrize(
    ("source", "writes"),
    [("/srv/db", True), ("/srv/db/base", True), ("/srv", True), ("/srv/db2", False), (f"{ROOT}/db", True)],
)
def test_a_bind_volume_is_written_through_its_device_too(source: str, writes: bool, how: str) -> None:
    bound = volume("db", options={"type": "none", "o": how, "device": "/srv/db"})

    assert can_write(container("app", bind(source)), bound) is writes


def test_a_disk_that_a_volume_mounts_is_not_taken_for_a_directory_to_bind() -> None:
    disk = volume("db", options={"type": "ext4", "device": "/dev/sdb1"})

    assert not can_write(container("app", bind("/dev")), disk)


def test_containers_with_a_role_of_ours_are_never_frozen() -> None:
    made = plan(
        volume("db"),
        container("backup", named("db", "/volumes/db"), bind(ROOT, "/volumes"), backup__role="sidecar"),
        container("backup-guard", named("db"), backup__role="guard"),
        container("app", named("db")),
    )

    assert frozen(made, "db") == ["app"]


def test_stopped_containers_are_dependents_because_they_may_start_during_the_copy() -> None:
    stopped = Container("id", "app", "image", ContainerState.EXITED, "", 0, {}, (named("db"),))

    assert frozen(plan(volume("db"), stopped), "db") == ["app"]


def test_a_group_finds_its_dependents_among_containers_that_came_later() -> None:
    group = the_group(plan(volume("shop_db", project="shop"), volume("shop_files", project="shop")), "shop")
    later = [
        container("writes", named("shop_files")),
        container("binds", bind(f"{ROOT}/shop_db/_data/base")),
        container("reads", named("shop_db", writable=False)),
        container("elsewhere", named("other")),
        container("backup-guard", named("shop_db"), backup__role="guard"),
    ]

    assert group.dependents_among(later) == {"id-of-writes", "id-of-binds"}


# --- how a dependent is quiesced -------------------------------------------------------------------------------------


def quiesced(made: Plan, group: str) -> dict[str, tuple[str, str]]:
    return {p.container.name: (p.quiesce.value, p.why) for p in the_group(made, group).containers}


def test_a_dependent_is_quiesced_as_its_label_says_else_as_the_setting_says() -> None:
    made = plan(
        volume("db"),
        container("a", named("db")),
        container("b", named("db"), backup__quiesce="none"),
        container("c", named("db"), backup__quiesce=" Pause "),
        quiesce=Quiesce.STOP,
    )

    assert quiesced(made, "db") == {
        "a": ("stop", "BACKUP_QUIESCE"),
        "b": ("none", "label backup.quiesce"),
        "c": ("pause", "label backup.quiesce"),
    }
    assert made.warnings == ()


def test_an_unknown_quiesce_label_warns_by_name_and_the_default_holds() -> None:
    made = plan(volume("db"), container("app", named("db"), backup__quiesce="freeze"))

    assert quiesced(made, "db") == {"app": ("pause", "by default")}
    (warning,) = made.warnings
    assert "app" in warning
    assert "backup.quiesce=freeze" in warning
    assert "pause, stop, none" in warning


def test_what_serves_our_engine_connection_is_not_frozen_even_if_its_label_asks_for_it() -> None:
    made = plan(
        volume("db"),
        container("socket-proxy", named("db"), backup__quiesce="stop"),
        protected={"id-of-socket-proxy": "it serves our connection to the engine"},
    )

    assert quiesced(made, "db") == {"socket-proxy": ("none", "it serves our connection to the engine")}


# --- what is left out ------------------------------------------------------------------------------------------------


def test_the_sidecars_own_volumes_are_left_out_by_mount_or_by_label() -> None:
    own = (
        VOLUMES_MOUNT,
        STATE_MOUNT,
        Mount("volume", f"{ROOT}/sets/_data", "/data/backups", writable=True, volume="sets"),
        Mount("volume", f"{ROOT}/elsewhere/_data", "/backups", writable=True, volume="elsewhere"),
    )
    labelled = volume("drill-db", labels={"backup.role": "drill"})
    made = plan(volume("backup-state"), volume("sets"), volume("elsewhere"), labelled, own=own)

    assert left_out(made) == dict.fromkeys(["backup-state", "drill-db", "elsewhere", "sets"], "own_volume")
    assert not any(skipped.failed for skipped in made.skipped)


def test_naming_the_sidecars_own_volume_for_a_run_fails_instead_of_doing_nothing() -> None:
    made = plan(volume("backup-state"), named=("backup-state",))

    assert [(s.volume, s.code, s.failed) for s in made.skipped] == [("backup-state", "own_volume", True)]


def test_backup_exclude_leaves_out_by_pattern() -> None:
    made = plan(volume("cache-1"), volume("cache-2"), volume("db"), exclude=("cache-*",))

    assert grouped(made) == {"db": ["db"]}
    assert left_out(made) == {"cache-1": "excluded", "cache-2": "excluded"}
    assert not any(skipped.failed for skipped in made.skipped)


def test_backup_include_leaves_out_everything_else_and_exclude_wins() -> None:
    made = plan(volume("db"), volume("files"), volume("files-tmp"), include=("files*",), exclude=("*-tmp",))

    assert grouped(made) == {"files": ["files"]}
    assert left_out(made) == {"db": "excluded", "files-tmp": "excluded"}


def test_a_volume_that_backup_include_names_and_that_is_gone_is_a_failure_with_the_nearest_name() -> None:
    made = plan(volume("pgdata"), volume("files"), include=("pgdta", "files"))

    (missing,) = [skipped for skipped in made.skipped if skipped.failed]
    assert (missing.volume, missing.code) == ("pgdta", "not_found")
    assert "pgdata" in missing.hint


def test_a_pattern_of_backup_include_that_matches_nothing_is_warned_of() -> None:
    made = plan(volume("db"), include=("pg*", "db"))

    assert ["pg*" in warning for warning in made.warnings] == [True]


def test_a_named_volume_that_the_settings_leave_out_is_backed_up_and_that_is_said() -> None:
    made = plan(volume("db"), volume("web"), exclude=("db",), named=("db",))

    assert [v.volume.name for group in made.groups for v in group.volumes] == ["db"]
    (warning,) = made.warnings
    assert "db is backed up because it was named, although BACKUP_EXCLUDE names it" in warning


def test_a_run_of_named_volumes_does_not_complain_about_what_others_do_not_protect() -> None:
    app = container("app", named("db"), bind("/srv/www"))

    assert plan(volume("db"), app).unprotected
    assert plan(volume("db"), app, named=("db",)).unprotected == ()


def test_what_backup_include_misses_does_not_concern_a_run_of_named_volumes() -> None:
    made = plan(volume("db"), include=("db", "pg*", "gone"), named=("db",))

    assert made.warnings == ()
    assert not any(skipped.failed for skipped in made.skipped)


@pytest.mark.parametrize("value", ["true", "TRUE", " yes ", "1", "on"])
def test_a_volume_is_left_out_by_its_label(value: str) -> None:
    assert left_out(plan(volume("db", labels={"backup.exclude": value}))) == {"db": "excluded"}


@pytest.mark.parametrize("value", ["false", "no", "0", "", "ture"])
def test_a_label_that_does_not_clearly_exclude_leaves_the_volume_in(value: str) -> None:
    assert grouped(plan(volume("db", labels={"backup.exclude": value}))) == {"db": ["db"]}


def test_a_label_on_containers_leaves_a_volume_out_only_if_all_its_users_carry_it() -> None:
    scratch = container("job", named("scratch"), named("db"), backup__exclude="true")
    made = plan(volume("scratch"), volume("db"), scratch, container("app", named("db")))

    assert left_out(made) == {"scratch": "excluded"}
    assert frozen(made, "db") == ["app", "job"]


def test_that_the_sidecar_mounts_a_volume_itself_does_not_undo_the_label_of_its_users() -> None:
    made = plan(
        volume("scratch"),
        container("job", named("scratch"), backup__exclude="true"),
        container("backup", named("scratch", "/volumes/scratch", writable=False), backup__role="sidecar"),
    )

    assert left_out(made) == {"scratch": "excluded"}


@pytest.mark.parametrize("labels", [{}, {"com.docker.volume.anonymous": ""}])
def test_anonymous_volumes_are_left_out_and_named_as_unprotected(labels: dict[str, str]) -> None:
    made = plan(volume(ANONYMOUS, labels=labels), container("redis", named(ANONYMOUS, "/data")))

    assert left_out(made) == {ANONYMOUS: "anonymous"}
    assert [(u.container, u.mount) for u in made.unprotected] == [("redis", "/data")]
    assert "anonymous" in made.unprotected[0].why
    # The label would leave out the container's named volumes too.
    assert "make it a named volume" in made.unprotected[0].hint
    assert "label" not in made.unprotected[0].hint


def test_a_name_of_64_letters_is_not_anonymous_unless_all_are_hexadecimal_digits() -> None:
    almost = "g" + ANONYMOUS[1:]

    assert grouped(plan(volume(almost))) == {almost: [almost]}


@pytest.mark.parametrize("selection", [{"named": (ANONYMOUS,)}, {"include": (ANONYMOUS,)}])
def test_an_anonymous_volume_is_backed_up_when_its_name_is_given(selection: dict[str, tuple[str, ...]]) -> None:
    made = plan(volume(ANONYMOUS), container("redis", named(ANONYMOUS)), **selection)

    assert grouped(made) == {ANONYMOUS: [ANONYMOUS]}
    assert made.unprotected == ()


def test_a_volume_that_holds_the_bucket_is_left_out_with_a_warning() -> None:
    made = plan(
        volume("seaweed"),
        volume("db"),
        container("s3", named("seaweed")),
        container("app", named("db")),
        bucket_hosts=("id-of-s3",),
    )

    assert grouped(made) == {"db": ["db"]}
    assert left_out(made) == {"seaweed": "holds_bucket"}
    assert not made.skipped[0].failed
    (warning,) = made.warnings
    assert "seaweed" in warning
    assert "s3" in warning
    assert "BACKUP_INCLUDE" in warning


def test_volumes_that_the_bucket_server_only_reads_or_sees_from_above_do_not_hold_the_bucket() -> None:
    server = container("s3", named("certificates", "/etc/tls", writable=False), bind("/var/lib", "/data"))
    made = plan(volume("certificates"), volume("db"), server, bucket_hosts=("id-of-s3",))

    assert grouped(made) == {"certificates": ["certificates"], "db": ["db"]}


@pytest.mark.parametrize(
    ("selection", "backed_up"),
    [
        ({"named": ("seaweed",)}, True),
        ({"include": ("seaweed",)}, True),
        ({"include": ("sea*",)}, False),
        ({"include": ("*",)}, False),
    ],
)
def test_a_volume_that_holds_the_bucket_is_backed_up_only_when_it_is_named_in_full(
    selection: dict[str, tuple[str, ...]], backed_up: bool
) -> None:
    made = plan(volume("seaweed"), container("s3", named("seaweed")), bucket_hosts=("id-of-s3",), **selection)

    assert ("seaweed" in grouped(made)) is backed_up


# --- volumes named for this run --------------------------------------------------------------------------------------


def test_volumes_named_for_a_run_are_backed_up_whatever_else_leaves_them_out() -> None:
    made = plan(
        volume("db"),
        volume("files", labels={"backup.exclude": "true"}),
        exclude=("files",),
        include=("db",),
        named=("files",),
    )

    assert grouped(made) == {"files": ["files"]}
    assert left_out(made) == {"db": "not_named"}


def test_an_unknown_volume_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(NotFound) as caught:
        plan(volume("shop_postgres"), volume("shop_files"), named=("shop_postgras",))

    assert "shop_postgras" in caught.value.message
    assert "shop_postgres" in caught.value.hint
    assert caught.value.volume == "shop_postgras"


def test_a_volume_unlike_any_other_is_refused_with_the_way_to_list_them() -> None:
    with pytest.raises(NotFound) as caught:
        plan(volume("shop_postgres"), named=("zzz",))

    assert "plan" in caught.value.hint


# --- where the data is -----------------------------------------------------------------------------------------------


def paths(made: Plan) -> dict[str, str]:
    return {planned.volume.name: planned.path for group in made.groups for planned in group.volumes}


def failure(made: Plan, name: str) -> str:
    (skipped,) = [s for s in made.skipped if s.volume == name]
    assert (skipped.code, skipped.failed) == ("volume_unavailable", True)
    assert skipped.hint
    assert name not in paths(made)
    return f"{skipped.why}; {skipped.hint}"


def test_a_volume_is_read_below_the_one_mount_of_the_engines_volume_directory() -> None:
    assert paths(plan(volume("db"))) == {"db": "/volumes/db/_data"}


def test_the_sidecars_other_mounts_are_not_taken_for_the_volume_directory() -> None:
    own = (bind("/", "/host"), bind("/var/lib/docker", "/data/backups"), VOLUMES_MOUNT, bind(ROOT, "/volumes/x"))

    assert paths(plan(volume("db"), own=own)) == {"db": "/volumes/db/_data"}


@pytest.mark.parametrize(
    ("source", "path"),
    [("/var/lib/docker", "/volumes/volumes/db/_data"), ("/", "/volumes/var/lib/docker/volumes/db/_data")],
)
def test_a_directory_further_up_may_be_mounted_instead(source: str, path: str) -> None:
    assert paths(plan(volume("db"), own=(Mount("bind", source, "/volumes", writable=False),))) == {"db": path}


@pytest.mark.parametrize("mountpoint", ["/mnt/docker/volumes/db/_data", "/var/lib/docker/volumes2/db/_data"])
def test_a_moved_data_root_fails_by_name(mountpoint: str) -> None:
    said = failure(plan(volume("db", mountpoint=mountpoint)), "db")

    assert mountpoint in said
    assert ROOT in said
    assert "DOCKER_VOLUMES_DIR" in said


def test_without_any_mount_of_the_volume_directory_every_volume_fails_by_name() -> None:
    sets = bind("/srv/backups", "/data/backups")
    not_the_engines = Mount("volume", f"{ROOT}/other/_data", "/volumes", writable=False, volume="other")
    made = plan(volume("db"), volume("files"), own=(STATE_MOUNT, sets, not_the_engines))

    assert "/volumes" in failure(made, "db")
    assert "/volumes" in failure(made, "files")


DRIVER_VOLUMES = [
    pytest.param({"options": {"type": "nfs", "o": "addr=10.0.0.1,rw", "device": ":/export"}}, id="nfs"),
    pytest.param({"options": {"type": "none", "o": "bind", "device": "/srv/db"}}, id="bind device"),
    pytest.param({"options": {"type": "tmpfs", "device": "tmpfs"}}, id="tmpfs"),
    pytest.param({"driver": "rclone"}, id="plugin"),
]


@pytest.mark.parametrize("facts", DRIVER_VOLUMES)
def test_a_driver_volume_that_is_not_mounted_fails_by_name_and_is_never_an_empty_archive(facts: dict) -> None:
    said = failure(plan(volume("share", **facts), mount_points=("/volumes", "/volumes/share")), "share")

    assert "/volumes/share/_data" in said
    assert "mount the volume read-only at /volumes/share" in said


@pytest.mark.parametrize("facts", DRIVER_VOLUMES)
def test_a_driver_volume_that_is_mounted_is_backed_up(facts: dict) -> None:
    made = plan(volume("share", **facts), mount_points=("/volumes", "/volumes/share/_data"))

    assert paths(made) == {"share": "/volumes/share/_data"}


def test_a_volume_whose_only_option_is_a_size_is_no_driver_mount() -> None:
    assert paths(plan(volume("db", options={"size": "10G"}))) == {"db": "/volumes/db/_data"}


@pytest.mark.parametrize("facts", [*DRIVER_VOLUMES, pytest.param({"mountpoint": "/mnt/moved/_data"}, id="moved")])
def test_a_volume_mounted_by_itself_at_volumes_name_is_read_there(facts: dict) -> None:
    explicit = Mount("volume", "/wherever", "/volumes/share", writable=False, volume="share")

    for own in ((VOLUMES_MOUNT, explicit), (explicit,)):
        assert paths(plan(volume("share", **facts), own=own)) == {"share": "/volumes/share"}


def test_an_explicit_mount_that_someone_forgot_to_make_read_only_is_still_a_volume_to_back_up() -> None:
    explicit = Mount("volume", "/wherever", "/volumes/share", writable=True, volume="share")

    assert paths(plan(volume("share"), own=(VOLUMES_MOUNT, explicit))) == {"share": "/volumes/share"}


def test_a_plugin_that_tells_no_mountpoint_fails_by_name() -> None:
    assert "rexray" in failure(plan(volume("disk", driver="rexray", mountpoint="")), "disk")


# --- unprotected mounts ----------------------------------------------------------------------------------------------


def unprotected(made: Plan) -> list[tuple[str, str]]:
    return [(mount.container, mount.mount) for mount in made.unprotected]


def test_writable_bind_mounts_and_anonymous_volumes_are_named_and_nothing_else_is() -> None:
    made = plan(
        volume("db"),
        volume(ANONYMOUS),
        container(
            "app",
            bind("/srv/pictures", "/pictures"),
            bind("/etc/app", "/etc/app", writable=False),
            named("db", "/db"),
            named(ANONYMOUS, "/cache"),
            Mount("tmpfs", "", "/tmp", writable=True),
        ),
    )

    assert unprotected(made) == [("app", "/cache"), ("app", "/pictures")]
    assert "/srv/pictures" in made.unprotected[1].why
    assert "add /srv/pictures to BACKUP_EXCLUDE" in made.unprotected[1].hint


@pytest.mark.parametrize(
    "source", ["/var/run/docker.sock", "/srv/app/php.sock", "/dev/dri", "/proc", "/sys/fs", "/run", "/var/run/app"]
)
def test_sockets_and_what_does_not_outlive_a_reboot_hold_nothing_to_protect(source: str) -> None:
    assert unprotected(plan(container("app", bind(source)))) == []


@pytest.mark.parametrize("source", ["/device", "/runner", "/srv/run", "/srv/dev"])
def test_a_path_that_only_looks_like_a_volatile_one_is_named(source: str) -> None:
    assert unprotected(plan(container("app", bind(source)))) == [("app", "/data")]


def test_a_bind_into_a_volume_has_the_volumes_verdict_and_none_of_its_own() -> None:
    app = container("app", bind(f"{ROOT}/db/_data/base", "/a"), bind("/srv/files/2026", "/b"))
    bound = volume("files", options={"type": "none", "o": "bind", "device": "/srv/files"})

    assert unprotected(plan(volume("db"), bound, app, mount_points=("/volumes/files/_data",))) == []
    assert unprotected(plan(volume("db"), bound, app, named=("files",), mount_points=("/volumes/files/_data",))) == []


def test_a_bind_above_a_volume_is_named_because_more_than_the_volume_lies_there() -> None:
    assert unprotected(plan(volume("db"), container("app", bind("/var/lib/docker")))) == [("app", "/data")]


def test_a_bind_is_accepted_by_a_pattern_of_backup_exclude_that_is_a_path() -> None:
    app = container("app", bind("/srv/pictures", "/a"), bind("/srv/pictures/small", "/b"), bind("/opt/logs/", "/c"))

    assert unprotected(plan(app, exclude=("/srv/pictures",))) == [("app", "/b"), ("app", "/c")]
    assert unprotected(plan(app, exclude=("/srv/*", "/opt/logs"))) == []


@pytest.mark.parametrize("pattern", ["*", "*pictures", "pictures"])
def test_a_pattern_for_volumes_does_not_silence_a_bind_by_chance(pattern: str) -> None:
    assert unprotected(plan(container("app", bind("/srv/pictures")), exclude=(pattern,))) == [("app", "/data")]


def test_an_anonymous_volume_is_accepted_by_its_name_and_everything_by_the_containers_label() -> None:
    redis = container("redis", named(ANONYMOUS))
    labelled = container("job", named(ANONYMOUS), bind("/srv/job"), backup__exclude="true")

    assert unprotected(plan(volume(ANONYMOUS), redis, exclude=("0123*",))) == []
    assert unprotected(plan(volume(ANONYMOUS), labelled)) == []


def test_our_own_containers_leave_nothing_unprotected() -> None:
    own = container("backup", bind("/srv/backups", "/data/backups"), backup__role="sidecar")

    assert unprotected(plan(own)) == []


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_labels_say_what_is_run_before_and_after_for_how_long_and_what_a_failure_means() -> None:
    labels = {
        "backup.pre": " pg_dump -f /dump/new ",
        "backup.post": "rm -f /dump/new",
        "backup.hook-timeout": "1h30m",
        "backup.on-hook-failure": "Continue",
    }
    made = plan(volume("db"), container("app", named("db"), **labels), container("plain", named("db")))

    assert made.warnings == ()
    assert the_group(made, "db").has_hooks
    assert the_group(made, "db").hooks_of("id-of-app") == Hooks(
        "pg_dump -f /dump/new", "rm -f /dump/new", timeout=5400.0, abort=False
    )
    assert the_group(made, "db").hooks_of("id-of-plain") == Hooks(pre="", post="", timeout=60.0, abort=True)
    assert [each["hooks"] for each in made.as_json()["groups"][0]["containers"]] == [
        {"pre": "pg_dump -f /dump/new", "post": "rm -f /dump/new", "timeout_ms": 5_400_000, "on_failure": "continue"},
        None,
    ]


@pytest.mark.parametrize("quiesce", ["none", "stop"])
def test_whoever_is_not_paused_has_its_hooks_too(quiesce: str) -> None:
    labels = {"backup.pre": "dump", "backup.quiesce": quiesce}
    made = plan(volume("db"), container("app", named("db"), **labels), protected={"id-of-app": "a proxy"})

    assert the_group(made, "db").hooks_of("id-of-app").pre == "dump"


def test_without_hooks_a_group_has_none() -> None:
    made = plan(volume("db"), container("app", named("db"), **{"backup.hook-timeout": "5s"}))

    assert not the_group(made, "db").has_hooks
    assert made.as_json()["groups"][0]["containers"][0]["hooks"] is None


@pytest.mark.parametrize(
    ("label", "text", "taken"),
    [
        ("backup.hook-timeout", "90", Hooks("dump", timeout=60.0)),
        ("backup.hook-timeout", "0s", Hooks("dump", timeout=60.0)),
        ("backup.on-hook-failure", "ignore", Hooks("dump", abort=True)),
    ],
)
def test_a_hooks_label_that_is_not_understood_is_named_and_taken_as_by_default(
    label: str, text: str, taken: Hooks
) -> None:
    made = plan(volume("db"), container("app", named("db"), **{"backup.pre": "dump", label: text}))

    (warning,) = made.warnings
    assert "container app" in warning
    assert f"{label}={text}" in warning
    assert the_group(made, "db").hooks_of("id-of-app") == taken


# --- the JSON of `plan` ----------------------------------------------------------------------------------------------


def test_the_json_of_a_plan_says_every_verdict() -> None:
    made = plan(
        volume("shop_db", project="shop"),
        volume("cache"),
        container("shop-db-1", named("shop_db"), bind("/srv/etc", "/etc/app"), project="shop"),
        exclude=("cache",),
    )

    assert made.as_json() == {
        "groups": [
            {
                "group": "shop",
                "volumes": [
                    {
                        "volume": "shop_db",
                        "mountpoint": "/var/lib/docker/volumes/shop_db/_data",
                        "path": "/volumes/shop_db/_data",
                    }
                ],
                "containers": [
                    {"container": "shop-db-1", "quiesce": "pause", "why": "by default", "hooks": None},
                ],
            }
        ],
        "skipped": [{"volume": "cache", "code": "excluded", "why": "BACKUP_EXCLUDE names it", "hint": ""}],
        "unprotected": [
            {
                "container": "shop-db-1",
                "mount": "/etc/app",
                "why": "a bind mount of /srv/etc: only volumes are backed up",
            }
        ],
        "warnings": [],
    }


# --- laws ------------------------------------------------------------------------------------------------------------

NAMES = ["db", "files", "cache-1", "cache-2", "sets", ANONYMOUS, "backup-state"]
PLACES = [f"{ROOT}/db/_data", f"{ROOT}/files", f"{ROOT}", "/srv/files", "/srv", "/", "/run/x.sock"]
TRUTH = st.sampled_from(["true", "false", ""])

any_volume = st.builds(
    lambda name, project, group, exclude, options, root: volume(
        name,
        project=project,
        group=group,
        options=options,
        mountpoint=f"{root}/{name}/_data",
        labels={"backup.exclude": exclude},
    ),
    st.sampled_from(NAMES),
    st.sampled_from(["", "shop", "blog"]),
    st.sampled_from(["", "", "together"]),
    TRUTH,
    st.sampled_from([{}, {}, {"size": "1G"}, {"type": "none", "o": "bind", "device": "/srv/files"}]),
    st.sampled_from([ROOT, ROOT, ROOT, "/mnt/moved"]),
)
any_mount = st.one_of(
    st.builds(
        lambda name, writable: named(name, f"/mnt/{name}", writable=writable), st.sampled_from(NAMES), st.booleans()
    ),
    st.builds(
        lambda source, writable: bind(source, f"/mnt{source}", writable=writable),
        st.sampled_from(PLACES),
        st.booleans(),
    ),
)
any_container = st.builds(
    lambda name, mounts, project, quiesce, exclude, role: container(
        name,
        *mounts,
        project=project,
        backup__quiesce=quiesce,
        backup__exclude=exclude,
        backup__role=role,
    ),
    st.sampled_from([f"c{number}" for number in range(6)]),
    st.lists(any_mount, max_size=4, unique_by=lambda mount: mount.target),
    st.sampled_from(["", "shop", "blog"]),
    st.sampled_from(["", "none", "freeze"]),
    TRUTH,
    st.sampled_from(["", "", "", "guard"]),
)
some = st.lists(st.sampled_from(["db", "files", "cache-*", "*", "/srv/*", "gone"]), max_size=2).map(tuple)
any_selection = st.builds(
    Selection,
    include=some,
    exclude=some,
    quiesce=st.sampled_from(list(Quiesce)),
)


@st.composite
def any_case(draw: st.DrawFn) -> tuple[Selection, Surroundings]:
    volumes = draw(st.lists(any_volume, max_size=6, unique_by=lambda v: v.name))
    containers = draw(st.lists(any_container, max_size=5, unique_by=lambda c: c.name))
    selection = draw(any_selection)
    if volumes and draw(st.booleans()):
        selection = Selection(named=(draw(st.sampled_from(volumes)).name,), quiesce=selection.quiesce)
    explicit = Mount("volume", "/x", "/volumes/files", writable=False, volume="files")
    own = [VOLUMES_MOUNT, STATE_MOUNT, *([explicit] if draw(st.booleans()) else [])]
    ids = [c.id for c in containers]
    some_ids = st.lists(st.sampled_from(ids), max_size=2).map(tuple) if ids else st.just(())
    around = Surroundings(
        volumes=volumes,
        containers=containers,
        own_mounts=own,
        mount_points=draw(st.sampled_from([(), ("/volumes/files/_data",)])),
        protected=dict.fromkeys(draw(some_ids), "it serves our connection"),
        bucket_hosts=draw(some_ids),
    )
    return selection, around


@given(any_case())
def test_every_volume_is_in_exactly_one_group_or_left_out_with_a_reason(case: tuple[Selection, Surroundings]) -> None:
    made = make_plan(*case)

    in_groups = [planned.volume.name for group in made.groups for planned in group.volumes]
    gone = {s.volume for s in made.skipped if s.code == "not_found"}
    out = [s.volume for s in made.skipped if s.code != "not_found"]
    names = [v.name for v in case[1].volumes]
    assert sorted(in_groups + out) == sorted(names)
    assert not gone & set(names)
    assert all(skipped.code and skipped.why for skipped in made.skipped)
    assert len({group.name for group in made.groups}) == len(made.groups)
    assert all(group.volumes for group in made.groups)


@given(any_case(), st.randoms(use_true_random=False))
def test_the_order_in_which_the_engine_lists_things_does_not_change_the_plan(
    case: tuple[Selection, Surroundings], chance: random.Random
) -> None:
    selection, around = case

    def shuffled(things: list) -> list:
        things = list(things)
        chance.shuffle(things)
        return things

    containers = [
        Container(c.id, c.name, c.image, c.state, c.started_at, c.pid, c.labels, tuple(shuffled(list(c.mounts))))
        for c in shuffled(list(around.containers))
    ]
    other = Surroundings(
        volumes=shuffled(list(around.volumes)),
        containers=containers,
        own_mounts=shuffled(list(around.own_mounts)),
        mount_points=around.mount_points,
        protected=around.protected,
        bucket_hosts=around.bucket_hosts,
    )

    assert make_plan(selection, other).as_json() == make_plan(selection, around).as_json()


@given(any_case())
def test_every_container_that_can_write_a_volume_of_a_group_and_is_not_ours_is_in_it(
    case: tuple[Selection, Surroundings],
) -> None:
    containers = case[1].containers
    for group in make_plan(*case).groups:
        planned = {p.container.id for p in group.containers}

        assert planned == group.dependents_among(containers)
        for each in containers:
            by_name = {m.volume for m in each.mounts if m.kind == "volume" and m.writable}
            if each.role:
                assert each.id not in planned
            elif by_name & {p.volume.name for p in group.volumes}:
                assert each.id in planned


@given(any_case())
def test_nothing_protected_is_ever_quiesced(case: tuple[Selection, Surroundings]) -> None:
    for group in make_plan(*case).groups:
        for planned in group.containers:
            if planned.container.id in case[1].protected:
                assert planned.quiesce is Quiesce.NONE


@given(any_case())
def test_a_driver_volume_is_only_ever_read_where_something_is_mounted(case: tuple[Selection, Surroundings]) -> None:
    around = case[1]
    mounted = {*around.mount_points, *(m.target for m in around.own_mounts if m.kind == "volume")}
    for group in make_plan(*case).groups:
        for planned in group.volumes:
            if {"type", "device"} & set(planned.volume.options):
                assert planned.path in mounted
