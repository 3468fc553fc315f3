"""The second stage: the cross-encoder that shares a prompt across candidates."""
