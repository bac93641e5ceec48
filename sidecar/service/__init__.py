"""The daemon: schedule, control API, logs."""

# Where the verbs find the daemon. It stands here because importing the API would cost every verb a web framework.
CONTROL_SOCKET = "/run/backup/control.sock"

# What the daemon remembers across restarts, on the state volume.
MEMORY = "/state/daemon.json"
# Beside it: which volumes the guard has been told to let go of.
GUARD_MEMORY = "guard.json"
