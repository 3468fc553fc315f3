"""The first stage: recallers, vector indexes, and the blend of their lists."""
