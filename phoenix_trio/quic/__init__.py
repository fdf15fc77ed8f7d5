"""Runs one endpoint, its connections and their streams (floors 0 to 3)."""
