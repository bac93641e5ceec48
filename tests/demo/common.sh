# Sourced by run and down.
# shellcheck shell=bash disable=SC2034
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source=tests/machine/common.sh
source tests/machine/common.sh

# The shell's settings of a real sidecar and of the AWS CLI stay out of the demonstration.
unset ${!BACKUP_@} ${!NOTIFY_@} ${!AWS_@} ${!S3_@} COMPOSE_FILE COMPOSE_PROJECT_NAME
# Never used (sets go to the sample S3 server), but docker-compose.backup.yml mounts it.
export BACKUP_LOCAL_DIR="$state_directory/demo-backups"

made=volume-backup-sidecar.sample
scratch=(demo-scratch-uploads demo-scratch-pgdata)
scratch_postgres=demo-scratch-postgres

compose() { tests/machine/compose --env-file tests/demo/settings.env "$@"; }
s3() { compose -p demo-s3 -f tests/stack/docker-compose.s3.yml "$@"; }
stack() { compose -p demo -f tests/stack/docker-compose.yml "$@"; }
sidecar() { compose -p demo-sidecar -f docker-compose.backup.yml -f tests/stack/docker-compose.backup.demo.yml "$@"; }

refuse_a_real_sidecar() {
    if docker container inspect backup >/dev/null 2>&1 &&
        [[ $(docker container inspect --format "{{index .Config.Labels \"$made\"}}" backup) != true ]]; then
        say "A container named \`backup\` is here that the demo did not start, probably a real sidecar: it is left alone." \
            "The demo needs that name. Try it on a machine without a sidecar."
        exit 2
    fi
}

# Someone else's project called demo must not be touched: everything of ours carries a label.
refuse_another_demo() {
    local project kind id
    for project in demo demo-s3 demo-sidecar; do
        for kind in container volume; do
            for id in $(docker "$kind" ls -q $([[ $kind == volume ]] || echo -a) \
                --filter "label=com.docker.compose.project=$project"); do
                case $(docker "$kind" inspect --format '{{json .}}' "$id") in
                    *"\"$made\":\"true\""*) ;;
                    *)
                        say "There is a Compose project \`$project\` here that is not the demo's ($kind $id): it is left alone."
                        exit 2
                        ;;
                esac
            done
        done
    done
}
