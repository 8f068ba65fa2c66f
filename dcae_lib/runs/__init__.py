"""What a real training needs around the loop: progress, checkpoints, Ctrl-C, and the record of what was done."""
