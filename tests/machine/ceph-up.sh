#!/bin/bash
# ceph-up.sh DIR PORT STORE(memstore|bluestore): one monitor, one OSD and one S3 gateway on the loopback interface.
# Their process ids are in DIR/*.pid; access key AKIATEST, secret key secretsecret. Ports 23300, 26789 and 26800 to
# 26899 must be free too.
set -euo pipefail
D=$1; PORT=$2; STORE=$3
rm -rf "$D"; mkdir -p "$D"/{mon,osd,run,log}
FSID=$(cat /proc/sys/kernel/random/uuid)
cat > "$D/ceph.conf" <<C
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:23300,v1:127.0.0.1:26789]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
run dir = $D/run
admin socket = $D/run/\$name.\$pid.asok
log file = $D/log/\$name.log
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon allow pool delete = true
mon data avail warn = 1
mon data avail crit = 1
mon data = $D/mon
mon pg warn min per osd = 0
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = true
mon warn on insecure global id reclaim allowed = false
paxos propose interval = 0.05
paxos min wait = 0.01
[mon]
[osd]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd data = $D/osd
osd objectstore = $STORE
memstore device bytes = 8589934592
bluestore block path =
bluestore block size = 10737418240
bluestore fsck on mount = false
osd memory target = 1073741824
osd class update on start = true
ms bind port min = 26800
ms bind port max = 26899
[client]
rgw frontends = beast endpoint=127.0.0.1:$PORT
rgw crypt require ssl = false
rgw enable usage log = false
rgw data = $D
rgw dns name = localhost
ms mon client mode = crc
C
export CEPH_CONF=$D/ceph.conf
monmaptool --create --addv a '[v2:127.0.0.1:23300,v1:127.0.0.1:26789]' --fsid "$FSID" "$D/monmap" > /dev/null
ceph-mon --mkfs -i a --monmap "$D/monmap"
ceph-mon -i a -f > "$D/mon.out" 2>&1 & echo $! > "$D/mon.pid"
UUID=$(cat /proc/sys/kernel/random/uuid)
ID=$(timeout 60 ceph osd new "$UUID")
ceph-osd -i "$ID" --mkfs --osd-uuid "$UUID" > "$D/osdmkfs.out" 2>&1
ceph-osd -i "$ID" -f > "$D/osd.out" 2>&1 & echo $! > "$D/osd.pid"
radosgw -n client.rgw.a -f > "$D/rgw.out" 2>&1 & echo $! > "$D/rgw.pid"
timeout 90 radosgw-admin user create --uid=test --display-name=test --access-key=AKIATEST --secret=secretsecret \
  > "$D/user.json" 2> "$D/user.err"
