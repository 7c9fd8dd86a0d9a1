"""Trainings at toy scale from end to end: the quickstart, the ablation of the depth loss; and the demonstration."""
