"""How leaves go through functions: the one place that asks whether they are plain memory."""
