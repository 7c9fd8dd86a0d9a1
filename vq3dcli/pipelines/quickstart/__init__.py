"""The demonstration and the whole pipeline at toy scale."""
