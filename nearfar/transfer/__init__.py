"""Transfer: heads on a pre-trained encoder, trained on a downstream task. One file a task; the name is the module."""
