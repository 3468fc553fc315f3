"""The search for settings on validation events."""
