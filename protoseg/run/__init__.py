"""What a command does: train, evaluate, sweep, start workers, go on after a stop. Parsing stands in ``cli``."""
