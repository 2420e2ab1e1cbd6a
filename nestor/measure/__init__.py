"""Measuring: costs, latencies, scores, and what a report makes of them."""
