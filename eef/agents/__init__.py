"""Policies: the chat template as token ids, constrained decoding, the engines, and rollouts."""
