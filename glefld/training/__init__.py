"""Training in one worker: the loop, the losses and what a step logs."""
