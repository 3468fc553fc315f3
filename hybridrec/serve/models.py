"""The versions of the model that are in memory, and which of them answers."""

from __future__ import annotations

from hybridrec.serve.loaded import Loaded, load_model

__all__ = ["Loaded", "load_model"]
