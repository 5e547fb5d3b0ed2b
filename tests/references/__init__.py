"""Tiny models of each family, and independent implementations to compare them with; one module a family."""
