"""Everything that touches files: data sets, models, checkpoints, ledgers, runs, tables and pictures."""
