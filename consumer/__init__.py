"""Keeps one row per customer conversation right while users, agents, support and timers write at once."""
