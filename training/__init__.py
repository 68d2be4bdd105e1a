"""Training: loss, schedule, averages, checkpoints, log, and the loop that ties them together."""
