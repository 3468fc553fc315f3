"""The models in memory: loaded, checked, swapped."""
