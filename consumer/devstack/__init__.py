"""Real services for the demo and the tests. Nothing in production imports this package."""
