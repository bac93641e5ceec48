"""Where sets live: one port, several stores, wrappers of the same interface."""
