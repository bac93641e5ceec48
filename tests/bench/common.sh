# shellcheck shell=bash
# Sourced by the benchmarks: one S3 server, a host with the peers' tools, volumes to back up, a sidecar; all of it removed
# again at the end, but for the image local/bench-peers. Sets `mark`, `work`, and the names of the containers.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
# shellcheck source=tests/machine/common.sh
source "$root/tests/machine/common.sh"
mark=vbs-bench-$$
work=$(mktemp -d)
volumes_directory=$(docker info --format '{{.DockerRootDir}}')/volumes
s3=(--env AWS_ACCESS_KEY_ID=bench-access-key --env AWS_SECRET_ACCESS_KEY=bench-secret-key --env AWS_REGION=us-east-1)

clean() {
    docker ps --all --quiet --filter "name=^/$mark-" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null 2>&1 || true
    docker volume ls --quiet --filter "name=^$mark-" | xargs --no-run-if-empty docker volume rm >/dev/null 2>&1 || true
    docker network rm "$mark" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT

start_s3() { # an S3 server with the bucket `bench`, as s3:8333 on the network $mark
    "$root/tests/machine/stack-images" >&2
    docker network create "$mark" >/dev/null
    docker run --detach --init --name "$mark-s3" --network "$mark" --network-alias s3 --hostname s3 \
        --volume "$mark-bucket:/data" --env S3_ACCESS_KEY=bench-access-key --env S3_SECRET_KEY=bench-secret-key \
        --env S3_BUCKET=bench local/demo-s3 >/dev/null
    until docker exec "$mark-s3" test -e /tmp/ready; do sleep 0.2; done
}

start_sink() { # an S3 server that throws away what it gets, as sink:8333 on the network $mark
    docker rm --force "$mark-sink" >/dev/null 2>&1 || true
    docker run --detach --init --name "$mark-sink" --network "$mark" --network-alias sink \
        --volume "$here/sink.py:/sink.py:ro" local/demo-host python3 /sink.py 8333 >/dev/null
    until docker exec "$mark-sink" python3 -c 'import socket; socket.create_connection(("sink", 8333))' 2>/dev/null; do sleep 0.2; done
}

start_host() { # start_host NAME OPTION...: aws, tar, pigz, restic, python3; OPTIONs of docker run mount volumes; /machine is this machine's /usr
    if ! docker image inspect local/bench-peers >/dev/null 2>&1; then
        printf '%s\n' 'FROM local/demo-host' \
            'RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends restic pigz && rm -rf /var/lib/apt/lists/*' \
            >"$work/Dockerfile"
        build_image local/bench-peers "$work"
    fi
    docker run --detach --init --name "$mark-$1" --network "$mark" "${s3[@]}" --env AWS_DEFAULT_REGION=us-east-1 \
        --env RESTIC_REPOSITORY=s3:http://s3:8333/bench/restic --env RESTIC_PASSWORD=bench --volume /usr:/machine:ro "${@:2}" \
        local/bench-peers sleep infinity >/dev/null
}

on_host() { docker exec --interactive "$mark-host" bash -euo pipefail -c "$@"; }

fill_small() { # fill_small VOLUME_PATH FILES: small files (64 KiB at most) as this machine has them in /usr, in folders of 500
    docker exec --interactive "$mark-host" python3 - "$@" <<'FILL'
import os, random, sys
top, files = sys.argv[1], int(sys.argv[2])
found = []
for at, folders, names in os.walk("/machine"):
    folders.sort()
    for name in sorted(names):
        path = os.path.join(at, name)
        if not os.path.islink(path) and os.path.isfile(path) and os.path.getsize(path) <= 64 * 1024:
            found.append(path)
random.Random(1).shuffle(found)
for number in range(files):
    folder = f"{top}/{number // 500:04d}"
    os.makedirs(folder, exist_ok=True)
    with open(found[number % len(found)], "rb") as source, open(f"{folder}/{number:06d}", "wb") as file:
        file.write(source.read())
        if number >= len(found):  # a machine with fewer: no file twice
            file.write(b"%d\n" % number)
FILL
}

fill_large() { fill_from_machine "$@" libraries; } # fill_large VOLUME_PATH MB: shared libraries of this machine
fill_mix() { fill_from_machine "$@" everything; }  # fill_mix VOLUME_PATH MB: all files of this machine's /usr, large and small

fill_from_machine() { # fill_from_machine VOLUME_PATH MB libraries|everything; other bytes where this machine has fewer
    docker exec --interactive "$mark-host" python3 - "$@" <<'FILL'
import os, random, shutil, sys
top, left, which = sys.argv[1], int(sys.argv[2]) * 10**6, sys.argv[3]
numbers = random.Random(1)
for at, folders, names in os.walk("/machine"):
    folders.sort()
    for name in sorted(names):
        path = os.path.join(at, name)
        is_wanted = which == "everything" or name.endswith(".so") or ".so." in name
        if left > 0 and is_wanted and os.path.isfile(path) and not os.path.islink(path):
            os.makedirs(f"{top}/{at}", exist_ok=True)
            shutil.copy2(path, f"{top}/{path}")
            left -= os.path.getsize(path)
if left > 0:
    print(f"{left / 1e6:.0f} MB of {sys.argv[2]} are made up", file=sys.stderr)
for number in range(-(-left // 2**26)):
    with open(f"{top}/file-{number}", "wb") as file:
        for _ in range(min(64, left // 2**20 + 1)):
            left -= file.write(numbers.randbytes(2**19).hex().encode())
FILL
}

start_sidecar() { # start_sidecar IMAGE VOLUME,VOLUME [SERVER]: backs these up to s3://bench/backups of `s3`, or of `sink`
    docker run --detach --init --name "$mark-backup" --label backup.role=sidecar --read-only --tmpfs /tmp --tmpfs /run/backup \
        --network "$mark" --cap-drop ALL --cap-add DAC_READ_SEARCH "${s3[@]}" \
        --volume /var/run/docker.sock:/var/run/docker.sock --volume "$volumes_directory:/volumes:ro,rslave" \
        --volume "$mark-state:/state" --env BACKUP_SCHEDULE=off --env BACKUP_GUARD=off --env S3_BACKUP_BUCKET=bench \
        --env "AWS_ENDPOINT_URL_S3=http://${3:-s3}:8333" --env "BACKUP_INCLUDE=$2" --env 'BACKUP_EXCLUDE=/*' "$1" >/dev/null
    until docker exec "$mark-backup" status >/dev/null 2>&1; do sleep 0.2; done
}

warm() { # 3 GB of memory are taken and given back. Where a hypervisor takes what is free, whoever writes first pays for its
    # return, a volume of 500 MB with 1 s of system time; and who that is, is chance
    python3 -c 'import mmap; memory = mmap.mmap(-1, 3000 << 20); [memory.write(bytes(1 << 20)) for _ in range(3000)]'
}

seconds() { # seconds COMMAND...: how long it takes; what it prints is left in $work/said
    local began
    began=$(date +%s%N)
    "$@" >"$work/said" 2>"$work/complained" || { cat "$work/said" "$work/complained" >&2; exit 1; }
    echo "$((($(date +%s%N) - began) / 1000000))e-3"
}
