"""Learned fusion of the signals that the stages leave on their candidates."""
