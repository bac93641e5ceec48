"""The daemon: schedule, control API, logs."""
