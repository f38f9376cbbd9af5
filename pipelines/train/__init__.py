"""Training on Ray Train: worker groups, restarts and the process group."""
