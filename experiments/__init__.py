"""The commands, of a clone of the repository."""
