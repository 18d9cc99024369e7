"""The loop, its schedule, its optimiser, its checkpoints and its bar."""
