"""Scores, choices and capacities: who goes where."""
