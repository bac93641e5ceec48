"""Docker: what is there, freeze and thaw, the journal."""
