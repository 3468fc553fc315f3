"""Scorers that bring no candidates: what is known of queries and items beside every recaller."""
