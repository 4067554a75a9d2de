"""The demonstration's files: a served model and small xTB data sets (see README.md)."""
