"""Training rows, SFT and DPO, in one process or several."""
