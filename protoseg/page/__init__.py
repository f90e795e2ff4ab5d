"""One self-contained HTML page about a checkpoint: how good it is, where it errs, what its prototypes stand for."""
