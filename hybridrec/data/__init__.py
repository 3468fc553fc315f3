"""Interactions and items in, validated: data sets, splits, item text."""
