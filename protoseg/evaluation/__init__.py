"""A model at work: predictor, metrics, evaluation, prediction of folders, tables and pictures."""
