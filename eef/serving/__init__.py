"""Environments behind a server: sessions that start in expert states, limits, the OpenEnv protocol."""
