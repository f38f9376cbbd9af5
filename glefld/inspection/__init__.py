"""What is in a data set and what may be wrong with it, without training on it: ``glefld inspect``."""
