"""Evaluation by a named protocol: the protocol's file, who is evaluated, the card, and the comparison of two cards."""
