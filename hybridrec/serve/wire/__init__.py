"""What goes over the wire, and what it means to a model."""
