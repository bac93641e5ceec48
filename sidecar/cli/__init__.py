"""Verbs and exit codes."""
