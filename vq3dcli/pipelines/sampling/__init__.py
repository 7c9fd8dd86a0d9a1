"""New scenes from the prior."""
