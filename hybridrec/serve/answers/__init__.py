"""Asks to answers: the queue, the batches, the reasons."""
