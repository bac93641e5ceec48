# Builds with the classic builder and with BuildKit alike, so there is no RUN --mount and no syntax line.
# Any image with Python 3.11 or later will do: tests/machine/base-image names (or makes) one where no registry is reachable.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# A virtual environment without pip in it: the base image's pip fills it, and the running container can install nothing.
RUN python3 -m venv --without-pip /opt/sidecar
# The lock alone decides what is installed, so this layer is rebuilt only when the lock changes. Wheels only: the image
# needs no compiler, and no package's setup code runs here.
COPY requirements.lock /tmp/requirements.lock
# botocore describes four hundred services, of which we call a handful: without the others the image is 20 MB smaller.
# The packages' own commands (uvicorn, dotenv, ...) are not ours to offer.
RUN python3 -m pip --python /opt/sidecar/bin/python install --no-deps --only-binary :all: --require-hashes \
      --requirement /tmp/requirements.lock \
 && find /opt/sidecar/bin -mindepth 1 ! -type l -delete \
 && cd /opt/sidecar/lib/python3*/site-packages/botocore/data \
 && find . -mindepth 1 -maxdepth 1 -type d \
      ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name sns ! -name ec2 ! -name ebs -exec rm -r {} +

# The code, as a tree to lay over the packages. The verbs are written from pyproject.toml's own table, as an installer
# would, without fetching a build backend. Bytecode is made now: the root file system is read-only later.
FROM packages AS code
COPY pyproject.toml /tmp/pyproject.toml
COPY sidecar /tmp/sidecar
RUN packages=/tree$(echo /opt/sidecar/lib/python3*/site-packages) \
 && mkdir -p "$packages" /tree/opt/sidecar/bin \
 && cp -r /tmp/sidecar "$packages" \
 && python3 -m compileall -q -s /tree -p / "$packages" \
 && cd /tree/opt/sidecar/bin \
 && python3 -c "import pathlib, tomllib; \
project = tomllib.loads(pathlib.Path('/tmp/pyproject.toml').read_text())['project']; \
verbs = {name: target.split(':') for name, target in project['scripts'].items()}; \
text = '#!/opt/sidecar/bin/python\nimport sys\nfrom {0} import {1}\n\nsys.exit({1}())\n'; \
[pathlib.Path(verb).write_text(text.format(*target)) for verb, target in verbs.items()]" \
 && chmod 0755 ./*

FROM ${BASE_IMAGE}
# Nothing so labelled is ever frozen or backed up, under whatever name it runs.
LABEL backup.role=sidecar
# Log lines must leave at once, and the read-only root file system takes no bytecode.
ENV PATH=/opt/sidecar/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
# Blocks of 8 MiB come and go in several threads. Left to itself glibc keeps each thread's in a heap of its own, and more
# after every run: 360 MB at the fourth of the same backup. One heap, which may hold blocks (32 MiB is the most), had 236 MB
# at each; with a mapping for each block it was 200 MB, and a tenth more processor time for zeroing them.
ENV MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=67108864
# Mount points; with a read-only root file system they could not be made later.
RUN mkdir -p /state /run/backup /data/backups /volumes /compose
COPY --from=packages /opt/sidecar /opt/sidecar
COPY --from=code /tree/ /
# Healthy means backed up: the last run was good and none is overdue. It costs a quarter of a second of CPU each time, and
# its answer changes a few times a day at most.
HEALTHCHECK --interval=60s --timeout=30s --start-period=3m --retries=2 CMD ["status", "--check"]
# Root, but with no capability other than DAC_READ_SEARCH (docker-compose.backup.yml): a volume's files belong to any user.
ENTRYPOINT ["sidecar"]
CMD ["daemon"]
