"""Types and ranges of settings, checked before anything is imported."""
