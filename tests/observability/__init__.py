"""Rules, runbooks and dashboard: what is checked of them, and the picture of the dashboard."""
